import asyncio

import pytest

from vllm_manager.errors import PlacementError
from vllm_manager.ledger import GpuLedger
from vllm_manager.types import Gpu, GpuInventory, GpuRequest, Placement

GIB = 1 << 30


class Box:
    """GPUs without a driver, and a ledger on them."""

    def __init__(self, gpus: int = 1, max_starts: int = 8) -> None:
        self.inventory = GpuInventory(
            gpus=tuple(
                Gpu(
                    index=i,
                    uuid=f"GPU-{i}",
                    name="A",
                    memory_total=40 * GIB,
                    memory_free=40 * GIB,
                    processes=(),
                )
                for i in range(gpus)
            )
        )
        self.ledger = GpuLedger(self._read, max_starts)

    async def _read(self) -> GpuInventory:
        await asyncio.sleep(0)  # others may run while the driver is asked
        return self.inventory

    def reserve(self, name: str, gib: int = 10, count: int = 1) -> "asyncio.Task[Placement]":
        request = GpuRequest(count=count, memory=gib * GIB)
        return asyncio.ensure_future(self.ledger.reserve(f"{name}-1", name, request))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_starts_on_one_gpu_take_turns():
    async def scene():
        box = Box()
        first, second = box.reserve("a"), box.reserve("b")
        await settle()
        assert first.done()
        assert not second.done()
        await box.ledger.ready("a-1")
        await settle()
        assert second.done()

    asyncio.run(scene())


def test_starts_on_different_gpus_do_not_wait_for_each_other():
    async def scene():
        box = Box(gpus=2)
        placed = await asyncio.gather(box.reserve("a", 30), box.reserve("b", 30))
        assert {p.gpus[0].index for p in placed} == {0, 1}

    asyncio.run(scene())


def test_no_more_starts_at_once_than_allowed_on_the_cpu_too():
    async def scene():
        box = Box(max_starts=2)
        tasks = [box.reserve(name, count=0) for name in "abc"]
        await settle()
        assert [task.done() for task in tasks] == [True, True, False]
        await box.ledger.release("a-1")
        await settle()
        assert tasks[2].done()

    asyncio.run(scene())


def test_a_lease_is_never_given_twice():
    async def scene():
        box = Box()
        await box.reserve("a", 30)
        await box.ledger.ready("a-1")
        with pytest.raises(PlacementError) as caught:
            await box.reserve("b", 30)
        assert "a" in caught.value.reasons[0]
        await box.ledger.release("a-1")
        await box.reserve("b", 30)

    asyncio.run(scene())


def test_a_refused_or_cancelled_start_gives_its_turn_back():
    async def scene():
        box = Box(max_starts=1)
        with pytest.raises(PlacementError):
            await box.reserve("huge", 400)
        waiting = box.reserve("a")
        await settle()
        cancelled = box.reserve("b")
        await settle()
        cancelled.cancel()
        await settle()
        assert waiting.done()
        await box.ledger.ready("a-1")
        await asyncio.wait_for(box.reserve("c"), 5)

    asyncio.run(scene())


def test_many_on_one_gpu_all_get_their_turn():
    async def scene():
        box = Box()
        started = []

        async def life(name):
            await box.reserve(name, 3)
            started.append(name)
            await settle()
            await box.ledger.ready(f"{name}-1")

        await asyncio.wait_for(asyncio.gather(*(life(f"m{i}") for i in range(12))), 10)
        assert len(started) == 12

    asyncio.run(scene())


def test_an_adopted_start_keeps_its_turn():
    async def scene():
        box = Box()
        placement = await box.reserve("a")
        other = Box()
        await other.ledger.adopt("a-1", "a", placement, ready=False)
        waiting = other.reserve("b")
        await settle()
        assert not waiting.done()
        await other.ledger.ready("a-1")
        await waiting

    asyncio.run(scene())
