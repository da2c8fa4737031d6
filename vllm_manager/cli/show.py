"""Commands that only show: logs, gpus, version."""

import os
import sys
import time
from collections.abc import Iterator

import click

from vllm_manager import __version__
from vllm_manager.cli.connect import all_statuses, control, unknown_name
from vllm_manager.cli.options import JSON, NAME
from vllm_manager.cli.output import gibibytes, nobody_reads, note, print_json, table
from vllm_manager.errors import ManagerError, NoSupervisor, NotFound

FOLLOW_POLL = 0.2


@click.command()
@NAME
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added, also across restarts.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Only the last N lines.  [default: all]")
def logs(name: str, follow: bool, lines: int | None) -> None:
    """Print the log of a deployment's running or last start, secrets masked.

    \b
    Examples:
      vllm-manager logs tiny -n 50
      vllm-manager logs -f tiny
    """
    from vllm_manager.logs import last_lines, read_all
    from vllm_manager.paths import state_dir
    from vllm_manager.redact import redact
    from vllm_manager.store import read_secrets

    path = _log_of(name)
    if not os.path.exists(path):
        raise NotFound(cause=f"the log {path} is gone", hint="the next start writes a new one", name=name)
    stored = read_secrets(state_dir(), name)
    secrets = stored.values if stored else ()
    if follow:
        for line in _follow(name, path, lines):
            click.echo(redact(line, secrets))
        return
    for line in read_all(path) if lines is None else last_lines(path, lines):
        click.echo(redact(line, secrets))


def _log_of(name: str) -> str:
    statuses = {status.name: status for status in all_statuses()}
    if name not in statuses:
        raise unknown_name(name, statuses)
    path = statuses[name].log
    if path is None:
        raise NotFound(cause=f"{name} wasn't started yet, so it has no log", name=name)
    return path


def _follow(name: str, path: str, lines: int | None) -> Iterator[str]:
    from vllm_manager.logs import LogTail, last_lines

    tail = LogTail(path)
    existing = []
    while more := tail.lines():
        existing += more
    yield from existing if lines is None else last_lines(path, lines)
    looked = time.monotonic()
    while True:
        yield from tail.lines()
        sys.stdout.flush()
        if nobody_reads():
            return
        time.sleep(FOLLOW_POLL)
        if time.monotonic() - looked < 1.0:
            continue
        looked = time.monotonic()
        try:
            current = _log_of(name)
        except NotFound:
            yield from tail.lines()
            note(f"{name} was taken down")
            return
        if current != path:
            yield from tail.lines()
            note(f"{name} was started again")
            path, tail = current, LogTail(current)


@click.command()
@JSON
def gpus(as_json: bool) -> None:
    """List the GPUs: memory, and who holds it.

    \b
    Example:
      vllm-manager gpus
    """
    try:
        inventory, leases = control().gpus()
    except NoSupervisor:
        from vllm_manager.gpus.nvml import read_inventory

        inventory, leases = read_inventory(), []
    if as_json:
        print_json({"inventory": inventory, "leases": leases})
        return
    if inventory.problem:
        click.echo(f"no GPUs: {inventory.problem}")
        if inventory.hint:
            note(f"hint: {inventory.hint}")
        return
    click.echo(f"driver {inventory.driver_version or '?'}, CUDA up to {inventory.cuda_version or '?'}")
    rows = []
    for gpu in inventory.gpus:
        held = [
            f"{lease.deployment} {gibibytes(lease.memory)} GiB"
            for lease in leases
            if lease.gpu_uuid == gpu.uuid
        ]
        for process in gpu.processes or ():
            size = "?" if process.memory is None else gibibytes(process.memory)
            held.append(f"pid {process.pid} ({process.name or '?'}) {size} GiB")
        state = gpu.problem or ("MIG" if gpu.mig else "ok")
        rows.append(
            [
                str(gpu.index),
                gpu.name,
                f"{gibibytes(gpu.memory_free)} of {gibibytes(gpu.memory_total)} GiB",
                "-" if gpu.utilization is None else f"{gpu.utilization} %",
                state,
                ", ".join(held) or "-",
                gpu.uuid,
            ]
        )
    table(["GPU", "NAME", "FREE", "BUSY", "STATE", "HELD BY", "UUID"], rows)


@click.command()
@JSON
def version(as_json: bool) -> None:
    """Print the version; with --json also Python's and the supervisor's.

    \b
    Example:
      vllm-manager version --json
    """
    if not as_json:
        click.echo(f"vllm-manager {__version__}")
        return
    try:
        supervisor = dict(control().supervisor())
    except ManagerError:
        supervisor = {}
    print_json(
        {
            "vllm_manager": __version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            "supervisor": supervisor or None,
        }
    )
