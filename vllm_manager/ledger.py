"""The GPU ledger: who was promised how much memory, and whose turn it is to start.

The only thing that instances share. Two vLLM instances that profile memory on one GPU at once mis-size their
KV cache, so a GPU has one start under way at a time; and the whole machine has a limited number.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from vllm_manager.gpus.inventory import used_by
from vllm_manager.placement import place
from vllm_manager.types import GpuInventory, GpuRequest, Lease, Placement


@dataclass(slots=True)
class _Entry:
    deployment: str
    placement: Placement
    ready: bool = False
    pids: tuple[int, ...] = ()


class GpuLedger:
    """Leases by instance. All methods run on the event loop, so each runs whole between two awaits.

    Args:
        read: Takes the inventory, off the loop and with a deadline of its own.
        max_starts: How many instances may be starting at once on this machine.
    """

    def __init__(self, read: Callable[[], Awaitable[GpuInventory]], max_starts: int) -> None:
        self._read = read
        self._max_starts = max_starts
        self._entries: dict[str, _Entry] = {}
        self._starting: dict[str, frozenset[str]] = {}  # instance -> the GPUs that it starts on
        self._changed = asyncio.Condition()

    async def inventory(self) -> GpuInventory:
        """The GPUs as they are now."""
        return await self._read()

    async def reserve(self, instance: str, deployment: str, request: GpuRequest) -> Placement:
        """Wait for a turn, place the request and lease what it needs, until ``release``.

        Raises:
            PlacementError: It can't be placed as things are.
        """
        wanted: frozenset[str] = frozenset()
        while True:
            await self._turn(instance, wanted)
            try:
                placement = await self.check(deployment, request)
            except BaseException:
                await self.release(instance)
                raise
            # No await from the placement to the lease: nobody can lease the same memory in between.
            wanted = frozenset(gpu.uuid for gpu in placement.gpus)
            if not wanted & self._busy():
                self._starting[instance] = wanted
                self._entries[instance] = _Entry(deployment, placement)
                return placement
            await self.release(instance)

    async def _turn(self, instance: str, wanted: frozenset[str]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_turn(wanted))
            self._starting[instance] = frozenset()

    def _has_turn(self, wanted: frozenset[str]) -> bool:
        return len(self._starting) < self._max_starts and not wanted & self._busy()

    def _busy(self) -> frozenset[str]:
        return frozenset().union(*self._starting.values())

    async def check(self, deployment: str, request: GpuRequest) -> Placement:
        """Where the request would go now, leasing nothing.

        Raises:
            PlacementError: Nowhere; says why for each GPU.
        """
        inventory = await self._read() if request.count else GpuInventory()
        return place(request, inventory, self.leases(inventory), deployment=deployment)

    def leases(self, inventory: GpuInventory) -> list[Lease]:
        """All leases, with what their instances use of them in this inventory."""
        leases = []
        for instance, entry in self._entries.items():
            used = used_by(inventory, entry.pids)
            for gpu in entry.placement.gpus:
                leases.append(
                    Lease(
                        instance=instance,
                        deployment=entry.deployment,
                        gpu_uuid=gpu.uuid,
                        memory=gpu.memory,
                        used=used.get(gpu.uuid),
                        ready=entry.ready,
                    )
                )
        return leases

    async def adopt(self, instance: str, deployment: str, placement: Placement, *, ready: bool) -> None:
        """Enter an instance that runs already; if it is still starting, it keeps its turn."""
        async with self._changed:
            self._entries[instance] = _Entry(deployment, placement, ready)
            if not ready:
                self._starting[instance] = frozenset(gpu.uuid for gpu in placement.gpus)

    def seen(self, instance: str, pids: Iterable[int]) -> None:
        """Note the instance's processes, by which NVML's figures become its own."""
        if entry := self._entries.get(instance):
            entry.pids = tuple(pids)

    async def ready(self, instance: str) -> None:
        """It has allocated what it will: the next start may have its turn."""
        async with self._changed:
            if entry := self._entries.get(instance):
                entry.ready = True
            self._starting.pop(instance, None)
            self._changed.notify_all()

    async def release(self, instance: str) -> None:
        """Forget its leases; nothing happens when it has none."""
        async with self._changed:
            self._entries.pop(instance, None)
            self._starting.pop(instance, None)
            self._changed.notify_all()

    async def vacated(self, placement: Placement, pids: Iterable[int]) -> bool:
        """Whether NVML shows none of the processes on the placement's GPUs any more."""
        if not placement.gpus:
            return True
        gone = frozenset(pids)
        inventory = await self._read()
        placed = {gpu.uuid for gpu in placement.gpus}
        return not any(
            process.pid in gone
            for gpu in inventory.gpus
            if gpu.uuid in placed
            for process in gpu.processes or ()
        )
