"""Which GPUs a new instance gets, or why it gets none. Pure.

Free for a new lease on a GPU = NVML's free memory - Σ over its leases max(0, lease - what its instance uses
already) - margin. Where NVML doesn't tell what an instance uses, a ready one counts as using its whole lease
and one that is still loading as using nothing. What strangers use is missing from NVML's free memory anyway.
"""

import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllm_manager.errors import PlacementError
from vllm_manager.types import Gpu, GpuInventory, GpuRequest, Lease, PlacedGpu, Placement

_GIB = 1024**3

MARGIN = 256 * 1024**2
"""Bytes left free on every GPU, for what allocates outside its lease (CUDA contexts, a desktop)."""

_ON_CPU = "`gpus: none` runs it on the CPU"


def place(
    request: GpuRequest,
    inventory: GpuInventory,
    leases: Sequence[Lease],
    *,
    deployment: str,
    margin: int = MARGIN,
) -> Placement:
    """The GPUs for one instance; the same arguments always give the same ones.

    Of the GPUs with room it takes those that are left with the least of it, so that large holes stay whole;
    ties go to the lower index. Several GPUs are of one kind (name and memory) where such a set has room,
    since tensor parallelism runs at the pace and the size of the smallest. ``request.name`` ignores case.

    Raises:
        PlacementError: With a reason for every GPU, and what would make it possible.
    """
    if request.count == 0:
        return Placement()
    case = _Case(request=request, inventory=inventory, leases=tuple(leases), margin=margin)
    chosen = case.chosen()
    if chosen is None:
        raise _refusal(case, deployment)
    return Placement(
        gpus=tuple(
            PlacedGpu(
                index=room.gpu.index,
                uuid=room.gpu.uuid,
                memory=room.needed,
                memory_total=room.gpu.memory_total,
            )
            for room in chosen
        )
    )


def released(
    inventory: GpuInventory, leases: Iterable[Lease], deployments: Collection[str]
) -> tuple[GpuInventory, tuple[Lease, ...]]:
    """As if these deployments had been stopped: their leases are gone, and what they use is free."""
    stopped: list[Lease] = []
    kept: list[Lease] = []
    for lease in leases:
        (stopped if lease.deployment in deployments else kept).append(lease)
    used = {gpu.uuid: sum(_used(lease) for lease in _on(gpu, stopped)) for gpu in inventory.gpus}
    return _freed(inventory, used), tuple(kept)


def utilization_of(placed: PlacedGpu) -> float:
    """The ``--gpu-memory-utilization`` with which vLLM asks for no more than the lease; 4 decimals.

    vLLM asks for ceil(utilization x total) bytes (``request_memory`` in vllm/v1/worker/utils.py, 0.32). It
    takes one value for all its GPUs: where they differ, the smallest keeps every lease.
    """
    steps = placed.memory * 10_000 // placed.memory_total
    if math.ceil(steps / 10_000 * placed.memory_total) > placed.memory:  # the float rounded up
        steps -= 1
    return steps / 10_000


# --- the decision ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """One GPU in the light of one request.

    Attributes:
        free: Bytes for a new lease; negative where more is promised than there is.
        needed: Bytes that the request asks for on this GPU.
        refused: Why it can't be used however much is free, or None.
    """

    gpu: Gpu
    free: int
    needed: int
    refused: str | None

    @property
    def fits(self) -> bool:
        return self.refused is None and self.free >= self.needed

    @property
    def left(self) -> int:
        return self.free - self.needed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """The arguments of ``place()``, and variations of them for the hint."""

    request: GpuRequest
    inventory: GpuInventory
    leases: tuple[Lease, ...]
    margin: int

    def rooms(self) -> list[_Room]:
        promised: dict[str, int] = {}
        for lease in self.leases:
            rest = max(0, lease.memory - _used(lease))
            promised[lease.gpu_uuid] = promised.get(lease.gpu_uuid, 0) + rest
        return [
            _Room(
                gpu=gpu,
                free=gpu.memory_free - promised.get(gpu.uuid, 0) - self.margin,
                needed=_needed(self.request, gpu),
                refused=_refused(self.request, gpu),
            )
            for gpu in sorted(self.inventory.gpus, key=lambda gpu: gpu.index)
        ]

    def chosen(self) -> list[_Room] | None:
        """The rooms to take, in index order, or None where there are too few."""
        count = self.request.count
        fitting = sorted((room for room in self.rooms() if room.fits), key=lambda r: (r.left, r.gpu.index))
        if len(fitting) < count:
            return None
        kinds: dict[tuple[str, int], list[_Room]] = {}
        for room in fitting:
            kinds.setdefault((room.gpu.name, room.gpu.memory_total), []).append(room)
        sets = [rooms[:count] for rooms in kinds.values() if len(rooms) >= count] or [fitting[:count]]
        tightest = min(sets, key=lambda rooms: sum(room.left for room in rooms))
        return sorted(tightest, key=lambda room: room.gpu.index)

    def without(self, deployments: Collection[str]) -> "_Case":
        """As if these had been stopped."""
        inventory, leases = released(self.inventory, self.leases, deployments)
        return replace(self, inventory=inventory, leases=leases)

    def without_strangers(self) -> "_Case":
        """As if nothing but the leases used the GPUs."""
        strange = {gpu.uuid: _strange_use(gpu, self.leases) for gpu in self.inventory.gpus}
        return replace(self, inventory=_freed(self.inventory, strange))


def _freed(inventory: GpuInventory, freed: Mapping[str, int]) -> GpuInventory:
    gpus = tuple(
        replace(gpu, memory_free=min(gpu.memory_total, gpu.memory_free + freed[gpu.uuid]))
        for gpu in inventory.gpus
    )
    return replace(inventory, gpus=gpus)


def _used(lease: Lease) -> int:
    if lease.used is not None:
        return lease.used
    return lease.memory if lease.ready else 0


def _needed(request: GpuRequest, gpu: Gpu) -> int:
    # vLLM's own formula: it refuses to start unless this much is free.
    return math.ceil(request.utilization * gpu.memory_total) if request.memory is None else request.memory


def _refused(request: GpuRequest, gpu: Gpu) -> str | None:
    if gpu.problem is not None:
        return gpu.problem
    if gpu.mig:
        return "MIG is enabled: a process can't be placed on it; disable MIG or use a GPU without it"
    if request.indices and gpu.index not in request.indices:
        return f"not in gpus.indices ({', '.join(map(str, request.indices))})"
    if request.uuids and gpu.uuid not in request.uuids:
        return f"{gpu.uuid} is not in gpus.uuids"
    if request.name is not None and not fnmatch.fnmatchcase(gpu.name.lower(), request.name.lower()):
        return f"its name doesn't match gpus.name ({request.name})"
    return None


def _on(gpu: Gpu, leases: Iterable[Lease]) -> list[Lease]:
    return [lease for lease in leases if lease.gpu_uuid == gpu.uuid]


def _strange_use(gpu: Gpu, leases: Iterable[Lease]) -> int:
    # Where a lease's use is unknown, it may be all of it: never blame strangers for that.
    ours = sum(lease.memory if lease.used is None else lease.used for lease in _on(gpu, leases))
    return max(0, gpu.memory_total - gpu.memory_free - ours)


# --- the explanation ---------------------------------------------------------------------------------


def _refusal(case: _Case, deployment: str) -> PlacementError:
    rooms, count = case.rooms(), case.request.count
    if case.inventory.problem is not None or not rooms:
        wanted = "a GPU" if count == 1 else f"{count} GPUs"
        cause = f"{deployment} needs {wanted}, but {case.inventory.problem or 'this machine has none'}"
        return PlacementError(cause=cause, hint=_join([case.inventory.hint, _ON_CPU]), deployment=deployment)
    fitting = sum(room.fits for room in rooms)
    return PlacementError(
        cause=f"no GPU can take {deployment}"
        if count == 1
        else f"{deployment} needs {count} GPUs, and only {fitting} of {len(rooms)} can take it",
        hint=_join([case.inventory.hint, *_remedies(case, deployment)]),
        deployment=deployment,
        reasons=tuple(_reason(room, case) for room in rooms) + tuple(_unknown(case.request, rooms)),
    )


def _reason(room: _Room, case: _Case) -> str:
    label = f"GPU {room.gpu.index} ({room.gpu.name})" if room.gpu.name else f"GPU {room.gpu.index}"
    if room.refused is not None:
        return f"{label}: {room.refused}"
    if room.fits:
        return f"{label}: has room, but {case.request.count} GPUs are asked for"
    balance = f"{_gib_down(room.free)} free, {_gib_up(room.needed)} needed"
    holders = [*_lease_holders(room.gpu, case.leases), *_strangers(room.gpu, case.leases)]
    return f"{label}: {balance}; {', '.join(holders)}" if holders else f"{label}: {balance}"


def _unknown(request: GpuRequest, rooms: Sequence[_Room]) -> Iterable[str]:
    indices = {room.gpu.index for room in rooms}
    uuids = {room.gpu.uuid for room in rooms}
    yield from (
        f"GPU {index}: there is no such GPU here" for index in request.indices if index not in indices
    )
    yield from (f"{uuid}: there is no such GPU here" for uuid in request.uuids if uuid not in uuids)


def _lease_holders(gpu: Gpu, leases: Sequence[Lease]) -> list[str]:
    held: dict[str, int] = {}
    for lease in _on(gpu, leases):
        held[lease.deployment] = held.get(lease.deployment, 0) + lease.memory
    return [f"{_gib_down(held[name])} leased to {name}" for name in sorted(held, key=lambda n: (-held[n], n))]


def _strangers(gpu: Gpu, leases: Sequence[Lease]) -> list[str]:
    # An instance's id is in the titles of its processes (VLLM_PROCESS_NAME_PREFIX), hence in their names.
    ours = {lease.instance for lease in leases}
    strange = [p for p in gpu.processes or () if not any(one in (p.name or "") for one in ours)]
    known = sorted((p.memory, p.pid, p.name) for p in strange if p.memory is not None)
    told = [(memory, f"pid {pid} ({name or 'unknown'})") for memory, pid, name in reversed(known)]
    texts = [f"{_gib_down(memory)} held by {who}" for memory, who in told if memory >= _GIB // 10]
    texts += [
        f"an unknown amount held by pid {p.pid} ({p.name or 'unknown'})" for p in strange if p.memory is None
    ]
    if len(texts) > 3:
        texts = [*texts[:3], f"and {len(texts) - 3} more processes"]
    unseen = _strange_use(gpu, leases) - sum(memory for memory, _ in told)
    if unseen >= _GIB and all(p.memory is not None for p in strange):
        texts.append(f"{_gib_down(unseen)} held by processes that NVML doesn't show")
    return texts


def _remedies(case: _Case, deployment: str) -> list[str]:
    """What would make the request possible, each tried out; the CPU where nothing else would."""
    request = case.request
    others = sorted({lease.deployment for lease in case.leases} - {deployment})
    stoppable = [name for name in others if case.without([name]).chosen()]
    remedies = []
    if stoppable:
        remedies.append(f"stop {' or '.join(stoppable)}")
    elif case.without(others).chosen():
        remedies.append(f"stop {' and '.join(others)}")
    if case.without_strangers().chosen():
        remedies.append("free what other processes hold")
    usable = [room for room in case.rooms() if room.refused is None]
    if len(usable) >= request.count:
        remedies += _smaller(case, usable)
    elsewhere = replace(case, request=replace(request, indices=(), uuids=(), name=None)).chosen()
    if elsewhere is not None:
        indices = ", ".join(str(room.gpu.index) for room in elsewhere)
        remedies.append(f"allow it elsewhere: GPU {indices} would do")
    fitting = sum(room.fits for room in usable)
    if fitting:
        remedies.append(f"lower gpus.count to {fitting}, with the parallel sizes")
    return remedies or [_ON_CPU]


def _smaller(case: _Case, usable: Sequence[_Room]) -> list[str]:
    if case.request.memory is not None:
        frees = sorted((room.free for room in usable), reverse=True)
        tenths = frees[case.request.count - 1] * 10 // _GIB
        return [f"lower gpus.memory to {tenths / 10:g}GiB"] if tenths >= 10 else []
    shares = sorted((room.free * 100 // max(1, room.gpu.memory_total) for room in usable), reverse=True)
    percent = shares[case.request.count - 1]
    return [f"lower gpu_memory_utilization to {percent / 100:g}"] if percent >= 5 else []


def _join(parts: Sequence[str | None]) -> str:
    return "; or ".join(part for part in parts if part)


# Rounded apart, so that what is free never reads like what is needed.
def _gib_down(size: int) -> str:
    return f"{max(0, size) * 10 // _GIB / 10:.1f} GiB"


def _gib_up(size: int) -> str:
    return f"{-(-size * 10 // _GIB) / 10:.1f} GiB"
