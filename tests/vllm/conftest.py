"""One real model for all tests of this folder: a start takes half a minute."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.vllm_instances import real_engine
from tests.process.box import Box


@pytest.fixture(scope="session")
def engine() -> Path:
    """The Python of an environment with the real vLLM (CPU build)."""
    python = real_engine()
    if python is None:
        reason = "no vLLM here: `vllm-manager engine install` makes one"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return python


@pytest.fixture(scope="session")
def box(engine: Path) -> Iterator[Box]:
    """An isolated machine; nothing of it outlives the tests."""
    with Box(engine) as made:
        yield made
