"""GPUs from the command line: what is shown, where deployments go, what vLLM is told. NVML is a fake."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box, eventually

from tests.fakes.fake_engine import make_fake_engine
from tests.fakes.nvml import GIB, GPU_IS_LOST, FakeGpu, FakeNvml, FakeProcess


@pytest.fixture(scope="module")
def cuda_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an engine whose fake vLLM behaves as the CUDA build."""
    return make_fake_engine(tmp_path_factory.mktemp("engine") / "cuda", version="0.32.0")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


def box_with(nvml: FakeNvml, engine: Path) -> Box:
    """A machine whose GPUs are those of ``nvml``."""
    made = Box(engine)
    made.env |= {name: nvml.env()[name] for name in ("LD_LIBRARY_PATH", "FAKE_NVML")}
    return made


@pytest.fixture(scope="module")
def shared_box(cuda_engine: Path, nvml: FakeNvml) -> Iterator[Box]:
    """In place of the one without GPUs."""
    with box_with(nvml, cuda_engine) as made:
        made.serve()
        yield made


def told(box: Box, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """The environment and the flags that vLLM was started with."""
    process = Path("/proc", str(box.tree(name)["main"]))
    environ = process.joinpath("environ").read_bytes().decode().split("\0")
    words = process.joinpath("cmdline").read_bytes().decode().split("\0")
    flags = {word: after for word, after in itertools.pairwise(words) if word.startswith("--")}
    return dict(line.split("=", 1) for line in environ if "=" in line), flags


def on(gpus: Any = None, **fields: Any) -> dict[str, Any]:
    """Fields of a manifest for GPUs."""
    return {"gpus": {"count": 1} if gpus is None else gpus} | fields


def test_gpus_without_a_driver(cuda_engine: Path, tmp_path: Path) -> None:
    nvml = FakeNvml(tmp_path)
    nvml.break_library()
    with box_with(nvml, cuda_engine) as box:
        done = box.run("gpus")
        assert done.stdout.startswith("no GPUs: ")
        assert "hint:" in done.stderr
        assert json.loads(box.run("gpus", "--json").stdout)["inventory"]["problem"]
        refused = box.run("up", box.manifest(**on()), exits=3)
        assert "tiny" in refused.stderr
        assert "hint:" in refused.stderr
        assert box.ps() == {}


def test_gpus_shows_who_holds_what(box: Box, nvml: FakeNvml) -> None:
    nvml.write(FakeGpu(processes=(FakeProcess(pid=1, memory=4 * GIB),)), FakeGpu(fail={"*": GPU_IS_LOST}))
    table = box.run("gpus").stdout.splitlines()
    assert table[0] == "driver 570.86.15, CUDA up to 12.8"
    assert "36.0 of 40.0 GiB" in table[2]
    assert re.search(r"pid 1 \(.+\) 4\.0 GiB", table[2])
    assert "lost" in table[3]

    box.run("up", box.manifest(**on({"count": 1, "memory": "10GiB"})))
    assert "tiny 10.0 GiB" in box.run("gpus").stdout
    held = json.loads(box.run("gpus", "--json").stdout)
    assert [(lease["deployment"], lease["memory"]) for lease in held["leases"]] == [("tiny", 10 * GIB)]
    box.run("down", "tiny")
    assert json.loads(box.run("gpus", "--json").stdout)["leases"] == []


def test_no_gpu_can_take_it(box: Box, nvml: FakeNvml) -> None:
    stray = FakeProcess(pid=1, memory=30 * GIB)
    nvml.write(FakeGpu(processes=(stray,)), FakeGpu(fail={"*": GPU_IS_LOST}), FakeGpu(mig=True))
    refused = box.run("up", box.manifest(**on({"count": 1, "memory": "20GiB"})), exits=3)
    reasons = [line for line in refused.stderr.splitlines() if line.startswith("  ")]
    assert len(reasons) == 3
    assert "GPU 0" in reasons[0]
    assert re.search(r"free, 20\.0 GiB needed; 30\.0 GiB held by pid 1 ", reasons[0])
    assert "GPU 1" in reasons[1]
    assert "MIG" in reasons[2]
    assert box.ps() == {}


def test_vllm_is_told_its_gpus_and_its_share(box: Box, nvml: FakeNvml) -> None:
    nvml.write(*(FakeGpu() for _ in range(4)))
    box.run("up", box.manifest("one", **on({"count": 1, "memory": "10GiB", "indices": [2]})))
    environ, flags = told(box, "one")
    assert (environ["CUDA_VISIBLE_DEVICES"], environ["CUDA_DEVICE_ORDER"]) == ("2", "PCI_BUS_ID")
    assert flags["--gpu-memory-utilization"] == "0.25"
    assert box.ps()["one"]["gpus"] == [2]
    assert box.run("ps").stdout.splitlines()[1].split()[3] == "2"

    box.run("up", box.manifest("two", **on({}, tensor_parallel_size=2, gpu_memory_utilization=0.5)))
    environ, flags = told(box, "two")
    assert len(environ["CUDA_VISIBLE_DEVICES"].split(",")) == 2
    assert (flags["--gpu-memory-utilization"], flags["--tensor-parallel-size"]) == ("0.5", "2")
    assert {"Worker_TP0", "Worker_TP1"} <= set(box.tree("two"))


def test_the_supervisors_own_cuda_visible_devices_limits_it(cuda_engine: Path, nvml: FakeNvml) -> None:
    nvml.write(FakeGpu(), FakeGpu())
    with box_with(nvml, cuda_engine) as box:
        box.env["CUDA_VISIBLE_DEVICES"] = "1"
        box.run("up", box.manifest(**on()))
        assert told(box, "tiny")[0]["CUDA_VISIBLE_DEVICES"] == "1"
        refused = box.run("up", box.manifest("other", **on({"count": 1, "indices": [0]})), exits=3)
        assert "hidden by CUDA_VISIBLE_DEVICES=1" in refused.stderr


def test_a_gpu_is_never_given_out_twice(box: Box, nvml: FakeNvml) -> None:
    nvml.write(FakeGpu(), FakeGpu())
    manifests = [box.manifest(name, **on({"count": 1, "memory": "25GiB"})) for name in ("cat", "dog", "emu")]
    ups = [box.start("up", manifest) for manifest in manifests]
    codes = [up.wait() for up in ups]
    # Three at once on two GPUs: one is refused before it starts, or as soon as its turn comes.
    assert sorted(codes) == [0, 0, 3], [up.err for up in ups]
    loser = next(up for up, code in zip(ups, codes, strict=True) if code)
    assert "25.0 GiB needed" in loser.err
    ready = {name: status for name, status in box.ps().items() if status["endpoint"]["phase"] == "ready"}
    assert sorted(status["gpus"] for status in ready.values()) == [[0], [1]]

    refused = box.run("up", box.manifest("fox", **on({"count": 1, "memory": "20GiB"})), exits=3)
    assert all(name in refused.stderr for name in ready)
    box.run("down", "--all")
    box.run("up", box.manifest("fox", **on({"count": 2, "memory": "39GiB"}, tensor_parallel_size=2)))


def test_starts_on_one_gpu_follow_each_other(box: Box, nvml: FakeNvml) -> None:
    nvml.write(FakeGpu(), FakeGpu())
    share = {"count": 1, "memory": "10GiB"}
    box.run("up", "-d", box.manifest("slow", fake={"stall_at": "graphs"}, **on(share | {"indices": [0]})))
    eventually(lambda: "EngineCore" in box.tree("slow"), "it starts")
    box.run("up", "-d", box.manifest("next", **on(share | {"indices": [0]})))
    # Another GPU's turn is not theirs, and neither waits for it.
    box.run("up", box.manifest("beside", **on(share | {"indices": [1]})))
    assert box.phase("next") == "pending"
    assert box.run("ps").stdout.count("pending") == 1
    box.run("down", "--now", "slow")
    assert "next is ready" in box.run("wait", "next").stdout


def test_leases_outlive_the_supervisor(box: Box, nvml: FakeNvml) -> None:
    nvml.write(FakeGpu())
    manifest = box.manifest(**on({"count": 1, "memory": "30GiB"}))
    box.run("up", manifest)
    box.kill_supervisor()
    assert box.ps(exits=5)["tiny"]["gpus"] == [0]
    box.serve()
    refused = box.run("up", box.manifest("other", **on({"count": 1, "memory": "20GiB"})), exits=3)
    assert "tiny" in refused.stderr
