"""How results and errors look: plain text that needs no colour, colour on a terminal, JSON on request."""

import json
import os
import select
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import click

from vllm_manager.codec import encode
from vllm_manager.errors import ManagerError, ManifestError, ManifestErrors, PlacementError, StartFailed
from vllm_manager.types import Download, Phase, Status

COLOURS = {
    Phase.READY: "green",
    Phase.FAILED: "red",
    Phase.BACKOFF: "yellow",
    Phase.STOPPED: "bright_black",
}


def style(text: str, **how: Any) -> str:
    """The text as click styles it, unless $NO_COLOR is set (no-color.org); off a terminal click drops it."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **how)


def print_error(error: ManagerError) -> None:
    """An error as ``error:`` and ``hint:`` lines on stderr, with what belongs to its kind."""
    for line in error_lines(error):
        click.echo(line, err=True)


def error_lines(error: ManagerError) -> list[str]:
    """What ``print_error`` prints."""
    if isinstance(error, ManifestErrors):
        return [line for each in error.errors for line in error_lines(each)]
    if isinstance(error, ManifestError) and error.path:
        from vllm_manager.manifest.report import render

        return f"{_label('error')} {render(error)}".splitlines()
    lines = [f"{_label('error')} {error.cause}"]
    if isinstance(error, PlacementError):
        lines += [f"  {reason}" for reason in error.reasons]
    if isinstance(error, StartFailed):
        lines += _start_failure_lines(error)
    if error.hint:
        lines.append(f"{_label('hint')} {error.hint}")
    return lines


def _start_failure_lines(error: StartFailed) -> list[str]:
    lines = []
    if error.log_tail:
        lines += ["last lines of its log:", *(f"  | {line}" for line in error.log_tail)]
    if error.exception and error.exception not in error.cause:
        lines.append(f"exception: {error.exception}")
    if error.log_path:
        lines.append(f"whole log: {error.log_path}")
    return lines


def _label(word: str) -> str:
    return style(f"{word}:", fg="red" if word == "error" else "cyan", bold=True)


def note(text: str) -> None:
    """A remark on stderr."""
    click.echo(text, err=True)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Data as JSON on stdout."""
    click.echo(json.dumps(encode(value), indent=indent))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on stdout."""
    for line in table_lines(headings, rows):
        click.echo(line)


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    widths = [max(len(click.unstyle(row[i])) for row in (headings, *rows)) for i in range(len(headings))]
    return [
        "  ".join(
            cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in (headings, *rows)
    ]


def fields(pairs: Iterable[tuple[str, str]], indent: str = "  ", width: int = 12) -> None:
    """Names and values below each other on stdout; an empty value is left out."""
    for name, value in pairs:
        if value:
            click.echo(f"{indent}{name:<{width}}  {value}")


def phase_text(status: Status) -> str:
    """The phase with what it is at, coloured on a terminal."""
    text = str(status.phase)
    if status.download is not None:
        text += f" ({download_text(status.download)})"
    elif status.endpoint.step:
        text += f" ({status.endpoint.step})"
    if status.retry_in is not None:
        text += f" (again in {duration(status.retry_in)})"
    return style(text, fg=COLOURS.get(status.phase))


def download_text(download: Download) -> str:
    """How far a download is, as in ``download 62 % of 3.1 GiB, 45 MB/s``."""
    size = f"{gibibytes(download.total)} GiB"
    if download.total < 1 << 27:
        size = f"{download.total / (1 << 20):.1f} MiB"
    share = download.done * 100 // max(1, download.total)
    return f"download {share} % of {size}, {download.speed / 1e6:.0f} MB/s"


def duration(seconds: float) -> str:
    """Seconds for people: ``0.8 s``, ``42 s``, ``3m10s``, ``2h05m``, ``3d04h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, big, small in ((60, "m", "s"), (3600, "h", "m"), (86400, "d", "h")):
        if whole < size * (60 if size < 3600 else 24) or size == 86400:
            return f"{whole // size}{big}{whole % size // (size // (60 if size < 86400 else 24)):02d}{small}"
    raise AssertionError  # the last size takes everything


def ago(wall: float) -> str:
    """How long ago that was."""
    return duration(max(0.0, time.time() - wall))  # noqa: TID251 - shown to people


def gibibytes(amount: int) -> str:
    """Bytes as GiB."""
    return f"{amount / (1 << 30):.1f}"


def interactive(stream: TextIO | None = None) -> bool:
    """Whether stderr, or that stream, is a terminal on which lines may be redrawn."""
    plain = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR")
    return (stream or sys.stderr).isatty() and not plain


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone: that shows at once, and not only at the next line."""
    poll = select.poll()
    poll.register(sys.stdout, select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))
