"""Reaching the supervisor, and what can be told without one."""

from collections.abc import Iterable
from dataclasses import replace

from vllm_manager import proc
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import ManagerError, NoSupervisor, NotFound
from vllm_manager.near import near_names
from vllm_manager.paths import socket_path, state_dir
from vllm_manager.store import (
    Desired,
    InstanceRecord,
    deployment_names,
    read_deployments,
    read_endpoints,
    read_instances,
)
from vllm_manager.types import Endpoint, Phase, Status


def control() -> ControlClient:
    """A client of the supervisor's socket, whether or not it answers."""
    return ControlClient(socket_path())


def all_statuses() -> list[Status]:
    """The deployments as the supervisor shows them, or as they are without one."""
    try:
        return control().statuses()
    except NoSupervisor:
        return offline_statuses()


def records() -> dict[str, InstanceRecord]:
    """What the last supervisor recorded of the instances; for use while none runs."""
    return read_instances(state_dir())


def lives(record: InstanceRecord) -> bool:
    """Whether the recorded main process is there, and still the same."""
    if record.handle is None:
        return False
    data = record.handle.data
    if data["boot_id"] != proc.boot_id() or data["pid_namespace"] != proc.pid_namespace():
        return False
    process = proc.stat(int(data["pid"]))
    return process is not None and not process.dead and process.start_time == data["start_time"]


def awaiting() -> list[str]:
    """Without a supervisor: the deployments that the next one will start, since they are to run and don't."""
    found = records()
    return [
        name
        for name, deployment in sorted(read_deployments(state_dir()).items())
        if deployment.desired is Desired.RUNNING
        and ((record := found.get(name)) is None or not (lives(record) or record.phase is Phase.FAILED))
    ]


def marks(record: InstanceRecord) -> proc.Marks:
    """What the processes of the recorded instance carry."""
    return proc.Marks(session=None, log=record.log, cwd=record.cwd, title=record.title)


def offline_statuses() -> list[Status]:
    """The deployments as their records and their processes show them, without a supervisor."""
    endpoints = {endpoint.deployment: endpoint for endpoint in read_endpoints(state_dir())}
    known, found = read_deployments(state_dir()), records()
    statuses = []
    for name in sorted({*known, *found}):
        source = known[name].source if name in known else ""
        endpoint = endpoints.get(name)
        if endpoint is None:
            endpoint = Endpoint(
                deployment=name, model=name, names=(name,), root_url=None, phase=Phase.STOPPED
            )
        if (record := found.get(name)) is None:
            statuses.append(Status(name=name, source=source, endpoint=replace(endpoint, phase=Phase.STOPPED)))
        else:
            statuses.append(_offline_status(record, endpoint, source))
    return statuses


def _offline_status(record: InstanceRecord, endpoint: Endpoint, source: str) -> Status:
    alive = lives(record)
    phase = record.phase if alive or not record.phase.live else Phase.STOPPED
    return Status(
        name=record.deployment,
        source=source,
        endpoint=replace(endpoint, phase=phase),
        instance=record.instance or None,
        pid=int(record.handle.data["pid"]) if alive and record.handle else None,
        gpus=tuple(gpu.index for gpu in record.placement.gpus),
        engine=record.engine.name if record.engine else None,
        phase_since=record.phase_since,
        steps=record.steps,
        ready_after=record.ready_after,
        kv_cache_tokens=record.kv_cache_tokens,
        failed_starts=record.failed_starts,
        restarts=len(record.restarts_at),
        error=None if phase is Phase.STOPPED else record.error,
        log=record.log or None,
    )


def unknown_name(name: str, known: Iterable[str]) -> NotFound:
    """The error for a name that no deployment has."""
    names = tuple(sorted(known))
    return NotFound(
        cause=f"there is no deployment named {name}", hint=near_names(name, names), name=name, known=names
    )


def explain_absence(name: str | None, error: NoSupervisor) -> ManagerError:
    """The error where no supervisor answers: something lives (exit 5), or the name is unknown (exit 4)."""
    found = records()
    live = tuple(sorted(each for each, record in found.items() if lives(record)))
    if live:
        return NoSupervisor(
            cause=f"no supervisor answers, though {', '.join(live)} {'runs' if len(live) == 1 else 'run'} on",
            hint="`vllm-manager up`, `down` or `serve` starts one, which takes over what runs",
            live=live,
        )
    known = {*found, *deployment_names(state_dir())}
    return unknown_name(name, known) if name is not None and name not in known else error
