"""Choosing the Python that a provisioned engine is built with; it needn't be the manager's own."""

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_manager.engines.pip import clean_environment
from vllm_manager.errors import EngineInstallFailed

_TIMEOUT_SECONDS = 20.0

# Runs in the candidate, which may be of any age.
_FACTS = """
import json, sys
def there(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True
print(json.dumps({
    "executable": sys.executable,
    "version": list(sys.version_info[:3]),
    "usual": sys.version_info[0] == 3 and sys.implementation.name == "cpython" and "t" not in sys.abiflags,
    "venv": there("venv") and there("ensurepip"),
}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python that an engine can be built with.

    Attributes:
        path: Absolute.
        minor: Such as ``3.11``.
        version: Such as ``3.11.2``.
    """

    path: str
    minor: str
    version: str


def usable(minors: Collection[str], *, python: str | None = None) -> tuple[Interpreter, ...]:
    """The interpreters that can build an engine, best first, one per minor version.

    Args:
        minors: The versions that will do, such as ``3.11``.
        python: Only this interpreter; None looks at the manager's own and at those on PATH.

    Raises:
        EngineInstallFailed: There is none; says why for each that was looked at.
    """
    found: dict[str, Interpreter] = {}
    problems: list[str] = []
    hint = "install one (`apt-get install python3 python3-venv`), or name it with --python"
    for path in [python] if python else _candidates(minors):
        facts = _facts(path)
        minor = ".".join(map(str, facts["version"][:2])) if facts else ""
        if minor in found:
            continue
        if problem := problem_of(facts, minors):
            problems.append(f"{path} {problem}")
            if facts and facts["usual"] and minor in minors:
                hint = f"`apt-get install python{minor}-venv`, or name another interpreter with --python"
        elif facts:
            version = ".".join(map(str, facts["version"]))
            found[minor] = Interpreter(path=facts["executable"], minor=minor, version=version)
    if not found:
        raise EngineInstallFailed(
            cause=f"no Python to build the engine with ({', '.join(minors)} would do): "
            + ("; ".join(problems) or "none was found"),
            hint=hint,
            what="Python",
        )
    return tuple(found.values())


def problem_of(facts: Mapping[str, Any] | None, minors: Collection[str]) -> str | None:
    """Why an interpreter with these facts can't build the engine, or None."""
    if facts is None:
        return "doesn't run"
    version = ".".join(map(str, facts["version"]))
    if ".".join(version.split(".")[:2]) not in minors:
        return f"is Python {version}"
    if not facts["usual"]:
        return "isn't the usual CPython"
    if not facts["venv"]:
        return "can't create environments (venv or ensurepip is missing)"
    return None


def _candidates(minors: Collection[str]) -> Iterator[str]:
    # sys.executable may be an environment's; the engine is built from what that was built from.
    yield getattr(sys, "_base_executable", None) or sys.executable
    names = ["python3", *(f"python{minor}" for minor in minors)]
    seen = set()
    for name in names:
        # All of PATH, not its first hit: version managers put stand-ins there that only print an error.
        for directory in os.get_exec_path():
            path = Path(directory or ".", name)
            if os.access(path, os.X_OK) and path.is_file() and (real := path.resolve()) not in seen:
                seen.add(real)
                yield str(path)


def _facts(python: str) -> dict[str, Any] | None:
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _FACTS],
            env=clean_environment(os.environ),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        ).stdout
        facts = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
