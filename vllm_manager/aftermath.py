"""After an instance: explains why it ended, and removes every trace of it."""

import asyncio
import os
import shutil
from pathlib import Path

from vllm_manager import proc
from vllm_manager.clock import Clock
from vllm_manager.diagnose import diagnose
from vllm_manager.errors import EarlyExit, ManagerError
from vllm_manager.launchers.base import Death, Launcher, Running
from vllm_manager.ledger import GpuLedger
from vllm_manager.logs import last_lines
from vllm_manager.store import InstanceRecord

LOG_LINES = 4000
"""Lines of a log's end that are searched for the cause."""

VACATED_WITHIN = 15.0
"""Seconds for the driver to give ended processes' memory back; what is used after that is a stranger's."""


async def explain_death(death: Death | None, record: InstanceRecord, *, was_ready: bool) -> ManagerError:
    """Why an instance ended, as far as its log and its exit tell."""
    status = death.exit_status if death is not None else None
    lines = await asyncio.to_thread(last_lines, record.log, LOG_LINES)
    diagnosis = diagnose(lines, exit_status=status)
    cause = diagnosis.cause
    if was_ready:
        who = f"{death.who} (pid {death.pid})" if death is not None else "its process"
        cause = f"{who} ended while the model was ready: {cause}"
    return EarlyExit(
        cause=cause,
        hint=diagnosis.hint,
        deployment=record.deployment,
        # What ran once can run again: a death after READY is no fault of the manifest.
        permanent=diagnosis.permanent and not was_ready,
        exception=diagnosis.exception,
        log_tail=diagnosis.tail,
        log_path=record.log,
        exit_status=status,
        diagnosis=diagnosis.code,
    )


class Aftermath:
    """Clears up after an instance, however it ended; every exit goes through here.

    vLLM's EngineCore and workers outlive a killed API server and keep the GPU (measured, 0.32), so an exit of
    the main process is never taken for the end of the instance.
    """

    def __init__(self, launcher: Launcher, ledger: GpuLedger, clock: Clock) -> None:
        self._launcher = launcher
        self._ledger = ledger
        self._clock = clock

    async def clear(self, record: InstanceRecord, running: Running | None) -> None:
        """End what is left, remove its files, and free its leases once the driver shows the memory free.

        Raises:
            ManagerError: A process can't be ended; its leases stay, so that its GPUs aren't given away.
        """
        if not record.instance:
            return
        pids = await asyncio.to_thread(running.pids if running is not None else lambda: _left_of(record))
        swept = await self._launcher.sweep(
            log=record.log, cwd=record.cwd, title=record.title, handle=record.handle
        )
        if swept.stuck:
            raise ManagerError(
                cause=f"process {', '.join(map(str, swept.stuck))} can't be ended, not even by SIGKILL",
                hint="it is stuck in the kernel, often in a GPU driver: reset the GPU or reboot; until then "
                "its GPUs stay reserved",
            )
        await asyncio.to_thread(_remove_files, record, swept.shared_memory.union(record.shared_memory))
        deadline = self._clock.monotonic() + VACATED_WITHIN
        while not await self._ledger.vacated(record.placement, pids) and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.2)
        await self._ledger.release(record.instance)


def _left_of(record: InstanceRecord) -> list[int]:
    marks = proc.Marks(session=None, log=record.log, cwd=record.cwd, title=record.title)
    return [process.pid for process in proc.members(marks)]


def _remove_files(record: InstanceRecord, shared: frozenset[str]) -> None:
    for directory in {record.cwd, record.tmp}:
        shutil.rmtree(directory, ignore_errors=True)
    left = {path for path in shared if _ours(path)}
    if left:
        # Another instance's worker may have mapped it since: nothing that is in use is removed.
        for path in left - proc.shared_memory(proc.all_pids()):
            Path(path).unlink(missing_ok=True)


def _ours(path: str) -> bool:
    try:
        return os.lstat(path).st_uid == os.getuid()
    except OSError:
        return False
