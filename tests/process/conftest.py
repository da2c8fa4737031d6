"""Fixtures of the tests that drive the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box

from tests.fakes.fake_engine import make_fake_engine


@pytest.fixture(scope="session")
def fake_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an engine whose vLLM is the fake (CPU build)."""
    return make_fake_engine(tmp_path_factory.mktemp("engine") / "cpu")


@pytest.fixture
def fresh_box(fake_engine: Path) -> Iterator[Box]:
    """An isolated machine on which nothing ran yet; nothing of it outlives the test."""
    with Box(fake_engine) as made:
        yield made


@pytest.fixture(scope="module")
def shared_box(fake_engine: Path) -> Iterator[Box]:
    """An isolated machine with a supervisor, for all tests of a file."""
    with Box(fake_engine) as made:
        made.serve()
        yield made


@pytest.fixture
def box(shared_box: Box) -> Iterator[Box]:
    """The file's machine with a supervisor and no deployment; what the test brings up is taken down."""
    yield shared_box
    shared_box.clear()
