"""Building one engine: what is fetched, in which order, and what is said when that fails."""

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import BinaryIO

from vllm_manager.clock import SystemClock
from vllm_manager.engines import marker
from vllm_manager.engines.interpreters import Interpreter, usable
from vllm_manager.engines.layout import disk_use, layout
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.engines.pip import PipFailure, detail_of, failure_of, install_environment, run
from vllm_manager.engines.progress import Progress
from vllm_manager.engines.recipes import GIB, Recipe, install_command
from vllm_manager.engines.sources import InstallOptions
from vllm_manager.errors import EngineInstallFailed


@dataclass
class Build:
    """One attempt at building an engine, under its lock."""

    recipe: Recipe
    directory: Path
    options: InstallOptions
    progress: Progress
    log: BinaryIO
    lock: int

    def __post_init__(self) -> None:
        self.python = self.directory / "bin" / "python"
        self.tmp = layout(self.recipe.name, self.directory.parent).temporary
        self.wheels = self.tmp / "wheels"
        self.pip_tmp = self.tmp / "pip"

    def build(self) -> InstalledEngine:
        """Build it; whatever goes wrong, nothing is left of it.

        Raises:
            EngineInstallFailed: Something couldn't be had, or the result doesn't work.
            OSError: A file can't be written.
        """
        self._wipe()
        try:
            self.wheels.mkdir(parents=True)
            self.pip_tmp.mkdir()
            interpreter = self._fetch()
            self._install(interpreter)
            self._check()
            engine = InstalledEngine(
                name=self.recipe.name,
                version=self.recipe.full_version,
                path=self.directory,
                size=disk_use(self.directory),
                python_version=interpreter.version,
                installed_at=SystemClock().wall(),
            )
            shutil.rmtree(self.tmp)
            marker.write(engine)
        except BaseException:
            with suppress(OSError):
                self._wipe()
            raise
        return engine

    def _wipe(self) -> None:
        marker.remove(self.directory)
        if self.tmp.exists():
            shutil.rmtree(self.tmp)

    # --- the steps -------------------------------------------------------------------------------------

    def _fetch(self) -> Interpreter:
        """Download what is pinned; creates the environment and returns the interpreter it is built with."""
        recipe = self.recipe
        free = shutil.disk_usage(self.directory.parent).free
        room = f"{free / GIB:.1f} GiB free in {self.directory.parent}"
        self.progress.begin("disk space and Python", f"{recipe.disk / GIB:.1f} GiB needed, {room}")
        if free < recipe.disk:
            needed = f"{recipe.disk / GIB:.1f} GiB of disk"
            raise self._error(
                f"{needed} needed, {room}",
                what=needed,
                hint="free some, or set VLLM_MANAGER_ENGINES_DIR to a directory on a larger disk",
            )
        if missing := next((d for d in self.options.find_links if not d.is_dir()), None):
            raise self._error(f"{missing} is no directory", what=str(missing), hint="check --find-links")
        interpreters = usable(recipe.pythons, python=self.options.python)
        first = interpreters[0]
        if recipe.library is not None:
            self._check_library(first, recipe.library)
        if recipe.compiler is not None and shutil.which(recipe.compiler) is None:
            raise self._error(
                f"this build of vLLM compiles at its first request, and {recipe.compiler} isn't on PATH",
                what=recipe.compiler,
                hint=f"`apt-get install {recipe.compiler}` as root, then try again",
            )

        self.progress.begin(
            f"{recipe.distribution} {recipe.version}", f"creating an environment with Python {first.version}"
        )
        self._create_environment(first)
        chosen = self._fetch_vllm(interpreters)
        if recipe.torch_pin is not None:
            self.progress.begin(f"torch {recipe.torch}")
            chosen = self._fetch_torch(interpreters, recipe.torch_pin)
        if chosen is not first:
            self.progress.say(f"creating an environment with Python {chosen.version}")
            self._create_environment(chosen)
        return chosen

    def _check_library(self, interpreter: Interpreter, library: str) -> None:
        code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
        status, lines = self._run([interpreter.path, "-I", "-c", code, library])
        if status != 0:
            raise self._error(
                f"this build of vLLM needs the system library {library}, which can't be loaded",
                what=library,
                hint=f"`apt-get install {self.recipe.library_package}` as root, then try again",
                lines=lines,
            )

    def _create_environment(self, interpreter: Interpreter) -> None:
        status, lines = self._run([interpreter.path, "-I", "-m", "venv", "--clear", str(self.directory)])
        if status != 0:
            raise self._error(
                f"{interpreter.path} can't create an environment: {failure_of(lines).cause}",
                what="a Python environment",
                hint=f"`apt-get install python{interpreter.minor}-venv`, or name another with --python",
                lines=lines,
            )

    def _fetch_vllm(self, interpreters: tuple[Interpreter, ...]) -> Interpreter:
        pins = self.tmp / "vllm.txt"
        hashes = "".join(f" --hash=sha256:{digest}" for digest in self.recipe.sha256)
        pins.write_text(f"{self.recipe.wheel_pin}{hashes}\n")
        checked = ("--require-hashes",) if hashes else ()
        chosen, failure = _first(
            interpreters,
            lambda each: self._download("--python-version", each.minor, *checked, "-r", str(pins)),
        )
        if failure is not None:
            raise self._pip_error(failure, self.recipe.wheel_pin)
        return chosen

    def _fetch_torch(self, interpreters: tuple[Interpreter, ...], pin: str) -> Interpreter:
        """Download PyTorch: from the configured places for any interpreter, else from PyTorch's index."""
        chosen, failure = _first(
            interpreters, lambda each: self._download("--python-version", each.minor, pin)
        )
        if failure is not None and not self.options.offline:
            chosen, index = interpreters[0], self.recipe.torch_index
            failure = self._download("--python-version", chosen.minor, pin, index_url=index)
        if failure is not None:
            raise self._pip_error(failure, pin)
        return chosen

    def _install(self, interpreter: Interpreter) -> None:
        self.progress.begin("the packages that vLLM needs")
        recipe = self.recipe
        torch = [recipe.torch_pin] if recipe.torch_pin is not None else []
        pins = [recipe.wheel_pin, *torch]
        # Only from what was fetched and checked: the variable replaces configured directories.
        here = {"PIP_FIND_LINKS": self.wheels.as_uri()}
        if failure := self._pip("install", "--no-deps", "--no-index", *pins, extra=here):
            raise self._pip_error(failure, " and ".join(pins))
        site = self.directory / "lib" / f"python{interpreter.minor}" / "site-packages"
        [metadata] = site.glob(f"{recipe.distribution.replace('-', '_')}-*.dist-info/METADATA")
        requires = HeaderParser().parsestr(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist", [])

        wanted = self.tmp / "requirements.txt"
        wanted.write_text("\n".join([*torch, *recipe.requirements(requires)]) + "\n")
        arguments = ["--prefer-binary", "-r", str(wanted)]
        # Wheels in a directory were resolved by whoever filled it; there is nothing else to choose from.
        if recipe.constraints is not None and not self.options.offline:
            arguments += ["-c", str(recipe.constraints)]
        sources = self.options.environment(self.wheels)
        if failure := self._pip("install", *arguments, *self.options.arguments(), extra=sources):
            raise self._pip_error(failure, failure.missing or "the packages that vLLM needs")

        if recipe.distribution != "vllm":
            # Published under another name, it finds no metadata of its own, and every command of it fails.
            own = site / f"vllm-{recipe.full_version}.dist-info"
            own.mkdir()
            (own / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: vllm\nVersion: {recipe.full_version}\n", encoding="utf-8"
            )

    def _check(self) -> None:
        self.progress.begin("check", "importing it, asking for the version")
        status, lines = self._run([str(self.python), "-I", "-c", self.recipe.self_check])
        if status != 0 or not any(self.recipe.full_version in line for line in lines):
            cause = failure_of(lines).cause
            raise self._error(
                f"the finished engine doesn't work: {cause}",
                what=f"vLLM {self.recipe.version}",
                hint="pip's configuration leads to a PyTorch for the CPU (`pip config list`); "
                "`--index-url https://pypi.org/simple` uses that index alone"
                if "isn't built for CUDA" in cause
                else "its log says more; this machine or its system libraries may be too old for this build",
                lines=lines,
            )

    # --- running things --------------------------------------------------------------------------------

    def _download(self, *arguments: str, index_url: str | None = None) -> PipFailure | None:
        destination = ("--dest", str(self.wheels), "--no-deps", "--only-binary", ":all:")
        extra = self.options.environment(self.wheels, index_url)
        return self._pip("download", *destination, *self.options.arguments(), *arguments, extra=extra)

    def _pip(self, *arguments: str, extra: dict[str, str]) -> PipFailure | None:
        status, lines = self._run([str(self.python), "-I", "-u", "-m", "pip", *arguments], extra)
        return failure_of(lines) if status != 0 else None

    def _run(self, argv: list[str], extra: dict[str, str] | None = None) -> tuple[int, list[str]]:
        self.log.write(f"$ {' '.join(argv)}\n".encode())
        env = install_environment(os.environ, self.pip_tmp) | {"VLLM_NO_USAGE_STATS": "1"} | (extra or {})
        return run(
            argv,
            env=env,
            log=self.log,
            lock=self.lock,
            on_line=self._say,
            on_tick=lambda: self.progress.tick(disk_use(self.pip_tmp)),
        )

    def _say(self, line: str) -> None:
        if detail := detail_of(line):
            self.progress.say(detail)

    # --- errors ----------------------------------------------------------------------------------------

    def _error(
        self, cause: str, *, what: str, hint: str, lines: list[str] | tuple[str, ...] = ()
    ) -> EngineInstallFailed:
        return EngineInstallFailed(
            cause=cause,
            hint=hint,
            what=what,
            log_tail=tuple(lines[-10:]),
            log_path=self.log.name if lines else None,
        )

    def _pip_error(self, failure: PipFailure, what: str) -> EngineInstallFailed:
        return self._error(
            f"can't install {what}: {failure.cause}",
            what=what,
            hint=self._way_round(failure),
            lines=failure.tail,
        )

    def _way_round(self, failure: PipFailure) -> str:
        if failure.mismatch:
            return (
                f"a mirror or directory has another file under the name of {self.recipe.wheel_pin}; "
                "take the one from PyPI"
            )
        if "No space left" in failure.cause:
            return "free some space, or set VLLM_MANAGER_ENGINES_DIR to a directory on a larger disk"
        recipe = self.recipe
        if failure.missing == recipe.wheel_pin and not (failure.unreachable or recipe.sha256):
            return f"{recipe.distribution}'s versions are listed at https://pypi.org/project/{recipe.distribution}"
        torch = (
            f"  pip download -d DIR --no-deps --index-url {recipe.torch_index} {recipe.torch_pin}\n"
            if recipe.torch_pin
            else ""
        )
        return (
            f"`{install_command(recipe.version, recipe.device)} --find-links DIR` installs from a directory; "
            f"fill it on a machine ({platform.machine()}) with a network and the same version of Python:\n"
            f"{torch}  pip download -d DIR --find-links DIR {recipe.wheel_pin}"
        )


def _first(
    interpreters: tuple[Interpreter, ...], download: Callable[[Interpreter], PipFailure | None]
) -> tuple[Interpreter, PipFailure | None]:
    """The first interpreter for which there is something to download; else the first one, and why not."""
    first: PipFailure | None = None
    for interpreter in interpreters:
        failure = download(interpreter)
        if failure is None:
            return interpreter, None
        first = first or failure
        if failure.missing is None or failure.unreachable:
            break
    return interpreters[0], first
