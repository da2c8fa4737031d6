"""What an engine's `vllm serve` understands, read from that engine once and kept beside the engines."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vllm_manager.codec import decode, encode
from vllm_manager.engines import parser_sources
from vllm_manager.engines.environments import interpreter_behind
from vllm_manager.engines.known_values import known_values
from vllm_manager.engines.pip import clean_environment
from vllm_manager.types import Engine, EngineFlags

TIMEOUT_SECONDS = 60.0
_SCRIPT = Path(__file__).with_name("flags_script.py")
_FORMAT = 2  # of the cached files; a new one when what is read, or how, changes

_reading = threading.Lock()
_unreadable: dict[tuple[Any, ...], str] = {}


class _Unreadable(Exception):
    """Why the flags can't be read, in words."""


def engine_flags(
    engine: Engine,
    engines_dir: Path,
    *,
    report: Callable[[str], None] | None = None,
    only_cached: bool = False,
) -> EngineFlags | None:
    """The flags of an engine, or None where they can't be read; never raises.

    Read in the engine's own interpreter, which takes about 10 s, then from a file until that environment
    changes. A failure is remembered as long as this process lives and the engine stays as it is.

    Args:
        engine: The vLLM.
        engines_dir: Its ``.flags`` directory holds the files.
        report: Gets what happens, a line each; the last line before a None says why.
        only_cached: Don't run anything: None where nothing was kept.
    """
    say = report or (lambda _: None)
    python = interpreter_behind(Path(engine.executable))
    if python is None:
        say(f"the interpreter of {engine.executable} can't be found")
        return None
    path = _cache_path(engines_dir, python)
    if (cached := _cached(path)) is not None:
        return cached
    if only_cached:
        say(f"the flags of {engine.name} haven't been read yet")
        return None
    with _reading:  # a second thread finds what the first one kept
        state = (str(python), *_state(Path(engine.executable)), *_state(python.resolve()))
        if (cached := _cached(path)) is not None:
            return cached
        if state in _unreadable:
            say(_unreadable[state])
            return None
        say(f"reading the flags of {engine.name} (once, about 10 s)")
        try:
            flags, paths = _read(python)
        except _Unreadable as error:
            _unreadable[state] = f"the flags of {engine.name} can't be read: {error}"
            say(_unreadable[state])
            return None
        try:
            _keep(path, flags, paths)
        except OSError as error:
            say(f"the flags of {engine.name} can't be kept in {path.parent}: {error.strerror}")
        return flags


# --- reading -------------------------------------------------------------------------------------------


def _read(python: Path) -> tuple[EngineFlags, list[str]]:
    """The flags, and the paths whose change makes them outdated."""
    # vLLM's variables change defaults, and a malformed one stops it; the flags stay the same.
    env = {k: v for k, v in clean_environment(os.environ).items() if not k.startswith("VLLM_")}
    env |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    output = _run([str(python), "-c", _SCRIPT.read_text(encoding="utf-8")], env)
    try:
        answer = json.loads(output)
        package, paths = Path(answer["package"]), [str(path) for path in answer["witnesses"]]
        tools = parser_sources.tool_parsers(package)
        reasoning = parser_sources.reasoning_parsers(package)
        flags = decode(
            EngineFlags,
            {
                "version": answer["version"],
                "flags": answer["flags"],
                "tool_parsers": list(tools.names) if tools else None,
                "reasoning_parsers": list(reasoning.names) if reasoning else None,
                "tool_parser_tokens": encode(tools.tokens) if tools else {},
                "reasoning_parser_tokens": encode(reasoning.tokens) if reasoning else {},
                "known_values": encode(known_values(package)),
            },
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Unreadable(f"{python} gave an answer that makes no sense") from None
    if not flags.flags:
        raise _Unreadable(f"{python} named none")
    return flags, paths


def _run(argv: list[str], env: Mapping[str, str]) -> str:
    """What it printed; it and what it started are gone afterwards."""
    try:
        process = subprocess.Popen(
            argv,
            env=env,
            cwd="/",  # `-c` looks for packages in the working directory
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise _Unreadable(f"{argv[0]}: {error.strerror}") from None
    with process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise _Unreadable(f"no answer within {TIMEOUT_SECONDS:.0f} s") from None
        finally:
            if process.returncode is None:  # not reaped, so the pid is still its own
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        lines = errors.strip().splitlines()
        raise _Unreadable(lines[-1].strip() if lines else f"exit status {process.returncode}")
    return output


# --- keeping -------------------------------------------------------------------------------------------


def _cache_path(engines_dir: Path, python: Path) -> Path:
    digest = hashlib.sha256(str(python.absolute()).encode(errors="surrogateescape")).hexdigest()[:16]
    return engines_dir / ".flags" / f"{digest}.json"


def _cached(path: Path) -> EngineFlags | None:
    try:
        kept = json.loads(path.read_bytes())
        if kept["format"] != _FORMAT or any(
            _state(Path(p)) != tuple(s) for p, s in kept["read_from"].items()
        ):
            return None
        return decode(EngineFlags, kept["flags"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _keep(path: Path, flags: EngineFlags, paths: list[str]) -> None:
    content = {
        "format": _FORMAT,
        "read_from": {p: _state(Path(p)) for p in paths},
        "flags": encode(flags),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is written, or when a directory gains, loses or renames an entry."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):  # not its time: a first import adds __pycache__
            names = sorted(name for name in os.listdir(path) if name != "__pycache__")
            return (zlib.crc32("\n".join(names).encode(errors="surrogateescape")), len(names))
    except OSError:
        return (0, 0)
    return (info.st_mtime_ns, info.st_size)
