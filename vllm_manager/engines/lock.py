"""One install or removal of an engine at a time, across processes."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_manager.errors import EngineError

_POLL_SECONDS = 0.25


@contextmanager
def exclusive(path: Path, *, waiting: Callable[[int | None], None] | None = None) -> Iterator[int]:
    """Hold the lock file; yields its descriptor.

    The file stays when the lock is released: unlinking it would let two holders in. A child that inherits
    the descriptor keeps the lock until it ends too.

    Args:
        path: The lock file, created where needed.
        waiting: Called with the holder's pid again and again while another process holds the lock.

    Raises:
        EngineError: Another process holds it, and ``waiting`` is None.
        OSError: The file can't be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while not _try(fd):
            holder = _holder(fd)
            if waiting is None:
                raise EngineError(
                    cause=f"{path.stem} is being installed or removed by another process"
                    + (f" (pid {holder})" if holder else ""),
                    hint="wait until that has ended",
                )
            waiting(holder)
            time.sleep(_POLL_SECONDS)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield fd
    finally:
        os.close(fd)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None


def held_by(path: Path) -> int | None:
    """The process that holds a lock file, 0 where it doesn't say who it is; None where nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, so that two who look don't see each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(fd) or 0
    finally:
        os.close(fd)
    return None
