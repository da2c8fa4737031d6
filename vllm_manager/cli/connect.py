"""Reaching the supervisor, and what can be told without one."""

from dataclasses import replace

from vllm_manager import proc
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import ManagerError, NoSupervisor, NotFound
from vllm_manager.near import near_names
from vllm_manager.paths import socket_path, state_dir
from vllm_manager.store import InstanceRecord, read_endpoints, read_instances
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


def offline_statuses() -> list[Status]:
    """The deployments as their records and their processes show them, without a supervisor."""
    endpoints = {endpoint.deployment: endpoint for endpoint in read_endpoints(state_dir())}
    statuses = []
    for name, record in sorted(records().items()):
        alive = lives(record)
        phase = record.phase if alive or not record.phase.live else Phase.STOPPED
        known = endpoints.get(name)
        if known is None:
            known = Endpoint(deployment=name, model=name, names=(name,), root_url=None, phase=phase)
        statuses.append(
            Status(
                name=name,
                source="",
                endpoint=replace(known, phase=phase),
                instance=record.instance,
                pid=int(record.handle.data["pid"]) if alive and record.handle else None,
                gpus=tuple(gpu.index for gpu in record.placement.gpus),
                engine=record.engine.name if record.engine else None,
                phase_since=record.phase_since,
                ready_after=record.ready_after,
                error=record.error,
                log=record.log or None,
            )
        )
    return statuses


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
    if name is not None and name not in found:
        known = tuple(sorted(found))
        return NotFound(
            cause=f"there is no deployment named {name}", hint=near_names(name, known), name=name, known=known
        )
    return error
