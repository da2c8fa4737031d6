"""Running pip in an engine's environment: its output to a log, its failure as one line."""

import os
import re
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

TICK_SECONDS = 1.0

# pip's options may come from the environment (PIP_<OPTION>). Those that say where packages come from and
# how they are reached are the user's; the others (PIP_TARGET, PIP_USER, PIP_CONSTRAINT …) would put
# something else, or somewhere else, than what was asked for.
_PIP_VARIABLES = frozenset(
    {
        "PIP_CACHE_DIR",
        "PIP_CERT",
        "PIP_CLIENT_CERT",
        "PIP_CONFIG_FILE",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "PIP_INDEX_URL",
        "PIP_KEYRING_PROVIDER",
        "PIP_NO_CACHE_DIR",
        "PIP_NO_INDEX",
        "PIP_PROXY",
        "PIP_RETRIES",
        "PIP_TIMEOUT",
        "PIP_TRUSTED_HOST",
    }
)
_FIXED = {
    "LC_ALL": "C.UTF-8",  # errors are recognised by their words
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_COLOR": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_USER": "0",
}
# pip's own are 5 and 15 s, with growing pauses between: too patient where there is no network.
_PATIENCE = {"PIP_RETRIES": "2", "PIP_DEFAULT_TIMEOUT": "15"}

# A child outlives a killed parent; this one must not go on writing into a directory that the next install
# wipes. The death signal survives the exec (prctl(2), PR_SET_PDEATHSIG), which `preexec_fn` would need a
# fork in Python for.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the installer is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_CONNECTION = re.compile(
    r"connection broken by '(?P<error>.*)': \S+$|(?P<timeout>Read timed out|Connection timed out)"
)
_MISSING = re.compile(r"^ERROR: No matching distribution found for (?P<requirement>.+)$")
_INDEXES = re.compile(r"^Looking in indexes: (?P<first>[^,\s]+)")
_STEPS = re.compile(r"^(Collecting|Downloading|Processing|Using cached|Building|Preparing|Obtaining) ")
_INSTALLING = re.compile(r"^Installing collected packages: (?P<names>.+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipFailure:
    """Why pip ended with an error.

    Attributes:
        cause: One line.
        missing: The requirement that no place has, or None.
        unreachable: Whether an index didn't answer.
        mismatch: Whether a file isn't the pinned one.
        tail: The last lines of its output.
    """

    cause: str
    missing: str | None = None
    unreachable: bool = False
    mismatch: bool = False
    tail: tuple[str, ...] = ()


def clean_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would lead another Python astray: ``PYTHON*``, ``VIRTUAL_ENV``."""
    return {
        name: value
        for name, value in base.items()
        if not name.startswith("PYTHON") and name not in ("VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    }


def install_environment(base: Mapping[str, str], tmp: Path) -> dict[str, str]:
    """The environment of an install: the user's indexes, proxies and certificates, no other options."""
    kept = {
        name: value
        for name, value in clean_environment(base).items()
        if not name.startswith(("PIP_", "VLLM_")) or name in _PIP_VARIABLES
    }
    patience = {} if "PIP_TIMEOUT" in kept else _PATIENCE
    return patience | kept | _FIXED | {"TMPDIR": str(tmp)}


def detail_of(line: str) -> str | None:
    """What a line of pip's output says about its progress, or None."""
    line = line.strip().partition(" (from ")[0]
    if match := _INSTALLING.match(line):
        return f"Installing {match['names'].count(',') + 1} packages"
    return line if _STEPS.match(line) else None


def failure_of(lines: Sequence[str]) -> PipFailure:
    """Why pip failed, from all its output."""
    tail = tuple(line for line in lines if line.strip())[-10:]
    missing = next((m["requirement"] for line in lines if (m := _MISSING.match(line))), None)
    broken = next((m for line in reversed(lines) if (m := _CONNECTION.search(line))), None)
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        sums = [line.strip() for line in lines if re.match(r"\s+(Expected|Got)\s", line)]
        return PipFailure(
            cause="the file that was found isn't the pinned one: "
            + ", ".join(" ".join(s.split()) for s in sums),
            mismatch=True,
            tail=tail,
        )
    nothing_answered = any("(from versions: none)" in line for line in lines)
    if broken and (nothing_answered or broken["timeout"]):
        index = next((m["first"] for line in lines if (m := _INDEXES.match(line))), "https://pypi.org/simple")
        return PipFailure(
            cause=f"{index} can't be reached: {_plain(broken['error'] or broken['timeout'])}",
            missing=missing,
            unreachable=True,
            tail=tail,
        )
    if missing:
        return PipFailure(cause=f"no package index or directory has {missing}", missing=missing, tail=tail)
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    cause = errors[-1] if errors and errors[-1] != "Exception:" else (tail[-1] if tail else "no output")
    return PipFailure(cause=cause.strip(), tail=tail)


def _plain(error: str) -> str:
    # urllib3's errors quote an object, then say what happened: NewConnectionError('<… at 0x7f>: Failed to
    # establish a new connection: [Errno 111] Connection refused')
    words = re.sub(r"^\w+\(|<[^>]*>: |[\"')]+$|^[\"']", "", error)
    return re.sub(r"^[\"']?(Failed to establish a new connection: )?(\[Errno -?\d+\] )?", "", words).strip()


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: BinaryIO,
    lock: int,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> tuple[int, list[str]]:
    """Run a Python program to its end, in a process group of its own; it dies with this process.

    Args:
        argv: The command; its first element is the absolute path of a Python.
        env: Its whole environment.
        log: Gets all its output.
        lock: A descriptor that it keeps open, so that a lock on it lasts as long as the program.
        on_line: Called with each line of output.
        on_tick: Called every second in between.

    Returns:
        Its exit status and its output.
    """
    lines: list[str] = []

    def take(line: bytes) -> None:
        lines.append(line.decode(errors="replace").rstrip())
        on_line(lines[-1])

    with subprocess.Popen(
        [argv[0], "-I", "-c", _DIE_WITH_PARENT, str(os.getpid()), *argv],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(lock,),
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - stdout=PIPE
            rest = b""
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while True:
                    if not selector.select(TICK_SECONDS):
                        on_tick()
                        continue
                    chunk = os.read(process.stdout.fileno(), 65536)
                    log.write(chunk)
                    log.flush()
                    *complete, rest = (rest + chunk).split(b"\n")
                    for line in complete:
                        take(line)
                    if not chunk:
                        break
            if rest:
                take(rest)
            return process.wait(), lines
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
