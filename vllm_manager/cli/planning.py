"""What `up` would do: looks at what is there, decides, and places; changes nothing."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from vllm_manager import command, proc, reconcile
from vllm_manager.cli.command_line import masked_command, masked_environment
from vllm_manager.cli.connect import all_statuses, control, lives, marks, records
from vllm_manager.cli.manifests import check, located_conflict, unsupported
from vllm_manager.engines.find import engine_for
from vllm_manager.errors import EngineMissing, ManagerError, ManifestError, NoSupervisor
from vllm_manager.gpus.inventory import used_by
from vllm_manager.gpus.nvml import read_inventory
from vllm_manager.manifest.load import in_order, load_manifests
from vllm_manager.manifest.loaded import Loaded
from vllm_manager.manifest.model import Deployment
from vllm_manager.manifest.secrets import resolve_key
from vllm_manager.paths import engines_dir, state_dir
from vllm_manager.placement import place, released
from vllm_manager.ports import choose
from vllm_manager.reconcile import Known
from vllm_manager.redact import MASK
from vllm_manager.store import Desired, InstanceRecord, Secrets, read_deployments, read_secrets
from vllm_manager.types import (
    Action,
    Engine,
    EngineFlags,
    GpuInventory,
    Lease,
    Phase,
    Placement,
    Status,
)

STARTS = (Action.START, Action.RESTART, Action.RESUME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What would happen to one deployment.

    Attributes:
        phase: Where it is now; None where it isn't known.
        placement: None where there is none, or none is needed.
        engine: None where there is none. One that is to be installed has no path yet.
        installs: The version of vLLM that `up` would install first.
        command: Program and arguments, secrets masked; empty where it can't run.
        environment: Likewise; without what is made for each instance.
        problems: Why it can't run.
        skipped: Why its flags weren't checked, or None where they were.
    """

    name: str
    action: Action
    source: str
    phase: Phase | None = None
    changes: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    placement: Placement | None = None
    port: int | None = None
    engine: Engine | None = None
    installs: str | None = None
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[ManagerError, ...] = ()
    skipped: str | None = None
    notes: tuple[str, ...] = ()


def plan(files: Sequence[Path], *, recreate: bool, prune: bool) -> list[Planned]:
    """What `up` of these files and directories would do, in its order.

    Raises:
        ManifestError: The manifests can't be used.
    """
    manifests = in_order(load_manifests(files, os.environ))
    statuses = all_statuses()
    known = known_deployments(statuses)
    leaving = undeclared(files, [each.deployment.name for each in manifests], known)
    planned = [
        Planned(
            name=name,
            action=Action.END if prune else Action.KEEP,
            source=known[name].source,
            phase=known[name].phase,
        )
        for name in leaving
    ]
    if prune:
        known = {name: each for name, each in known.items() if name not in leaving}
    machine = _Machine(statuses, needed=any(each.deployment.request.count for each in manifests))
    if prune:
        machine.release(leaving)
        for name in leaving:
            machine.ports.pop(name, None)
    return planned + [_planned(each, known, machine, recreate=recreate) for each in manifests]


def known_deployments(statuses: Sequence[Status]) -> dict[str, Known]:
    """The deployments that were brought up and not taken down, by name."""
    phases = {status.name: status.phase for status in statuses}
    known = {}
    for name, record in read_deployments(state_dir()).items():
        with suppress(ManifestError):  # written by a version with other fields
            if record.desired is not Desired.GONE:
                deployment = Deployment.from_json(record.manifest)
                phase = phases.get(name, Phase.STOPPED)
                known[name] = Known(deployment=deployment, source=record.source, phase=phase)
    return known


def undeclared(
    files: Sequence[Path], declared: Collection[str], known: Mapping[str, Known]
) -> tuple[str, ...]:
    """The deployments that these files, or files in these directories, declared and don't any more."""
    read = {os.path.realpath(file) for file in files}

    def covers(source: str) -> bool:
        return bool(read & {os.path.realpath(source), os.path.realpath(os.path.dirname(source))})

    return reconcile.undeclared(declared, known, covers)


# --- one deployment ----------------------------------------------------------------------------------


class _Machine:
    """GPUs, leases and ports as they will be when the deployments before have been started."""

    def __init__(self, statuses: Sequence[Status], *, needed: bool) -> None:
        self._inventory, self._leases = _gpus() if needed else (GpuInventory(), [])
        self.ports = {
            status.name: port
            for status in statuses
            if status.endpoint.root_url and (port := urlsplit(status.endpoint.root_url).port)
        }

    def release(self, names: Collection[str]) -> None:
        """What these hold is free, but for their ports."""
        self._inventory, leases = released(self._inventory, self._leases, names)
        self._leases = list(leases)

    def place(self, deployment: Deployment) -> Placement:
        name = deployment.name
        placement = place(deployment.request, self._inventory, self._leases, deployment=name)
        self._leases += [
            Lease(instance=name, deployment=name, gpu_uuid=gpu.uuid, memory=gpu.memory, used=0)
            for gpu in placement.gpus
        ]
        return placement

    def port(self, deployment: Deployment, *, runs: bool) -> int:
        """The port that it would get.

        Args:
            deployment: Which.
            runs: Whether an instance of it holds its port until it is replaced.
        """
        name = deployment.name
        own = self.ports.get(name)
        if runs and own is not None and deployment.port in (None, own):
            return own
        taken = {port for other, port in self.ports.items() if other != name}
        self.ports[name] = choose(deployment.host, deployment.port, own, taken)
        return self.ports[name]


def _gpus() -> tuple[GpuInventory, list[Lease]]:
    try:
        return control().gpus()
    except NoSupervisor:
        # What runs on without a supervisor keeps its leases: the next one takes them over.
        inventory = read_inventory()
        return inventory, [lease for record in records().values() for lease in _leases(record, inventory)]


def _leases(record: InstanceRecord, inventory: GpuInventory) -> Iterator[Lease]:
    if not record.placement.gpus or not lives(record):
        return
    used = used_by(inventory, [process.pid for process in proc.members(marks(record))])
    for gpu in record.placement.gpus:
        yield Lease(
            instance=record.instance,
            deployment=record.deployment,
            gpu_uuid=gpu.uuid,
            memory=gpu.memory,
            used=used.get(gpu.uuid),
            ready=record.phase is Phase.READY,
        )


def _planned(loaded: Loaded, known: Mapping[str, Known], machine: _Machine, *, recreate: bool) -> Planned:
    deployment, problems = loaded.deployment, _Problems()
    before = known.get(deployment.name)
    key = None
    with problems.noted():
        key = resolve_key(loaded, os.environ)
    decision = reconcile.decide(
        deployment, before, key_changed=_key_changed(deployment, key), recreate=recreate
    )
    if (refusal := unsupported(loaded)) is not None:
        return Planned(
            name=deployment.name, action=decision.action, source=str(loaded.source), problems=(refusal,)
        )
    checked = check(loaded)
    problems.found += checked.errors
    if conflict := reconcile.port_conflict(deployment, known):
        problems.found.append(located_conflict(loaded, conflict))
    planned = Planned(
        name=deployment.name,
        action=decision.action,
        source=str(loaded.source),
        phase=before.phase if before else None,
        changes=decision.changes,
        applied=decision.applied,
        skipped=checked.skipped,
    )
    if decision.action in STARTS:
        planned = _placed(planned, deployment, key, machine, problems, checked.flags)
    return replace(planned, problems=tuple(problems.found))


class _Problems:
    def __init__(self) -> None:
        self.found: list[ManagerError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except ManagerError as error:
            self.found.append(error)


def _placed(
    planned: Planned,
    deployment: Deployment,
    key: str | None,
    machine: _Machine,
    problems: _Problems,
    flags: EngineFlags | None,
) -> Planned:
    runs = planned.action is Action.RESTART and planned.phase is not None and planned.phase.live
    if runs:
        machine.release([planned.name])
    base = command.inherited(os.environ)
    placement = port = engine = installs = None
    with problems.noted():
        placement = machine.place(deployment)
    with problems.noted():
        port = machine.port(deployment, runs=runs)
    with problems.noted():
        engine, installs = _engine(deployment, base)
    if problems.found:
        machine.release([planned.name])
    planned = replace(planned, placement=placement, port=port, engine=engine, installs=installs)
    if placement is None or port is None or engine is None:
        return planned
    secrets = Secrets(api_key=key, environment=base).values
    environment = command.environment(
        deployment,
        engine=engine,
        placement=placement,
        api_key=None if deployment.api_key is None else MASK,
        base=base,
        tmp="",
        title="",
    )
    argv = (engine.executable, *command.arguments(deployment, placement, port, flags))
    return replace(
        planned,
        notes=command.notes(deployment),
        command=masked_command(argv, secrets),
        environment=masked_environment(environment, secrets),
    )


def _engine(deployment: Deployment, environment: Mapping[str, str]) -> tuple[Engine, str | None]:
    """The engine, and the version that `up` would install first."""
    try:
        return engine_for(deployment, environment, engines_dir()), None
    except EngineMissing as error:
        if error.install is None:
            raise
        engine = Engine(name=f"vllm {error.install}", executable="vllm", version=error.install)
        return engine, error.install


def _key_changed(deployment: Deployment, given: str | None) -> bool:
    stored = read_secrets(state_dir(), deployment.name) or Secrets()
    if deployment.api_key == "generate":
        return stored.api_key is None
    return stored.api_key != given
