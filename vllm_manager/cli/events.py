"""The command events."""

import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from vllm_manager.cli.connect import unknown_name
from vllm_manager.cli.options import JSON, NAMES
from vllm_manager.cli.output import COLOURS, nobody_reads, style
from vllm_manager.logs import LogTail
from vllm_manager.paths import state_dir
from vllm_manager.store import deployment_names
from vllm_manager.types import Phase

POLL = 0.2
SHOWN = 50


@click.command()
@NAMES
@click.option("-f", "--follow", is_flag=True, help="Go on printing what happens, until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=SHOWN, show_default=True, help="The last N."
)
@JSON
def events(names: tuple[str, ...], follow: bool, lines: int, as_json: bool) -> None:
    """Print what happened to deployments, all or those of the given names: when, which, what, why.

    With --json a line is an object. It needs no supervisor.

    \b
    Examples:
      vllm-manager events -n 20
      vllm-manager events -f tiny
    """
    tail = LogTail(state_dir() / "events.jsonl")
    show = _print_json if as_json else _Table().show
    known = set(deployment_names(state_dir()))
    last: deque[Mapping[str, Any]] = deque(maxlen=lines)
    for event in _read(tail):
        known.add(str(event.get("deployment")))
        if _wanted(event, names):
            last.append(event)
    for name in names:
        if name not in known:
            raise unknown_name(name, known)
    for event in last:
        show(event)
    while follow and not nobody_reads():
        sys.stdout.flush()
        time.sleep(POLL)
        for event in _read(tail):
            if _wanted(event, names):
                show(event)


def _read(tail: LogTail) -> Iterator[Mapping[str, Any]]:
    while lines := tail.lines():
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # cut off by a full disk
                continue
            if isinstance(event, dict):
                yield event


def _wanted(event: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return not names or event.get("deployment") in names


def _print_json(event: Mapping[str, Any]) -> None:
    click.echo(json.dumps(event))


class _Table:
    """Lines whose columns grow with what is in them."""

    def __init__(self) -> None:
        self._widths = [19, 8, 12, 8]

    def show(self, event: Mapping[str, Any]) -> None:
        at = datetime.fromtimestamp(float(event.get("at", 0.0))).astimezone()
        phase = str(event.get("phase", "?"))
        columns = [
            f"{at:%Y-%m-%d %H:%M:%S}",
            str(event.get("deployment") or "?"),
            str(event.get("instance") or "-"),
            phase,
        ]
        self._widths = [max(width, len(text)) for width, text in zip(self._widths, columns, strict=True)]
        *cells, last = [text.ljust(width) for text, width in zip(columns, self._widths, strict=True)]
        cause = event.get("cause")
        coloured = style(
            last if cause else phase, fg=COLOURS.get(Phase(phase)) if phase in list(Phase) else None
        )
        click.echo("  ".join([*cells, coloured, *([cause] if cause else [])]))
