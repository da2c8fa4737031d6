import json

import pytest

from vllm_manager.codec import decode, encode
from vllm_manager.store import DeploymentRecord, InstanceRecord
from vllm_manager.types import (
    Device,
    Engine,
    Gpu,
    GpuProcess,
    Handle,
    Phase,
    PlacedGpu,
    Placement,
    Step,
    StepName,
    Task,
)

RECORD = InstanceRecord(
    instance="tiny-0a1b2c3d",
    deployment="tiny",
    fingerprint="f",
    phase=Phase.READY,
    host="127.0.0.1",
    port=8000,
    cwd="/run/x",
    tmp="/run/x",
    log="/log",
    title="vm-tiny-0a1b2c3d",
    engine=Engine(name="cpu-0.32.0", executable="/e/bin/vllm", version="0.32.0+cpu", device=Device.CPU),
    placement=Placement(gpus=(PlacedGpu(index=1, uuid="GPU-1", memory=3, memory_total=4),)),
    handle=Handle(launcher="process", version=1, data={"pid": 1}),
    steps=(Step(name=StepName.WEIGHTS, began=1.5, progress=0.5, detail="1/2 shards"),),
    task=Task.CHAT,
    restarts_at=(1.0, 2.0),
)


def through_json(cls, value):
    return decode(cls, json.loads(json.dumps(encode(value))))


def test_what_was_written_is_read_back_equal():
    assert through_json(InstanceRecord, RECORD) == RECORD


def test_tuples_of_fixed_length_and_optional_tuples():
    gpu = Gpu(
        index=0,
        uuid="GPU-0",
        name="A",
        compute_capability=(9, 0),
        processes=(GpuProcess(pid=1, memory=None),),
    )
    assert through_json(Gpu, gpu) == gpu


def test_an_unknown_field_is_ignored():
    data = encode(DeploymentRecord(name="a", manifest={}, source="s")) | {"from_the_future": 1}
    assert decode(DeploymentRecord, data).name == "a"


def test_a_whole_number_is_a_float_too():
    assert decode(Step, {"name": "weights", "began": 1}).began == 1.0


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"name": "a"},
        {"name": 1, "manifest": {}, "source": "s"},
        {"name": "a", "manifest": [], "source": "s"},
        {"name": "a", "manifest": {}, "source": 1},
    ],
)
def test_what_is_no_record_is_a_value_error(data):
    with pytest.raises(ValueError, match="DeploymentRecord"):
        decode(DeploymentRecord, data)


def test_an_unknown_phase_is_a_value_error():
    with pytest.raises(ValueError, match="levitating"):
        decode(InstanceRecord, encode(RECORD) | {"phase": "levitating"})
