"""Shows starts while they happen: a live block on a terminal, a line per step elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from vllm_manager.cli.output import download_text, duration, interactive, note
from vllm_manager.types import Download, Phase, Status, Step

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def step_durations(steps: tuple[Step, ...], end: float) -> list[tuple[Step, float]]:
    """Each step with its length in seconds; a step ends where the next begins, the last at ``end``."""
    ends = [*(step.began for step in steps[1:]), end]
    return [(step, max(0.0, until - step.began)) for step, until in zip(steps, ends, strict=False)]


class StartView(Protocol):
    """What shows starts."""

    def show(self, status: Status) -> None:
        """Show where it is now."""
        ...

    def end(self, name: str, lines: Sequence[str]) -> None:
        """Show what went wrong with a deployment, and no more of its start."""
        ...


DOWNLOAD_EVERY = 15.0
"""Seconds between two lines about one download, where lines can't be redrawn."""


class _Lines:
    """For pipes and files: a line whenever a step begins."""

    def __init__(self) -> None:
        self._shown: set[tuple[str | None, str]] = set()
        self._started: set[str | None] = set()
        self._downloads: dict[str, float] = {}

    def show(self, status: Status) -> None:
        if status.phase is Phase.READY and status.instance not in self._started:
            return  # it was ready before we looked: there was no start to show
        key = (status.instance, status.phase)
        if status.phase in (Phase.PENDING, Phase.STOPPING, Phase.SWEEPING) and key not in self._shown:
            self._shown.add(key)
            note(f"{status.name}: {status.phase}")
        if status.download is not None:
            self._show_download(status.name, status.download)
        if status.elapsed is None and status.instance not in self._started:
            return  # those steps are of an instance that has ended
        self._started.add(status.instance)
        for step in status.steps:
            if (status.instance, step.name) not in self._shown:
                self._shown.add((status.instance, step.name))
                note(f"{status.name}: {step.name} (after {duration(step.began)})")

    def end(self, name: str, lines: Sequence[str]) -> None:
        for line in lines:
            note(line)

    def _show_download(self, name: str, download: Download) -> None:
        shown_at = self._downloads.get(name)
        if shown_at is None or time.monotonic() - shown_at >= DOWNLOAD_EVERY:
            self._downloads[name] = time.monotonic()
            note(f"{name}: {download_text(download)}")


class _Live:
    """For terminals: a block for each, redrawn with running clocks and a bar where progress is known."""

    def __init__(self, console: "Console") -> None:
        from rich.spinner import Spinner

        self._console = console
        self._spinner = Spinner("dots")
        self._seen: dict[str, tuple[Status, float]] = {}

    def show(self, status: Status) -> None:
        self._seen[status.name] = (status, time.monotonic())

    def end(self, name: str, lines: Sequence[str]) -> None:
        from rich.text import Text

        self._seen.pop(name, None)
        for line in lines:  # above what is redrawn
            self._console.print(Text.from_ansi(line), soft_wrap=True)

    def __rich__(self) -> "RenderableType":
        from rich.console import Group

        # A copy, since the drawing thread runs beside the one that brings news.
        return Group(*(self._block(status, at) for status, at in list(self._seen.values())))

    def _block(self, status: Status, at: float) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        block = Table.grid(padding=(0, 1))
        heading = Text(f"{status.name}: {status.phase}", style="bold")
        if status.phase is Phase.READY:
            return heading
        whole = Group(heading, block)
        if status.download is not None:
            share = status.download.done / max(1, status.download.total)
            block.add_row(self._spinner, self._bar(share, download_text(status.download)))
            return whole
        if status.elapsed is None or not status.steps:
            block.add_row(self._spinner)
            return whole
        elapsed = status.elapsed + time.monotonic() - at
        *done, (current, seconds) = step_durations(status.steps, elapsed)
        for step, length in done:
            block.add_row(Text("✓", style="green"), step.name, Text(duration(length), style="dim"))
        bar = self._bar(current.progress, current.detail or "")
        block.add_row(self._spinner, current.name, duration(seconds), bar)
        return whole

    @staticmethod
    def _bar(share: float | None, text: str) -> "RenderableType":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        line = Table.grid(padding=(0, 1))
        bar = "" if share is None else ProgressBar(total=1.0, completed=share, width=24)
        line.add_row(bar, text)
        return line


@contextmanager
def start_view() -> Iterator[StartView]:
    """A view of starts on stderr, for as long as the block lasts; on a terminal it then disappears."""
    if not interactive():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stderr)
    view = _Live(console)
    with Live(view, console=console, refresh_per_second=8, transient=True):
        yield view
