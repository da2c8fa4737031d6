import asyncio
import threading
from dataclasses import replace

import pytest

from vllm_manager.gpus import GpuReader, used_by
from vllm_manager.gpus.visibility import mark_hidden
from vllm_manager.types import Gpu, GpuInventory, GpuProcess

GPUS = (
    Gpu(index=0, uuid="GPU-aaaa1111", name="A100", memory_free=5),
    Gpu(index=1, uuid="GPU-aaaa2222", name="A100", memory_free=6),
    Gpu(index=2, uuid="GPU-bbbb3333", name="A100", memory_free=7),
)
PATIENCE = 10  # seconds until a test gives up waiting


# --- CUDA_VISIBLE_DEVICES ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "visible"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2, 0", [0, 2]),
        ("GPU-aaaa2222", [1]),
        ("GPU-b,0", [0, 2]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,7,1", [0]),  # CUDA ignores what follows an entry that names none
        ("GPU-aaaa,2", []),  # the beginning of two UUIDs names none
        ("1,MIG-5f1c,2", [1]),
    ],
)
def test_cuda_visible_devices_leaves_only_what_it_names(setting, visible):
    marked = mark_hidden(GPUS, setting)
    assert [gpu.index for gpu in marked if gpu.problem is None] == visible
    hidden = {gpu.problem for gpu in marked if gpu.problem is not None}
    assert hidden <= {f"hidden by CUDA_VISIBLE_DEVICES={setting}"}


def test_a_hidden_gpu_keeps_the_problem_it_has():
    lost = replace(GPUS[0], uuid="", problem="the GPU is lost")
    assert mark_hidden([lost, *GPUS[1:]], "1")[0] == lost


# --- what an instance uses ---------------------------------------------------------------------------


def test_use_is_summed_over_an_instances_processes_on_each_gpu():
    first = (GpuProcess(pid=1, memory=10), GpuProcess(pid=2, memory=20), GpuProcess(pid=3, memory=40))
    gpus = (replace(GPUS[0], processes=first), replace(GPUS[1], processes=()), GPUS[2])
    used = used_by(GpuInventory(gpus=gpus), {1, 3})
    assert used == {"GPU-aaaa1111": 50, "GPU-aaaa2222": 0, "GPU-bbbb3333": None}


def test_use_is_unknown_where_one_of_the_processes_does_not_tell():
    mixed = (GpuProcess(pid=1, memory=10), GpuProcess(pid=2, memory=None))
    gpus = GpuInventory(gpus=(replace(GPUS[0], processes=mixed),))
    assert used_by(gpus, {1, 2}) == {"GPU-aaaa1111": None}
    assert used_by(gpus, {1}) == {"GPU-aaaa1111": 10}


def test_a_gpu_without_a_uuid_is_left_out():
    assert used_by(GpuInventory(gpus=(replace(GPUS[0], uuid=""),)), {1}) == {}


# --- reading -----------------------------------------------------------------------------------------


class Driver:
    """A query that answers at once until it is told to hang."""

    def __init__(self):
        self.calls = 0
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self):
        self.calls += 1
        if not self.answers.wait(PATIENCE):
            raise AssertionError("the test never let the driver answer")
        return GpuInventory(gpus=GPUS, driver_version=str(self.calls))


def test_each_reading_asks_anew():
    async def scenario():
        reader = GpuReader(Driver())
        return [(await reader.read()).driver_version for _ in range(3)]

    assert asyncio.run(scenario()) == ["1", "2", "3"]


def test_simultaneous_readings_share_one_query():
    driver = Driver()
    driver.answers.clear()

    async def scenario():
        reader = GpuReader(driver)
        readings = [asyncio.create_task(reader.read()) for _ in range(5)]
        await asyncio.sleep(0)  # all of them wait now
        driver.answers.set()
        return await asyncio.gather(*readings)

    assert len(set(asyncio.run(scenario()))) == 1
    assert driver.calls == 1


def test_a_hang_marks_every_gpu_and_starts_no_second_query():
    driver = Driver()

    async def scenario():
        reader = GpuReader(driver, deadline=0.3)
        await reader.read()
        driver.answers.clear()
        late = [await reader.read() for _ in range(2)]
        assert driver.calls == 2
        driver.answers.set()
        return late, await reader.read()

    late, after = asyncio.run(scenario())
    for inventory in late:
        assert [gpu.uuid for gpu in inventory.gpus] == [gpu.uuid for gpu in GPUS]
        assert {gpu.problem for gpu in inventory.gpus} == {"NVML didn't answer within 0.3 s"}
        assert "nvidia-smi" in inventory.hint
    assert after.gpus == GPUS


def test_a_hang_at_the_first_reading_is_the_inventorys_problem():
    driver = Driver()
    driver.answers.clear()

    async def scenario():
        return await GpuReader(driver, deadline=0.05).read()

    inventory = asyncio.run(scenario())
    driver.answers.set()
    assert inventory.gpus == ()
    assert inventory.problem == "NVML didn't answer within 0.05 s"


def test_a_cancelled_reading_leaves_the_query_to_the_others():
    driver = Driver()
    driver.answers.clear()

    async def scenario():
        reader = GpuReader(driver)
        first, second = asyncio.create_task(reader.read()), asyncio.create_task(reader.read())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
        driver.answers.set()
        assert first.cancelled()
        return await second

    assert asyncio.run(scenario()).gpus == GPUS
    assert driver.calls == 1


def test_what_the_query_raises_reaches_the_caller():
    def broken():
        raise ValueError("a bug")

    async def scenario():
        await GpuReader(broken).read()

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(scenario())
