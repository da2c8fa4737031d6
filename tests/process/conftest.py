"""Fixtures of the tests that drive the command line."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from box import Box
from downloading import MODEL

from tests.fakes.fake_engine import make_fake_engine
from tests.fakes.hub import Hub, serve


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


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hugging Face hub with one model."""
    with serve() as made:
        made.add(MODEL)
        yield made


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """An environment in which that is the hub, with a home of its own."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "NO_PROXY": "*"}


@pytest.fixture
def hasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that don't pause between tries."""
    directory = tmp_path / "hasty"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
    monkeypatch.setenv("PYTHONPATH", str(directory))
