"""Which interpreter and which index PyTorch is taken from."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_manager.engines.build import Build
from vllm_manager.engines.interpreters import Interpreter
from vllm_manager.engines.pip import PipFailure
from vllm_manager.engines.progress import Progress
from vllm_manager.engines.recipes import RECIPES
from vllm_manager.engines.sources import InstallOptions
from vllm_manager.errors import EngineInstallFailed
from vllm_manager.types import Device

INTERPRETERS = tuple(
    Interpreter(path=f"/usr/bin/python{minor}", minor=minor, version=f"{minor}.1")
    for minor in ("3.13", "3.11")
)
LACKING = PipFailure(cause="no package index or directory has torch", missing="torch==2.13.0+cpu")
UNREACHABLE = PipFailure(cause="can't be reached", missing="torch==2.13.0+cpu", unreachable=True)
PYTORCH = "https://download.pytorch.org/whl/cpu"

Answer = Callable[[str, str | None], PipFailure | None]


class Attempts(Build):
    """A build whose downloads are answered by a function of the Python version and the index."""

    def __init__(self, answer: Answer, options: InstallOptions) -> None:
        super().__init__(
            RECIPES[Device.CPU]["0.32.0"],
            Path("/engines/cpu-0.32.0"),
            options,
            Progress(lambda progress: None, total=5),
            io.BytesIO(),
            0,
        )
        self.answer = answer
        self.tried: list[tuple[str, str | None]] = []

    def _download(self, *arguments: str, index_url: str | None = None) -> PipFailure | None:
        minor = arguments[arguments.index("--python-version") + 1]
        self.tried.append((minor, index_url))
        return self.answer(minor, index_url)

    # A buffer has no name for the error to mention.
    def _pip_error(self, failure: PipFailure, what: str) -> EngineInstallFailed:
        return EngineInstallFailed(cause=failure.cause, what=what)

    def choose(self) -> str:
        return self._fetch_torch(INTERPRETERS, "torch==2.13.0+cpu").minor


def test_the_first_interpreter_is_taken_where_torch_is_there_for_it() -> None:
    attempts = Attempts(lambda minor, index: None, InstallOptions())
    assert attempts.choose() == "3.13"
    assert attempts.tried == [("3.13", None)]


def test_another_interpreter_is_taken_where_torch_is_there_for_that_one_only() -> None:
    attempts = Attempts(lambda minor, index: None if minor == "3.11" else LACKING, InstallOptions())
    assert attempts.choose() == "3.11"
    assert attempts.tried == [("3.13", None), ("3.11", None)]


def test_pytorchs_index_comes_after_what_is_configured() -> None:
    attempts = Attempts(lambda minor, index: None if index == PYTORCH else LACKING, InstallOptions())
    assert attempts.choose() == "3.13"
    assert attempts.tried == [("3.13", None), ("3.11", None), ("3.13", PYTORCH)]


def test_an_index_that_does_not_answer_is_not_asked_for_every_interpreter() -> None:
    attempts = Attempts(lambda minor, index: UNREACHABLE, InstallOptions())
    with pytest.raises(EngineInstallFailed):
        attempts.choose()
    assert attempts.tried == [("3.13", None), ("3.13", PYTORCH)]


def test_directories_alone_are_not_followed_by_the_network() -> None:
    attempts = Attempts(lambda minor, index: LACKING, InstallOptions(find_links=(Path("/wheels"),)))
    with pytest.raises(EngineInstallFailed) as caught:
        attempts.choose()
    assert caught.value.what == "torch==2.13.0+cpu"
    assert attempts.tried == [("3.13", None), ("3.11", None)]
