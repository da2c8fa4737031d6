"""Whether a provisioned engine still works here: its files, its packages, its imports, this machine."""

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_manager.engines.environments import contents, script_problem
from vllm_manager.engines.introspect import engine_flags
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.engines.pip import clean_environment
from vllm_manager.engines.recipes import SELF_CHECKS, install_command, recipe_for
from vllm_manager.types import Device, GpuInventory

_TIMEOUT_SECONDS = 300.0
_SHOWN = 3

# What Triton builds its launchers with, at the first request: vLLM starts without, and then fails.
_BUILD_TOOLS = """
import os, shutil, sysconfig
print(shutil.which("gcc") or shutil.which("clang") or "no compiler")
print(os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
"""
_LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check of an engine found.

    Attributes:
        what: The subject, such as ``files``.
        detail: What there is, in one line.
        problem: What is wrong, or None.
        hint: What would help, or None.
    """

    what: str
    detail: str = ""
    problem: str | None = None
    hint: str | None = None


def check(
    engine: InstalledEngine, engines_dir: Path, *, inventory: GpuInventory | None = None
) -> Iterator[Finding]:
    """Look at everything that the engine needs, one finding after the other; about 20 s in all.

    Args:
        engine: The engine.
        engines_dir: Where it lies.
        inventory: The GPUs, for an engine for CUDA.
    """
    return _Check(engine, engines_dir, inventory).findings()


class _Check:
    def __init__(self, engine: InstalledEngine, engines_dir: Path, inventory: GpuInventory | None) -> None:
        self.engine = engine
        self.engines_dir = engines_dir
        self.inventory = inventory
        self.python = engine.path / "bin" / "python"
        self.device = engine.device or Device.CUDA
        self.recipe = recipe_for(engine.version.partition("+")[0], self.device)
        install = install_command(engine.version.partition("+")[0], self.device)
        self.anew = f"`vllm-manager engine remove {engine.name} && {install}` builds it anew"
        self.cuda: str | None = None

    def findings(self) -> Iterator[Finding]:
        program = self._program()
        yield program
        if program.problem is not None:
            return  # nothing else could be asked
        yield self._files()
        yield self._packages()
        yield from self._library()
        yield self._imports()
        yield self._flags()
        if self.device is Device.CUDA:
            yield self._driver()
            yield self._triton()
        elif self.recipe is not None and self.recipe.compiler is not None:
            yield self._compiler(self.recipe.compiler)

    def _program(self) -> Finding:
        what = "program"
        if problem := script_problem(self.engine.executable):
            return Finding(what=what, problem=problem, hint=self.anew)
        found = contents(self.python)
        if found.problem is not None:
            return Finding(what=what, problem=f"{self.python}: {found.problem}", hint=self.anew)
        if found.vllm != self.engine.version:
            there = f"vLLM {found.vllm}" if found.vllm else "no vLLM"
            problem = f"it was installed with vLLM {self.engine.version}, and has {there} now"
            return Finding(what=what, problem=problem, hint=self.anew)
        return Finding(what=what, detail=f"vLLM {found.vllm}, Python {self.engine.python_version}")

    def _files(self) -> Finding:
        number, bad = damaged(self.engine.path)
        if not bad:
            return Finding(what="files", detail=f"all {number} are there")
        shown = ", ".join(bad[:_SHOWN]) + (" …" if len(bad) > _SHOWN else "")
        problem = f"{len(bad)} of {number} files are missing or cut short: {shown}"
        return Finding(what="files", problem=problem, hint=self.anew)

    def _packages(self) -> Finding:
        """As `pip check` sees them, without what the recipe leaves out."""
        status, lines = self._run("-m", "pip", "check")
        left_out = self.recipe.left_out if self.recipe else frozenset()
        missing = re.compile(r" requires (\S+), which is not installed")
        problems = [
            line
            for line in lines
            if status != 0 and not ((match := missing.search(line)) and match[1].lower() in left_out)
        ]
        if not problems:
            return Finding(what="packages", detail="they fit together")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Finding(what="packages", problem=problems[0].rstrip(".") + more, hint=self.anew)

    def _library(self) -> Iterator[Finding]:
        if self.recipe is None or self.recipe.library is None:
            return
        library = self.recipe.library
        status, _ = self._run("-c", _LOAD, library)
        hint = f"`apt-get install {self.recipe.library_package}` as root"
        yield Finding(
            what="system library",
            detail=library,
            problem=f"{library} can't be loaded" if status != 0 else None,
            hint=hint if status != 0 else None,
        )

    def _imports(self) -> Finding:
        status, lines = self._run("-c", SELF_CHECKS[self.device])
        said = next((line for line in reversed(lines) if self.engine.version in line), None)
        if status != 0 or said is None:
            last = lines[-1] if lines else f"exit status {status}"
            return Finding(what="imports", problem=f"it can't be imported: {last}", hint=self.anew)
        self.cuda = said.partition(" cuda ")[2] or None
        return Finding(what="imports", detail=f"for CUDA {self.cuda}" if self.cuda else "kernels and all")

    def _flags(self) -> Finding:
        said: list[str] = []
        found = engine_flags(self.engine.engine, self.engines_dir, report=said.append)
        if found is None:
            return Finding(what="flags", problem=said[-1] if said else "they can't be read", hint=self.anew)
        return Finding(what="flags", detail=f"{len(found.flags)} of `vllm serve`")

    def _driver(self) -> Finding:
        gpus = self.inventory or GpuInventory(problem="the GPUs weren't looked at")
        if gpus.problem is not None:
            return Finding(what="driver", problem=gpus.problem, hint=gpus.hint)
        if problem := driver_problem(self.cuda, gpus.cuda_version):
            return Finding(what="driver", problem=problem, hint="update the NVIDIA driver")
        return Finding(what="driver", detail=f"{gpus.driver_version}, up to CUDA {gpus.cuda_version}")

    def _compiler(self, name: str) -> Finding:
        found = shutil.which(name)
        if found is not None:
            return Finding(what="compiler", detail=found)
        problem = f"this build compiles at its first request, and {name} isn't on PATH"
        return Finding(what="compiler", problem=problem, hint=f"`apt-get install {name}` as root")

    def _triton(self) -> Finding:
        status, lines = self._run("-c", _BUILD_TOOLS)
        compiler, headers = [*lines, "", ""][:2] if status == 0 else ("", "")
        lacking = ["a C compiler"] if compiler == "no compiler" else []
        lacking += ["Python's headers"] if headers == "False" else []
        if not lacking:
            return Finding(what="compiler", detail=compiler)
        minor = ".".join(self.engine.python_version.split(".")[:2])
        return Finding(
            what="compiler",
            problem=f"Triton compiles at run time, and {' and '.join(lacking)} can't be found",
            hint=f"`apt-get install gcc libc6-dev python{minor}-dev` as root",
        )

    def _run(self, *arguments: str) -> tuple[int, list[str]]:
        env = {k: v for k, v in clean_environment(os.environ).items() if not k.startswith(("PIP_", "VLLM_"))}
        env |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        try:
            done = subprocess.run(
                [self.python, "-I", *arguments],
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return 1, [f"no end within {_TIMEOUT_SECONDS:.0f} s"]
        return done.returncode, [line.strip() for line in done.stdout.splitlines() if line.strip()]


def driver_problem(needed: str | None, supported: str | None) -> str | None:
    """Why a driver can't run programs built for a version of CUDA, or None.

    A driver runs what was built for an earlier CUDA, and for a later one of the same major version (NVIDIA's
    "CUDA Compatibility").

    Args:
        needed: What the engine was built for, such as ``13.0``; None where it isn't known.
        supported: The newest CUDA that the driver supports; None where it isn't known.
    """
    if needed is None or supported is None or _major(needed) <= _major(supported):
        return None
    return f"the engine needs a driver for CUDA {needed}, and this one supports CUDA up to {supported}"


def _major(version: str) -> int:
    text = version.partition(".")[0]
    return int(text) if text.isdigit() else 0


def damaged(environment: Path) -> tuple[int, list[str]]:
    """How many files its packages have by their RECORDs, and which of them are missing or cut short.

    Not those that are longer or otherwise another: packages overwrite each other's files, and some wheels
    were changed after their RECORD was written.
    """
    expected: dict[Path, int] = {}
    for record in environment.glob("lib/python3*/site-packages/*.dist-info/RECORD"):
        with record.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                # Without a size: the RECORD itself. Bytecode comes and goes.
                if len(row) == 3 and row[2].isdigit() and "__pycache__" not in row[0]:
                    path = record.parents[1] / row[0]
                    expected[path] = min(int(row[2]), expected.get(path, int(row[2])))
    found = sorted(path for path, size in expected.items() if _size(path) < size)
    return len(expected), [os.path.relpath(path, environment) for path in found]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
