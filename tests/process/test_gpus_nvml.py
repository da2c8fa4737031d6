"""The real nvidia-ml-py on top of the fake NVML, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.fakes.nvml import (
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GIB,
    GPU_IS_LOST,
    LIB_RM_VERSION_MISMATCH,
    NO_PERMISSION,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    UNKNOWN,
    FakeGpu,
    FakeNvml,
    FakeProcess,
)

READ = """
import json
from dataclasses import asdict
from vllm_manager.gpus import read_inventory
print(json.dumps(asdict(read_inventory())))
"""

# Prints a reading for every line it gets; ends when its input ends, whatever hangs.
KEEP_READING = """
import asyncio, json, sys
from dataclasses import asdict
from vllm_manager.gpus import GpuReader

async def main():
    reader = GpuReader(deadline=float(sys.argv[1]))
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(asdict(await reader.read())), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def nvml(tmp_path):
    return FakeNvml(tmp_path)


def read(nvml, **env):
    program = [sys.executable, "-c", READ]
    done = subprocess.run(program, env=nvml.env() | env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_gpus(nvml):
    h100 = FakeGpu(
        uuid="GPU-1d6f",
        name="NVIDIA H100 80GB HBM3",
        pci="00000000:3B:00.0",
        capability=(9, 0),
        total=80 * GIB,
        used=10 * GIB,
        utilization=37,
        processes=(FakeProcess(pid=os.getpid(), memory=10 * GIB),),
    )
    nvml.write(FakeGpu(), h100, driver="575.51.03", cuda=12090)
    inventory = read(nvml)
    assert (inventory["driver_version"], inventory["cuda_version"]) == ("575.51.03", "12.9")
    assert (inventory["problem"], inventory["hint"]) == (None, None)
    first, second = inventory["gpus"]
    assert (first["index"], first["memory_free"], first["processes"]) == (0, 40 * GIB, [])
    name = second["processes"][0].pop("name")
    assert name
    assert second == {
        "index": 1,
        "uuid": "GPU-1d6f",
        "name": "NVIDIA H100 80GB HBM3",
        "pci_bus_id": "00000000:3B:00.0",
        "compute_capability": [9, 0],
        "memory_total": 80 * GIB,
        "memory_free": 70 * GIB,
        "processes": [{"pid": os.getpid(), "memory": 10 * GIB}],
        "utilization": 37,
        "mig": False,
        "problem": None,
    }


def test_the_total_is_what_cuda_sees(nvml):
    nvml.write(FakeGpu(total=80 * GIB, reserved=600 * 1024**2, used=GIB))
    (gpu,) = read(nvml)["gpus"]
    assert gpu["memory_total"] == 80 * GIB - 600 * 1024**2
    assert gpu["memory_free"] == gpu["memory_total"] - GIB


def test_without_the_second_memory_query_the_total_includes_what_is_reserved(nvml):
    old = {"nvmlDeviceGetMemoryInfo_v2": FUNCTION_NOT_FOUND}
    nvml.write(FakeGpu(total=80 * GIB, reserved=GIB, used=GIB, fail=old))
    (gpu,) = read(nvml)["gpus"]
    assert (gpu["memory_total"], gpu["memory_free"], gpu["problem"]) == (80 * GIB, 78 * GIB, None)


def test_processes_have_names_where_they_can_be_seen(nvml):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    nvml.write(
        FakeGpu(
            processes=(
                FakeProcess(pid=os.getpid(), memory=3 * GIB),
                FakeProcess(pid=gone.pid, memory=None),
            )
        )
    )
    (gpu,) = read(nvml)["gpus"]
    processes = {process["pid"]: process for process in gpu["processes"]}
    assert processes[os.getpid()]["name"].startswith("py")
    assert processes[gone.pid] == {"pid": gone.pid, "memory": None, "name": None}


def test_a_process_that_computes_and_draws_is_listed_once(nvml):
    twice = [FakeProcess(pid=7, memory=GIB, graphics=graphics) for graphics in (True, False)]
    desktop = FakeProcess(pid=8, memory=GIB, graphics=True)
    nvml.write(FakeGpu(processes=(*twice, desktop)))
    (gpu,) = read(nvml)["gpus"]
    assert [(process["pid"], process["memory"]) for process in gpu["processes"]] == [(7, GIB), (8, GIB)]


def test_memory_in_use_without_any_process_means_that_nvml_does_not_tell(nvml):
    nvml.write(FakeGpu(used=20 * GIB), FakeGpu(used=100 * 1024**2))
    hidden, idle = read(nvml)["gpus"]
    assert (hidden["processes"], idle["processes"]) == (None, [])


@pytest.mark.parametrize("code", [NOT_SUPPORTED, UNKNOWN])
def test_what_is_not_needed_may_be_missing(nvml, code):
    optional = [
        "nvmlDeviceGetName",
        "nvmlDeviceGetPciInfo_v3",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
    ]
    system = ["nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2"]
    nvml.write(
        FakeGpu(uuid="GPU-5"), FakeGpu(fail=dict.fromkeys(optional, code)), fail=dict.fromkeys(system, code)
    )
    inventory = read(nvml)
    assert (inventory["driver_version"], inventory["cuda_version"]) == (None, None)
    assert inventory["problem"] is None
    healthy, bare = inventory["gpus"]
    assert healthy["name"]
    assert healthy["processes"] == []
    assert bare | {"uuid": ""} == {
        "index": 1,
        "uuid": "",
        "name": "",
        "pci_bus_id": None,
        "compute_capability": None,
        "memory_total": 40 * GIB,
        "memory_free": 40 * GIB,
        "processes": None,
        "utilization": None,
        "mig": False,
        "problem": None,
    }


@pytest.mark.parametrize(
    ("fail", "problem"),
    [
        ({"*": GPU_IS_LOST}, "the GPU is lost"),
        ({"nvmlDeviceGetUtilizationRates": GPU_IS_LOST}, "the GPU is lost"),
        ({"nvmlDeviceGetMemoryInfo_v2": RESET_REQUIRED}, "the GPU needs a reset"),
        ({"nvmlDeviceGetHandleByIndex_v2": NO_PERMISSION}, "NVML can't open it: Insufficient Permissions"),
        ({"nvmlDeviceGetUUID": UNKNOWN}, "NVML doesn't tell its UUID: Unknown Error"),
        (
            {"nvmlDeviceGetMemoryInfo_v2": NOT_SUPPORTED, "nvmlDeviceGetMemoryInfo": NOT_SUPPORTED},
            "NVML doesn't tell its memory: Not Supported",
        ),
    ],
)
def test_one_unusable_gpu_leaves_the_others_alone(nvml, fail, problem):
    nvml.write(FakeGpu(), FakeGpu(fail=fail), FakeGpu())
    inventory = read(nvml)
    assert inventory["problem"] is None
    assert [gpu["index"] for gpu in inventory["gpus"]] == [0, 1, 2]
    before, bad, after = inventory["gpus"]
    assert bad["problem"].startswith(problem)
    for gpu in (before, after):
        assert (gpu["problem"], gpu["memory_free"], gpu["processes"]) == (None, 40 * GIB, [])


def test_mig_is_shown(nvml):
    nvml.write(FakeGpu(mig=True), FakeGpu(mig=False), FakeGpu(mig=None))
    assert [gpu["mig"] for gpu in read(nvml)["gpus"]] == [True, False, False]


@pytest.mark.parametrize(
    ("code", "problem", "hint"),
    [
        (DRIVER_NOT_LOADED, "the NVIDIA driver isn't loaded", "modprobe nvidia"),
        (LIB_RM_VERSION_MISMATCH, "of different versions", "restart vllm-manager"),
        (NO_PERMISSION, "no permission", "/dev/nvidia"),
        (UNKNOWN, "NVML can't be used: Unknown Error", "nvidia-smi"),
    ],
)
def test_a_driver_that_cannot_be_used_is_the_inventorys_problem(nvml, code, problem, hint):
    nvml.write(FakeGpu(), fail={"nvmlInitWithFlags": code})
    inventory = read(nvml)
    assert inventory["gpus"] == []
    assert problem in inventory["problem"]
    assert hint in inventory["hint"]


def test_no_library_is_the_inventorys_problem(nvml):
    nvml.break_library()
    inventory = read(nvml)
    assert inventory["gpus"] == []
    assert "libnvidia-ml.so.1 isn't installed" in inventory["problem"]
    assert "--gpus all" in inventory["hint"]


def test_a_driver_without_gpus_is_the_inventorys_problem(nvml):
    nvml.write()
    inventory = read(nvml)
    assert inventory["problem"] == "the NVIDIA driver finds no GPU"
    assert inventory["driver_version"] == "570.86.15"


def test_a_failing_count_is_the_inventorys_problem(nvml):
    nvml.write(FakeGpu(), fail={"nvmlDeviceGetCount_v2": UNKNOWN})
    assert read(nvml)["problem"] == "NVML can't be used: Unknown Error"


def test_cuda_visible_devices_hides_the_others(nvml):
    nvml.write(FakeGpu(uuid="GPU-aa"), FakeGpu(uuid="GPU-bb"))
    hidden, visible = read(nvml, CUDA_VISIBLE_DEVICES="GPU-b")["gpus"]
    assert hidden["problem"] == "hidden by CUDA_VISIBLE_DEVICES=GPU-b"
    assert hidden["memory_free"] == 40 * GIB
    assert visible["problem"] is None


class Reading:
    """A process that reads whenever it is asked to."""

    def __init__(self, nvml, deadline):
        program = [sys.executable, "-c", KEEP_READING, str(deadline)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(program, env=nvml.env(), text=True, **pipes)

    def next(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def test_the_driver_may_go_and_come_back(nvml):
    with Reading(nvml, deadline=30) as reading:
        nvml.write(FakeGpu(), FakeGpu())
        assert len(reading.next()["gpus"]) == 2
        nvml.write(fail={"nvmlInitWithFlags": DRIVER_NOT_LOADED})
        assert reading.next()["problem"] == "the NVIDIA driver isn't loaded"
        nvml.write(FakeGpu(used=GIB), driver="580.65.06")
        back = reading.next()
        assert (back["driver_version"], back["problem"]) == ("580.65.06", None)
        assert [gpu["memory_free"] for gpu in back["gpus"]] == [39 * GIB]


@pytest.mark.parametrize("where", ["nvmlInitWithFlags", "nvmlDeviceGetMemoryInfo_v2"])
def test_a_hanging_driver_delays_nobody_and_its_recovery_is_seen(nvml, where):
    hanging = {"hang": (where,)} if where == "nvmlInitWithFlags" else {}
    gpu = FakeGpu(hang=() if hanging else (where,))
    with Reading(nvml, deadline=2) as reading:
        nvml.write(FakeGpu())
        assert reading.next()["gpus"][0]["problem"] is None
        nvml.write(gpu, **hanging)
        assert reading.next()["gpus"][0]["problem"] == "NVML didn't answer within 2 s"
        nvml.write(FakeGpu())
        assert reading.next()["gpus"][0]["problem"] is None


def test_a_program_can_end_while_nvml_hangs(nvml):
    nvml.write(hang=("nvmlInitWithFlags",))
    with Reading(nvml, deadline=0.1) as reading:
        assert reading.next()["problem"] == "NVML didn't answer within 0.1 s"
        reading.process.stdin.close()
        assert reading.process.wait(30) == 0
        reading.process.stdin = None  # closed: __exit__ has nothing to flush
