"""Reading the GPUs without ever waiting for a hung driver, and what an instance uses of them."""

import asyncio
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import replace

from vllm_manager.gpus.nvml import read_inventory
from vllm_manager.types import Gpu, GpuInventory

_LATE_HINT = (
    "see whether `nvidia-smi` hangs too, and whether `dmesg` shows an Xid; a GPU reset or a reboot helps "
    "then. Where it is only slow, turn persistence mode on (`nvidia-smi -pm 1`)"
)


class GpuReader:
    """Reads the inventory in a thread of its own, one reading at a time.

    Args:
        query: The blocking call; may hang.
        deadline: Seconds that ``read()`` waits for it.
    """

    def __init__(self, query: Callable[[], GpuInventory] = read_inventory, *, deadline: float = 5.0) -> None:
        self._query = query
        self._deadline = deadline
        self._reading: Future[GpuInventory] | None = None
        self._last: GpuInventory | None = None

    async def read(self) -> GpuInventory:
        """The GPUs now, within the deadline.

        A call made while a reading is under way, or hangs, shares its outcome. When the deadline passes, the
        last inventory is returned with a ``problem`` on every GPU, so that nothing is placed on any.
        """
        if self._reading is None or self._reading.done():
            self._reading = _in_daemon_thread(self._query)
        try:
            async with asyncio.timeout(self._deadline):
                self._last = await asyncio.wrap_future(self._reading)
        except TimeoutError:
            return self._late()
        return self._last

    def _late(self) -> GpuInventory:
        problem = f"NVML didn't answer within {self._deadline:g} s"
        if self._last is None or not self._last.gpus:
            return GpuInventory(problem=problem, hint=_LATE_HINT)
        gpus = tuple(replace(gpu, problem=problem) for gpu in self._last.gpus)
        return replace(self._last, gpus=gpus, hint=_LATE_HINT)


def _in_daemon_thread(query: Callable[[], GpuInventory]) -> Future[GpuInventory]:
    # A daemon thread, since an executor's would keep the program from ending while a call hangs.
    future: Future[GpuInventory] = Future()
    future.set_running_or_notify_cancel()  # from here on a waiter's cancellation doesn't reach it

    def run() -> None:
        try:
            future.set_result(query())
        except BaseException as error:  # handed on to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name="nvml", daemon=True).start()
    return future


def used_by(inventory: GpuInventory, pids: Collection[int]) -> dict[str, int | None]:
    """Bytes that these processes use, per GPU UUID; None where NVML doesn't tell."""
    return {gpu.uuid: _used_on(gpu, pids) for gpu in inventory.gpus if gpu.uuid}


def _used_on(gpu: Gpu, pids: Collection[int]) -> int | None:
    if gpu.processes is None:
        return None
    total = 0
    for process in gpu.processes:
        if process.pid in pids:
            if process.memory is None:
                return None
            total += process.memory
    return total
