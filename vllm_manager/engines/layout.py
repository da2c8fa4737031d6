"""Which files in the engines directory belong to one engine."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where an engine's files are, whether or not they exist.

    Attributes:
        directory: Its environment.
        temporary: What its install needs meanwhile; beside it, since /tmp may be RAM, and pip unpacks
            gigabytes.
        log: Of its last install.
        lock: Held by whoever installs or removes it; stays.
    """

    directory: Path
    temporary: Path
    log: Path
    lock: Path


def layout(name: str, engines_dir: Path) -> Layout:
    """Where the files of the engine of that name are."""
    root = engines_dir.absolute()
    return Layout(
        directory=root / name,
        temporary=root / f".tmp-{name}",
        log=root / f"{name}.install.log",
        lock=root / f"{name}.lock",
    )


def owner(file_name: str) -> str:
    """The name of the engine that a file belongs to."""
    return file_name.removeprefix(".tmp-").removesuffix(".install.log").removesuffix(".lock")


def disk_use(path: Path) -> int:
    """Bytes on disk of a file, or of the files below a directory; 0 where there is nothing."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):  # a running pip deletes what it is done with
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
    return total
