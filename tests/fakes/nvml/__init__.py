"""A fake NVML: real nvidia-ml-py in a subprocess, on top of a C library that a text file scripts.

::

    nvml = FakeNvml(tmp_path)
    nvml.write(FakeGpu(), FakeGpu(fail={"*": GPU_IS_LOST}))
    subprocess.run([sys.executable, "-m", ...], env=nvml.env())
    nvml.write(FakeGpu())  # seen at the subprocess's next NVML call
"""

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GIB = 1024**3

# nvmlReturn_t, from nvml.h; written out so that tests need no pynvml.
NOT_SUPPORTED = 3
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
UNKNOWN = 999


@dataclass(frozen=True, kw_only=True)
class FakeProcess:
    """A process on a GPU; ``memory`` None means that the driver doesn't tell."""

    pid: int
    memory: int | None = None
    graphics: bool = False


@dataclass(frozen=True, kw_only=True)
class FakeGpu:
    """One GPU. What is None is derived from the others, or not supported (``utilization``, ``mig``).

    ``fail`` maps an NVML function's name (or ``*``) to the code it returns; ``hang`` names functions that
    don't return while the script says so.
    """

    uuid: str | None = None
    name: str = "NVIDIA A100-SXM4-40GB"
    pci: str | None = None
    capability: tuple[int, int] = (8, 0)
    total: int = 40 * GIB
    reserved: int = 0
    used: int | None = None
    utilization: int | None = 0
    mig: bool | None = False
    processes: tuple[FakeProcess, ...] = ()
    fail: Mapping[str, int] = field(default_factory=dict)
    hang: tuple[str, ...] = ()


class FakeNvml:
    """A fake library and its script in a directory of the test's; begins as a machine without GPUs."""

    def __init__(self, directory: Path) -> None:
        self._script = directory / "nvml.script"
        self._library = directory / "nvml" / "libnvidia-ml.so.1"
        self._library.parent.mkdir()
        self._library.write_bytes(_compiled())
        self.write()

    def write(
        self,
        *gpus: FakeGpu,
        driver: str = "570.86.15",
        cuda: int = 12080,
        fail: Mapping[str, int] | None = None,
        hang: tuple[str, ...] = (),
    ) -> None:
        """Make the machine this; ``fail`` and ``hang`` are about calls without a device."""
        lines = [f"driver {driver}", f"cuda {cuda}", *_rules(fail or {}, hang)]
        for index, gpu in enumerate(gpus):
            lines += _gpu_lines(index, gpu)
        fresh = self._script.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._script)  # at once: the library never sees half a script

    def break_library(self) -> None:
        """Make it a machine on which the library can't be loaded, even if a real one is installed."""
        self._library.write_bytes(b"")

    def env(self) -> dict[str, str]:
        """The environment for a subprocess that is to see the fake."""
        inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        search = [str(self._library.parent), *filter(None, [inherited.get("LD_LIBRARY_PATH")])]
        return inherited | {"LD_LIBRARY_PATH": ":".join(search), "FAKE_NVML": str(self._script)}


def _gpu_lines(index: int, gpu: FakeGpu) -> Iterator[str]:
    used = sum(process.memory or 0 for process in gpu.processes) if gpu.used is None else gpu.used
    yield "gpu"
    yield f"uuid {gpu.uuid or f'GPU-{index:08x}-0000-4000-8000-000000000000'}"
    yield f"name {gpu.name}"
    yield f"pci {gpu.pci or f'00000000:{index + 1:02X}:00.0'}"
    yield f"capability {gpu.capability[0]} {gpu.capability[1]}"
    yield from (f"total {gpu.total}", f"reserved {gpu.reserved}", f"used {used}")
    if gpu.utilization is not None:
        yield f"utilization {gpu.utilization}"
    if gpu.mig is not None:
        yield f"mig {int(gpu.mig)}"
    for process in gpu.processes:
        kind = "graphics" if process.graphics else "compute"
        yield f"{kind} {process.pid} {-1 if process.memory is None else process.memory}"
    yield from _rules(gpu.fail, gpu.hang)


def _rules(fail: Mapping[str, int], hang: tuple[str, ...]) -> Iterator[str]:
    yield from (f"fail {function} {code}" for function, code in fail.items())
    yield from (f"hang {function}" for function in hang)


@functools.cache
def _compiled() -> bytes:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        message = "the fake NVML needs a C compiler (gcc or cc)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    source = Path(__file__).with_name("fake_nvml.c")
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory, "libnvidia-ml.so.1")
        flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, f"-Wl,-soname,{library.name}", "-o", library, source], check=True)
        return library.read_bytes()
