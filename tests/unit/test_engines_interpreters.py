"""Choosing the Python that an engine is built with."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_manager.engines.interpreters import problem_of, usable
from vllm_manager.errors import EngineInstallFailed

MINORS = ("3.11", "3.12", "3.13", "3.14")
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
GOOD: dict[str, Any] = {"version": [3, 12, 4], "usual": True, "venv": True}


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        (GOOD, None),
        (None, "doesn't run"),
        (GOOD | {"version": [3, 10, 13]}, "is Python 3.10.13"),
        (GOOD | {"version": [3, 15, 0]}, "is Python 3.15.0"),
        (GOOD | {"version": [2, 7, 18], "usual": False}, "is Python 2.7.18"),
        (GOOD | {"usual": False}, "isn't the usual CPython"),
        (GOOD | {"venv": False}, "can't create environments (venv or ensurepip is missing)"),
    ],
)
def test_an_interpreter_is_refused_with_the_reason(facts: dict[str, Any] | None, problem: str | None) -> None:
    assert problem_of(facts, MINORS) == problem


def test_the_managers_own_base_interpreter_comes_first() -> None:
    first = usable(MINORS)[0]
    assert first.minor == OWN
    assert first.version == ".".join(map(str, sys.version_info[:3]))
    # Not an environment's link to it: that would tie the engine to the manager's environment.
    assert Path(first.path).parents[1] != Path(sys.prefix) or sys.prefix == sys.base_prefix


def test_there_is_one_interpreter_per_version() -> None:
    minors = [interpreter.minor for interpreter in usable(MINORS)]
    assert len(minors) == len(set(minors))


def test_a_stand_in_that_fails_does_not_hide_the_interpreter_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, script in {"a": "exit 127", "b": f'exec {sys.executable} "$@"'}.items():
        stand_in = tmp_path / name / "python3"
        stand_in.parent.mkdir()
        stand_in.write_text(f"#!/bin/sh\n{script}\n")
        stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/a:{tmp_path}/b:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "_base_executable", str(tmp_path / "gone"))
    found = usable((OWN,))
    assert [interpreter.minor for interpreter in found] == [OWN]
    assert found[0].path == sys.executable  # what it said of itself, not the stand-in


def test_the_one_that_was_named_is_the_only_one_looked_at(tmp_path: Path) -> None:
    with pytest.raises(EngineInstallFailed) as caught:
        usable(MINORS, python=str(tmp_path / "python"))
    assert f"{tmp_path}/python doesn't run" in caught.value.cause
    assert sys.executable not in caught.value.cause


def test_the_wrong_version_says_which_would_do() -> None:
    with pytest.raises(EngineInstallFailed) as caught:
        usable(("3.99",), python=sys.executable)
    assert "3.99 would do" in caught.value.cause
    assert f"is Python {OWN}" in caught.value.cause
    assert "--python" in str(caught.value.hint)


def test_a_missing_venv_package_is_named_for_that_version(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    facts = '{"executable": "/usr/bin/python3", "version": [3, 12, 3], "usual": true, "venv": false}'
    python.write_text(f"#!/bin/sh\necho '{facts}'\n")
    python.chmod(0o755)
    with pytest.raises(EngineInstallFailed) as caught:
        usable(MINORS, python=str(python))
    assert "apt-get install python3.12-venv" in str(caught.value.hint)
