"""One real model for all tests of this folder: a start takes half a minute."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.vllm_instances import required_engine
from tests.process.box import Box


@pytest.fixture(scope="session")
def engine() -> Path:
    """The Python of an environment with the real vLLM (CPU build)."""
    return required_engine()


@pytest.fixture(scope="session")
def box(engine: Path) -> Iterator[Box]:
    """An isolated machine; nothing of it outlives the tests."""
    with Box(engine) as made:
        yield made
