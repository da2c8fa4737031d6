"""What NVML tells about the GPUs: the only user of pynvml.

NVML is opened and closed for every reading. Kept open, it would block a GPU reset, a change of the MIG mode
and a reload of the driver ("in use by another client"), and would go on answering from before them. Opening
takes milliseconds where something runs on the GPU or persistence mode is on, else 1 to 3 s per GPU (NVIDIA's
"Driver Persistence"), which is why the message about a late answer names persistence mode.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pynvml

from vllm_manager.gpus.visibility import mark_hidden
from vllm_manager.types import Gpu, GpuInventory, GpuProcess

_GIB = 1024**3

# Without a process a driver holds less than this on a GPU, so an empty list of processes beside it means that
# NVML can't see them (WSL2, a container with its own pid namespace), for which it has no error.
_IDLE_USE = 1 * _GIB

_NO_INVENTORY = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "the NVIDIA driver's library libnvidia-ml.so.1 isn't installed",
        "install the NVIDIA driver; in a container, start it with the NVIDIA runtime (--gpus all)",
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA driver isn't loaded",
        "load it with `modprobe nvidia`, or reboot if the driver or the kernel was updated",
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the loaded NVIDIA driver and its library are of different versions",
        "an update of the driver isn't complete: reboot, or reload the nvidia kernel modules and restart "
        "vllm-manager",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "this user has no permission to use the NVIDIA driver",
        "look at the rights of the device files (`ls -l /dev/nvidia*`)",
    ),
}

_UNUSABLE = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost: it fell off the bus or stopped answering (see `dmesg`)",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset: `nvidia-smi --gpu-reset`, or reboot",
}


def read_inventory() -> GpuInventory:
    """The GPUs now. Blocks, for ever if the driver hangs: see ``GpuReader``.

    Never raises for what NVML reports: a query that fails leaves its field unknown, one that a GPU can't do
    without sets that GPU's ``problem``, and where NVML itself is unusable the inventory has a ``problem``.
    GPUs outside this process's ``CUDA_VISIBLE_DEVICES`` have a ``problem`` too.
    """
    try:
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
        try:
            return _inventory()
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        unknown = (f"NVML can't be used: {error}", "see whether `nvidia-smi` works: it asks the same library")
        problem, hint = _NO_INVENTORY.get(error.value, unknown)
        return GpuInventory(problem=problem, hint=hint)


def _inventory() -> GpuInventory:
    system = _Queries()
    cuda = system.ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    count = pynvml.nvmlDeviceGetCount()
    return GpuInventory(
        gpus=mark_hidden([_gpu(index) for index in range(count)], os.environ.get("CUDA_VISIBLE_DEVICES")),
        driver_version=_text(system.ask(pynvml.nvmlSystemGetDriverVersion)),
        # 12080 means 12.8 (NVML_CUDA_DRIVER_VERSION_MAJOR and _MINOR in nvml.h).
        cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        problem=None if count else "the NVIDIA driver finds no GPU",
        hint=None if count else "see whether `lspci | grep -i nvidia` and `dmesg` show one",
    )


class _Queries:
    """Asks NVML; remembers why the GPU can't be used, if an answer means that."""

    def __init__(self) -> None:
        self.problem: str | None = None

    def ask(self, query: Callable[..., Any], *arguments: Any, needed: str | None = None) -> Any:
        """The answer, or None where NVML has none; ``needed`` says what is wrong then with the GPU."""
        try:
            return query(*arguments)
        except pynvml.NVMLError as error:
            if self.problem is None:
                failure = f"{needed}: {error}" if needed else None
                self.problem = _UNUSABLE.get(error.value, failure)
            return None


def _gpu(index: int) -> Gpu:
    queries = _Queries()
    ask = queries.ask
    device = ask(pynvml.nvmlDeviceGetHandleByIndex, index, needed="NVML can't open it")
    if device is None:
        return Gpu(index=index, uuid="", name="", problem=queries.problem)
    uuid = _text(ask(pynvml.nvmlDeviceGetUUID, device, needed="NVML doesn't tell its UUID"))
    pci = ask(pynvml.nvmlDeviceGetPciInfo, device)
    load = ask(pynvml.nvmlDeviceGetUtilizationRates, device)
    mig = ask(pynvml.nvmlDeviceGetMigMode, device)
    total, free = _memory(queries, device)
    return Gpu(
        index=index,
        uuid=uuid or "",
        name=_text(ask(pynvml.nvmlDeviceGetName, device)) or "",
        pci_bus_id=None if pci is None else _text(pci.busId),
        compute_capability=ask(pynvml.nvmlDeviceGetCudaComputeCapability, device),
        memory_total=total,
        memory_free=free,
        processes=_processes(queries, device, used=total - free),
        utilization=None if load is None else load.gpu,
        mig=mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        problem=queries.problem,
    )


def _memory(queries: _Queries, device: Any) -> tuple[int, int]:
    # CUDA's total is what is left after the driver's and the firmware's share, which only v2 tells apart.
    info = queries.ask(pynvml.nvmlDeviceGetMemoryInfo, device, pynvml.nvmlMemory_v2)
    if info is not None:
        return info.total - info.reserved, info.free
    info = queries.ask(pynvml.nvmlDeviceGetMemoryInfo, device, needed="NVML doesn't tell its memory")
    return (0, 0) if info is None else (info.total, info.free)


def _processes(queries: _Queries, device: Any, *, used: int) -> tuple[GpuProcess, ...] | None:
    compute = queries.ask(pynvml.nvmlDeviceGetComputeRunningProcesses, device)
    graphics = queries.ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses, device)
    # A process in both lists has its whole memory in each.
    memory = {process.pid: process.usedGpuMemory for process in [*(graphics or ()), *(compute or ())]}
    if compute is None or (not memory and used > _IDLE_USE):
        return None
    return tuple(GpuProcess(pid=pid, memory=memory[pid], name=_name(pid)) for pid in sorted(memory))


def _name(pid: int) -> str | None:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return None


def _text(value: str | bytes | None) -> str | None:
    # pynvml's releases differ in which of the two they return.
    return value.decode(errors="replace") if isinstance(value, bytes) else value
