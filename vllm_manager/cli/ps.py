"""The command ps, also as ls and status."""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence

import click

from vllm_manager.cli.connect import awaiting, control, explain_absence, offline_statuses, unknown_name
from vllm_manager.cli.options import JSON, NAMES
from vllm_manager.cli.output import (
    ago,
    interactive,
    nobody_reads,
    note,
    phase_text,
    print_error,
    print_json,
    table_lines,
)
from vllm_manager.errors import ManagerError, NoSupervisor, from_payload
from vllm_manager.types import Phase, Status

REDRAW = 1.0
"""Seconds between two drawings on a terminal, and between two looks where no supervisor tells of changes."""


@click.command()
@NAMES
@click.option("-w", "--watch", is_flag=True, help="Go on showing them as they change, until Ctrl-C.")
@JSON
def ps(names: tuple[str, ...], watch: bool, as_json: bool) -> None:
    """List deployments: phase, address, GPUs, how long. `ls` and `status` are the same.

    With -w a terminal is redrawn; elsewhere each change prints a new table, or a new line with --json.

    \b
    Examples:
      vllm-manager ps
      vllm-manager ps -w
      vllm-manager status tiny
      vllm-manager ps --json | jq '.[].endpoint.phase'
    """
    if watch:
        _watch(names, as_json=as_json)
        return
    missing: NoSupervisor | None = None
    try:
        statuses = control().statuses()
    except NoSupervisor as error:
        statuses = offline_statuses()
        missing = error
    statuses = _named(names, statuses)
    if as_json:
        print_json(statuses)
    else:
        for line in _table(statuses):
            click.echo(line)
        for line in _problems(statuses):
            note(line)
    if missing is not None:
        idle = set(awaiting())
        for status in statuses:
            if status.name in idle:
                start = f"`vllm-manager start {status.name}` starts both"
                note(f"{status.name} is to run, but no supervisor does: {start}")
        reason = explain_absence(None, missing)
        if reason is not missing:
            print_error(reason)
            raise click.exceptions.Exit(reason.exit_code)


def _named(names: Sequence[str], statuses: Sequence[Status]) -> list[Status]:
    known = {status.name: status for status in statuses}
    for name in names:
        if name not in known:
            raise unknown_name(name, known)
    return [known[name] for name in dict.fromkeys(names or known)]


def _table(statuses: Sequence[Status]) -> list[str]:
    headings = ["NAME", "PHASE", "URL", "GPUS", "PID", "SINCE", "MODEL"]
    return table_lines(headings, [_row(status) for status in statuses])


def _row(status: Status) -> list[str]:
    endpoint = status.endpoint
    return [
        status.name,
        phase_text(status),
        endpoint.base_url or "-",
        ",".join(map(str, status.gpus)) or "cpu",
        str(status.pid or "-"),
        ago(status.phase_since) if status.phase_since else "-",
        endpoint.model,
    ]


def _problems(statuses: Sequence[Status]) -> list[str]:
    lines = []
    for status in statuses:
        if status.error and status.phase is not Phase.READY:
            error = from_payload(status.error)
            lines.append(f"{status.name}: {error.cause}")
            if error.hint:
                lines.append(f"  hint: {error.hint}")
    return lines


# --- watching ----------------------------------------------------------------------------------------


def _watch(names: Sequence[str], *, as_json: bool) -> None:
    news: queue.SimpleQueue[list[Status] | ManagerError] = queue.SimpleQueue()
    threading.Thread(target=_follow, args=(news.put,), daemon=True).start()
    redraws = interactive(sys.stdout) and not as_json
    show = _Screen().show if redraws else _Changes(as_json=as_json).show
    found = _next(news)
    _named(names, found)  # a misspelt name is told, one that goes away later isn't
    while not nobody_reads():
        show([status for status in found if status.name in names or not names])
        try:
            found = _next(news, REDRAW)
        except queue.Empty:
            continue


def _next(
    news: "queue.SimpleQueue[list[Status] | ManagerError]", timeout: float | None = None
) -> list[Status]:
    found = news.get(timeout=timeout)
    while not news.empty():  # only the newest is shown
        found = news.get()
    if isinstance(found, ManagerError):
        raise found
    return found


def _follow(put: Callable[[list[Status] | ManagerError], None]) -> None:
    """Hand on the deployments at every change, with a supervisor and without one, for ever."""
    seen: list[Status] | None = None
    try:
        while True:
            try:
                for statuses in control().watch_all():
                    put(statuses)
            except NoSupervisor:
                statuses = offline_statuses()
                if statuses != seen:
                    seen = statuses
                    put(statuses)
            time.sleep(REDRAW)
    except ManagerError as error:
        put(error)


class _Screen:
    """For terminals: the table in place of the one before, below whatever the terminal shows."""

    def __init__(self) -> None:
        self._drawn = 0

    def show(self, statuses: list[Status]) -> None:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        lines = [*_table(statuses), *_problems(statuses)][: rows - 1]
        # A line that wraps would take two rows, and the next drawing would leave one of them.
        shown = [
            line if len(click.unstyle(line)) < columns else click.unstyle(line)[: columns - 1]
            for line in lines
        ]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        sys.stdout.write(f"{up}\r\x1b[J" + "".join(f"{line}\n" for line in shown))
        sys.stdout.flush()
        self._drawn = len(shown)


class _Changes:
    """For pipes and files: a table, or a JSON line, at every change of more than times."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown: object = None

    def show(self, statuses: list[Status]) -> None:
        key = [(s.name, s.phase, s.endpoint.root_url, s.gpus, s.pid, _step(s), s.error) for s in statuses]
        if key == self._shown:
            return
        if self._as_json:
            print_json(statuses, indent=None)
        else:
            if self._shown is not None:
                click.echo()
            for line in [*_table(statuses), *_problems(statuses)]:
                click.echo(line)
        sys.stdout.flush()
        self._shown = key


def _step(status: Status) -> str | None:
    # Only which step, since its progress may change many times a second.
    return status.steps[-1].name if status.steps else "download" if status.download else None
