"""The engines under contract: the fake always, the real vLLM where there is one."""

import os
import sys
from pathlib import Path

import pytest
from vllm_instances import Engine, real_engine

from vllm_manager.paths import engines_dir

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from fake_engine import make_fake_engine


@pytest.fixture(scope="session", params=["fake", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The engines that the contract holds for."""
    if request.param == "fake":
        return Engine("fake", make_fake_engine(tmp_path_factory.mktemp("engine") / "fake"))
    python = real_engine()
    if python is None:
        reason = f"no vLLM: VLLM_MANAGER_TEST_ENGINE isn't set and {engines_dir()} has no engine"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Engine("vllm", python)
