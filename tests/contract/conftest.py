"""The engines under contract: the fake always, the real vLLM where there is one."""

import sys
from pathlib import Path

import pytest
from vllm_instances import Engine, required_engine

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from fake_engine import make_fake_engine


@pytest.fixture(scope="session", params=["fake", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The engines that the contract holds for."""
    if request.param == "fake":
        return Engine("fake", make_fake_engine(tmp_path_factory.mktemp("engine") / "fake"))
    return Engine("vllm", required_engine())
