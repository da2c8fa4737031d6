"""How results and errors look: plain text that needs no colour, colour on a terminal, JSON on request."""

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from vllm_manager.codec import encode
from vllm_manager.errors import ManagerError, ManifestError, ManifestErrors, PlacementError, StartFailed
from vllm_manager.types import Phase, Status

COLOURS = {
    Phase.READY: "green",
    Phase.FAILED: "red",
    Phase.BACKOFF: "yellow",
    Phase.STOPPED: "bright_black",
}


def print_error(error: ManagerError) -> None:
    """An error as ``error:`` and ``hint:`` lines on stderr, with what belongs to its kind."""
    if isinstance(error, ManifestErrors):
        for each in error.errors:
            print_error(each)
        return
    if isinstance(error, ManifestError) and error.path:
        from vllm_manager.manifest.report import render

        text = render(error)
        click.echo(f"{_label('error')} {text}", err=True)
        return
    click.echo(f"{_label('error')} {error.cause}", err=True)
    if isinstance(error, PlacementError):
        for reason in error.reasons:
            click.echo(f"  {reason}", err=True)
    if isinstance(error, StartFailed):
        _print_start_failure(error)
    if error.hint:
        click.echo(f"{_label('hint')} {error.hint}", err=True)


def _print_start_failure(error: StartFailed) -> None:
    if error.log_tail:
        click.echo("last lines of its log:", err=True)
        for line in error.log_tail:
            click.echo(f"  | {line}", err=True)
    if error.exception and error.exception not in error.cause:
        click.echo(f"exception: {error.exception}", err=True)
    if error.log_path:
        click.echo(f"whole log: {error.log_path}", err=True)


def _label(word: str) -> str:
    return click.style(f"{word}:", fg="red" if word == "error" else "cyan", bold=True)


def note(text: str) -> None:
    """A remark on stderr."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    """Data as JSON on stdout."""
    click.echo(json.dumps(encode(value), indent=2))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on stdout."""
    widths = [max(len(click.unstyle(row[i])) for row in (headings, *rows)) for i in range(len(headings))]
    for row in (headings, *rows):
        cells = [
            cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def phase_text(status: Status) -> str:
    """The phase with what it is at, coloured on a terminal."""
    text = str(status.phase)
    if status.endpoint.step:
        text += f" ({status.endpoint.step})"
    if status.retry_in is not None:
        text += f" (again in {duration(status.retry_in)})"
    return click.style(text, fg=COLOURS.get(status.phase))


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


def interactive() -> bool:
    """Whether stderr is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
