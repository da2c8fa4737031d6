"""What lies in the engines directory: complete engines, and what installs left that didn't finish."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from vllm_manager.engines import marker
from vllm_manager.engines.layout import disk_use, layout, owner
from vllm_manager.engines.lock import exclusive, held_by
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.errors import EngineError, NotFound

_NAME = re.compile(r"(cpu|cuda)-[0-9].*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """An engine that isn't complete.

    Attributes:
        name: Such as ``cpu-0.32.0``.
        size: Bytes on disk of what is there.
        files: Whether there is more than a log.
        installer: The process that is installing it right now, 0 where it can't be told; None if none is.
        log: Of the install that failed or was interrupted, or None.
    """

    name: str
    size: int
    files: bool
    installer: int | None
    log: Path | None


def installed(engines_dir: Path) -> tuple[InstalledEngine, ...]:
    """The complete engines, by name."""
    found = (marker.read(entry) for entry in _entries(engines_dir) if _is_engine(entry))
    return tuple(sorted((engine for engine in found if engine), key=lambda engine: engine.name))


def unfinished(engines_dir: Path) -> tuple[Unfinished, ...]:
    """What is being installed, and what failed and interrupted installs left, by name."""
    complete = {engine.name for engine in installed(engines_dir)}
    names = {name for entry in _entries(engines_dir) if (name := _owner(entry))}
    found = []
    for name in sorted(names - complete):
        files = layout(name, engines_dir)
        installer = held_by(files.lock)
        parts = (files.directory, files.temporary, files.log)
        if installer is None and not any(part.exists() for part in parts):
            continue  # nothing but a lock file, which is never removed: see lock.exclusive
        found.append(
            Unfinished(
                name=name,
                size=sum(map(disk_use, parts)),
                files=files.directory.exists() or files.temporary.exists(),
                installer=installer,
                log=files.log if files.log.exists() else None,
            )
        )
    return tuple(found)


def remove(name: str, engines_dir: Path) -> None:
    """Delete an engine, or what an interrupted install left of it.

    Raises:
        NotFound: There is none of that name.
        EngineError: It is being installed right now, or can't be deleted.
    """
    known = {engine.name for engine in installed(engines_dir)}
    known |= {each.name for each in unfinished(engines_dir)}
    if name not in known:  # a name out of the directory's own listing can't lead elsewhere
        raise NotFound(
            cause=f"no engine {name!r} in {engines_dir}",
            hint="`vllm-manager engine list` shows them",
            name=name,
            known=tuple(sorted(known)),
        )
    files = layout(name, engines_dir)
    try:
        with exclusive(files.lock):
            marker.remove(files.directory)
            if files.temporary.exists():
                shutil.rmtree(files.temporary)
            files.log.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(cause=f"can't delete {error.filename or name}: {error.strerror}") from error


def _owner(entry: Path) -> str | None:
    name = owner(entry.name)
    return name if _NAME.fullmatch(name) and not entry.is_symlink() else None


def _is_engine(entry: Path) -> bool:
    return _owner(entry) == entry.name and entry.is_dir()


def _entries(engines_dir: Path) -> list[Path]:
    try:
        return list(engines_dir.iterdir())
    except OSError:
        return []
