"""Commands on a pseudo-terminal."""

import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import ioctl
from typing import Any

from box import Box


class Terminal:
    """A command on a terminal of 80 columns, and what it has written there."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._text = b""

    @property
    def text(self) -> str:
        """Everything so far."""
        while select.select([self._descriptor], [], [], 0)[0]:
            try:
                more = os.read(self._descriptor, 65536)
            except OSError:  # its other end is closed
                break
            if not more:
                break
            self._text += more
        return self._text.decode()

    @property
    def plain(self) -> str:
        """The same without escape codes and carriage returns."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.text)

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.type("\x03")


@contextmanager
def terminal(box: Box, *arguments: Any, argv: Sequence[str] = (), **env: str) -> Iterator[Terminal]:
    """Run ``vllm-manager`` (or ``argv``) on a terminal; killed at the end of the block at the latest."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        argv or box.command(*arguments),
        env=box.env | {"TERM": "xterm-256color"} | env,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=box.root,
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait(10)
        os.close(ours)
