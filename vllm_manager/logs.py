"""Log files of instances: reading what is new, the last lines, following."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20
LINE_LIMIT = 64 << 10


class LogTail:
    """Reads a growing log from its beginning, whole lines at a time."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._offset = 0
        self._rest = b""

    @property
    def size(self) -> int:
        """Bytes read so far; grows exactly when the log did."""
        return self._offset

    def lines(self) -> list[str]:
        """The lines that were completed since the last call; at most about 1 MiB of them at once."""
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # truncated by a rotation
                    self._offset, self._rest = 0, b""
                file.seek(self._offset)
                data = file.read(CHUNK)
        except OSError:
            return []
        self._offset += len(data)
        # tqdm rewrites its line with carriage returns; each state is a line to us.
        *complete, self._rest = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) > LINE_LIMIT:
            complete, self._rest = [*complete, self._rest], b""
        return [line.decode(errors="replace") for line in complete]


def last_lines(path: str | Path, count: int) -> list[str]:
    """The last lines of a file, without reading more of it than needed; empty where there is none."""
    try:
        with Path(path).open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            data = b""
            while position > 0 and data.count(b"\n") <= count:
                step = min(CHUNK, position)
                position -= step
                file.seek(position)
                data = file.read(step) + data
    except OSError:
        return []
    return list(deque((line.decode(errors="replace") for line in data.splitlines()), maxlen=count))


def read_all(path: str | Path) -> Iterator[str]:
    """Every line of a file."""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            yield line.rstrip("\n")
