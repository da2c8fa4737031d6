import math
import random
from dataclasses import replace

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from vllm_manager.errors import PlacementError
from vllm_manager.placement import MARGIN, place, utilization_of
from vllm_manager.types import Gpu, GpuInventory, GpuProcess, GpuRequest, Lease, PlacedGpu, Placement

GIB = 1024**3
A100 = "NVIDIA A100-SXM4-40GB"
H100 = "NVIDIA H100 80GB HBM3"


def gpu(index, *, free=None, total=40, name=A100, **more):
    free = total if free is None else free
    return Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name=name,
        memory_total=int(total * GIB),
        memory_free=int(free * GIB),
        **more,
    )


def lease(on, memory, *, used=None, ready=False, deployment="llama"):
    return Lease(
        instance=f"{deployment}-1",
        deployment=deployment,
        gpu_uuid=f"GPU-{on}",
        memory=int(memory * GIB),
        used=None if used is None else int(used * GIB),
        ready=ready,
    )


def inventory(*gpus):
    return GpuInventory(gpus=gpus)


def ask(memory=None, count=1, **more):
    return GpuRequest(count=count, memory=None if memory is None else int(memory * GIB), **more)


def indices(request, gpus, leases=(), margin=MARGIN):
    placement = place(request, inventory(*gpus), leases, deployment="qwen", margin=margin)
    return [placed.index for placed in placement.gpus]


def refusal(request, gpus, leases=()):
    with pytest.raises(PlacementError) as caught:
        place(request, inventory(*gpus), leases, deployment="qwen")
    return caught.value


# --- what is free ------------------------------------------------------------------------------------


def test_no_gpus_asked_for_needs_no_inventory():
    broken = GpuInventory(problem="the NVIDIA driver isn't loaded")
    assert place(ask(count=0), broken, (), deployment="tiny") == Placement()


def test_a_share_is_leased_in_bytes_of_the_total():
    placement = place(ask(utilization=0.5), inventory(gpu(0)), (), deployment="qwen")
    assert placement.gpus == (PlacedGpu(index=0, uuid="GPU-0", memory=20 * GIB, memory_total=40 * GIB),)


def test_the_margin_stays_free():
    exactly = gpu(0, free=20)
    assert indices(ask(20), [exactly], margin=0) == [0]
    with pytest.raises(PlacementError):
        indices(ask(20), [exactly], margin=1)


def test_vllms_own_start_check_is_applied_to_the_byte():
    request = ask(utilization=0.92)
    total = 40 * GIB
    enough = math.ceil(0.92 * total)
    assert indices(request, [replace(gpu(0), memory_free=enough)], margin=0) == [0]
    with pytest.raises(PlacementError):
        indices(request, [replace(gpu(0), memory_free=enough - 1)], margin=0)


@pytest.mark.parametrize(
    ("held", "free_for_new"),
    [
        (lease(0, 20, used=0), 40 - 20),
        (lease(0, 20, used=15), 25 - 5),
        (lease(0, 20, used=22), 18),  # more than promised: NVML's free memory knows
        (lease(0, 20, used=None, ready=False), 40 - 20),
        (lease(0, 20, used=None, ready=True), 20),
    ],
)
def test_what_a_lease_has_not_used_yet_is_taken(held, free_for_new):
    used = held.used or 0
    now = replace(gpu(0), memory_free=40 * GIB - (held.memory if held.ready else used))
    assert indices(ask(free_for_new), [now], [held], margin=0) == [0]
    with pytest.raises(PlacementError):
        indices(replace(ask(), memory=free_for_new * GIB + 1), [now], [held], margin=0)


def test_a_lease_on_another_gpu_takes_nothing_here():
    assert indices(ask(30), [gpu(0), gpu(1)], [lease(0, 30)]) == [1]


# --- which GPU ---------------------------------------------------------------------------------------


def test_one_gpu_is_the_one_left_with_the_least_room():
    assert indices(ask(10), [gpu(0), gpu(1, free=12), gpu(2, free=11), gpu(3, free=5)]) == [2]


def test_ties_go_to_the_lower_index():
    assert indices(ask(10), [gpu(2), gpu(0), gpu(1)]) == [0]


def test_several_gpus_are_equal_ones_even_if_others_fit_tighter():
    gpus = [gpu(0, free=21), gpu(1, total=80, name=H100), gpu(2, total=80, name=H100)]
    assert indices(ask(20, count=2), gpus) == [1, 2]


def test_several_gpus_may_differ_where_no_equal_ones_have_room():
    gpus = [gpu(0), gpu(1, total=80, name=H100)]
    assert indices(ask(20, count=2), gpus) == [0, 1]


def test_several_gpus_come_in_index_order():
    assert indices(ask(10, count=2), [gpu(0, free=20), gpu(1), gpu(2, free=15)]) == [0, 2]


@pytest.mark.parametrize(
    "wanted",
    [{"indices": (1,)}, {"uuids": ("GPU-1",)}, {"name": "*h100*"}],
)
def test_indices_uuids_and_name_limit_the_choice(wanted):
    assert indices(ask(10, **wanted), [gpu(0, free=11), gpu(1, total=80, name=H100)]) == [1]


# --- refusals ----------------------------------------------------------------------------------------


def test_the_refusal_says_who_holds_what():
    stranger = GpuProcess(pid=4242, memory=int(4.25 * GIB), name="python")
    own = GpuProcess(pid=77, memory=30 * GIB, name="vm-llama-1::EngineCore")
    full = gpu(0, free=5.75, processes=(own, stranger))
    error = refusal(ask(36.75), [full], [lease(0, 30, used=30, ready=True)])
    assert error.cause == "no GPU can take qwen"
    assert error.deployment == "qwen"
    assert error.reasons == (
        f"GPU 0 ({A100}): 5.5 GiB free, 36.8 GiB needed; 30.0 GiB leased to llama, "
        "4.2 GiB held by pid 4242 (python)",
    )


def test_free_never_reads_like_needed():
    error = refusal(replace(ask(), memory=20 * GIB + 1), [gpu(0, free=20.25)])
    assert error.reasons[0].startswith(f"GPU 0 ({A100}): 20.0 GiB free, 20.1 GiB needed")


def test_a_process_of_unknown_size_is_named_too():
    error = refusal(ask(30), [gpu(0, free=5, processes=(GpuProcess(pid=9, memory=None),))])
    assert error.reasons[0].endswith("; an unknown amount held by pid 9 (unknown)")


def test_use_that_no_process_explains_is_named_too():
    error = refusal(ask(30), [gpu(0, free=5, processes=None)])
    assert error.reasons[0].endswith("; 35.0 GiB held by processes that NVML doesn't show")


def test_many_strangers_are_summed_up():
    many = tuple(GpuProcess(pid=pid, memory=pid * GIB, name="x") for pid in range(1, 6))
    (reason,) = refusal(ask(30), [gpu(0, free=25, processes=many)]).reasons
    assert "5.0 GiB held by pid 5 (x), 4.0 GiB held by pid 4 (x)" in reason
    assert reason.endswith("3.0 GiB held by pid 3 (x), and 2 more processes")


def test_every_gpu_has_a_reason():
    gpus = [
        gpu(0, mig=True),
        replace(gpu(1), name="", uuid="", problem="the GPU is lost"),
        gpu(2, name=H100),
        gpu(3, free=1),
        gpu(4),
    ]
    error = refusal(ask(10, count=2, name="*a100*", indices=(0, 1, 2, 3, 4, 9)), gpus)
    assert error.cause == "qwen needs 2 GPUs, and only 1 of 5 can take it"
    assert error.reasons == (
        f"GPU 0 ({A100}): MIG is enabled: a process can't be placed on it; "
        "disable MIG or use a GPU without it",
        "GPU 1: the GPU is lost",
        f"GPU 2 ({H100}): its name doesn't match gpus.name (*a100*)",
        f"GPU 3 ({A100}): 0.7 GiB free, 10.0 GiB needed; 39.0 GiB held by processes that NVML doesn't show",
        f"GPU 4 ({A100}): has room, but 2 GPUs are asked for",
        "GPU 9: there is no such GPU here",
    )


def test_an_unknown_uuid_is_a_reason():
    error = refusal(ask(10, uuids=("GPU-x",)), [gpu(0)])
    assert error.reasons == (
        f"GPU 0 ({A100}): GPU-0 is not in gpus.uuids",
        "GPU-x: there is no such GPU here",
    )


def test_without_a_driver_the_cause_is_the_driver():
    broken = GpuInventory(problem="the NVIDIA driver isn't loaded", hint="load it with `modprobe nvidia`")
    with pytest.raises(PlacementError) as caught:
        place(ask(10), broken, (), deployment="qwen")
    assert caught.value.cause == "qwen needs a GPU, but the NVIDIA driver isn't loaded"
    assert caught.value.hint == "load it with `modprobe nvidia`; or `gpus: none` runs it on the CPU"


# --- hints -------------------------------------------------------------------------------------------


def test_the_hint_names_a_deployment_whose_stop_would_help():
    held = [lease(0, 30, used=30), lease(0, 5, used=5, deployment="small")]
    error = refusal(ask(20), [gpu(0, free=5)], held)
    assert "stop llama;" in error.hint
    assert "small" not in error.hint


def test_the_hint_names_all_where_one_is_not_enough():
    held = [lease(0, 18, used=18), lease(0, 18, used=18, deployment="mistral")]
    assert "stop llama and mistral" in refusal(ask(39), [gpu(0, free=4)], held).hint


def test_the_hint_never_stops_the_deployment_itself():
    held = [lease(0, 30, used=30, deployment="qwen")]
    assert "stop" not in refusal(ask(20), [gpu(0, free=10)], held).hint


def test_the_hint_names_strangers_only_if_they_are_in_the_way():
    assert "free what other processes hold" in refusal(ask(20), [gpu(0, free=10)]).hint
    loading = lease(0, 30)  # what it uses is unknown, so it isn't a stranger's
    assert "other processes" not in refusal(ask(10), [gpu(0, free=10)], [loading]).hint


@pytest.mark.parametrize("request_", [ask(39), ask(utilization=0.99)])
def test_the_value_that_the_hint_names_works(request_):
    gpus = [gpu(0, free=12.3), gpu(1, free=7)]
    hint = refusal(request_, gpus).hint
    word = hint.rpartition(" to ")[2]
    if request_.memory is not None:
        assert "lower gpus.memory to" in hint
        lower = ask(float(word.removesuffix("GiB")))
    else:
        assert "lower gpu_memory_utilization to" in hint
        lower = ask(utilization=float(word))
    assert indices(lower, gpus) == [0]


def test_the_hint_names_gpus_outside_the_filter():
    assert (
        "allow it elsewhere: GPU 1 would do" in refusal(ask(20, indices=(0,)), [gpu(0, free=5), gpu(1)]).hint
    )


def test_the_hint_names_the_count_that_would_fit():
    hint = refusal(ask(20, count=4), [gpu(0), gpu(1)]).hint
    assert hint == "lower gpus.count to 2, with the parallel sizes"


def test_the_cpu_is_the_hint_where_nothing_else_helps():
    assert refusal(ask(20), [gpu(0, mig=True)]).hint == "`gpus: none` runs it on the CPU"


# --- properties --------------------------------------------------------------------------------------

sizes = st.integers(min_value=0, max_value=20 * GIB)


@st.composite
def machines(draw):
    gpus = []
    for index in range(draw(st.integers(2, 6))):
        total = draw(st.sampled_from([40, 80])) * GIB
        free = total - draw(sizes | st.integers(0, total))
        name = draw(st.sampled_from([A100, H100]))
        gpus.append(replace(gpu(index, name=name), memory_total=total, memory_free=free))
    return gpus


@st.composite
def leases_on(draw, gpus):
    return [
        Lease(
            instance=f"i{number}",
            deployment=draw(st.sampled_from(["llama", "mistral", "bge"])),
            gpu_uuid=draw(st.sampled_from(gpus)).uuid,
            memory=draw(sizes),
            used=draw(st.none() | sizes),
            ready=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 4)))
    ]


requests = st.builds(
    GpuRequest,
    count=st.integers(1, 3),
    memory=st.none() | st.integers(GIB, 80 * GIB),
    utilization=st.floats(0.05, 1),
)


def outcome(request, gpus, leases):
    try:
        return place(request, inventory(*gpus), leases, deployment="qwen")
    except PlacementError as error:
        return error.payload()


@given(st.data(), machines(), st.lists(st.tuples(requests, st.floats(0, 1)), max_size=12))
def test_leases_never_exceed_what_is_free(data, gpus, starts):
    """However far each instance is with its allocations when the next is placed."""
    free_at_first = {one.uuid: one.memory_free for one in gpus}
    leases, now = [], gpus
    for number, (request, progress) in enumerate(starts):
        try:
            placement = place(request, inventory(*now), leases, deployment="qwen")
        except PlacementError:
            continue
        for placed in placement.gpus:
            used = int(placed.memory * progress)
            told = data.draw(st.booleans())
            leases.append(
                Lease(
                    instance=f"i{number}",
                    deployment="qwen",
                    gpu_uuid=placed.uuid,
                    memory=placed.memory,
                    used=used if told else None,
                    ready=used == placed.memory,
                )
            )
            now = [replace(o, memory_free=o.memory_free - used) if o.uuid == placed.uuid else o for o in now]
        for one in now:
            promised = sum(held.memory for held in leases if held.gpu_uuid == one.uuid)
            assert promised == 0 or promised + MARGIN <= free_at_first[one.uuid]


@given(st.data(), machines(), requests, st.randoms())
def test_the_order_of_the_arguments_does_not_matter(data, gpus, request, shuffler: random.Random):
    leases = data.draw(leases_on(gpus))
    first = outcome(request, gpus, leases)
    event(f"placed: {isinstance(first, Placement)}")
    gpus, leases = list(gpus), list(leases)
    shuffler.shuffle(gpus)
    shuffler.shuffle(leases)
    assert outcome(request, gpus, leases) == first


@given(st.data(), machines(), requests)
def test_more_room_or_a_smaller_request_is_never_refused(data, gpus, request):
    leases = data.draw(leases_on(gpus))
    before = outcome(request, gpus, leases)
    roomier = [
        replace(one, memory_free=data.draw(st.integers(one.memory_free, one.memory_total))) for one in gpus
    ]
    fewer = data.draw(st.lists(st.sampled_from(leases), unique=True)) if leases else []
    if request.memory is None:
        smaller = replace(request, utilization=data.draw(st.floats(0.01, request.utilization)))
    else:
        smaller = replace(request, memory=data.draw(st.integers(1, request.memory)))
    smaller = replace(smaller, count=data.draw(st.integers(1, request.count)))
    after = outcome(smaller, roomier, fewer)
    event(f"placed before: {isinstance(before, Placement)}")
    assert isinstance(after, Placement) or not isinstance(before, Placement)


@given(st.integers(GIB, 300 * GIB), st.data())
def test_the_utilization_keeps_the_lease(total, data):
    memory = data.draw(st.integers(0, total))
    utilization = utilization_of(PlacedGpu(index=0, uuid="GPU-0", memory=memory, memory_total=total))
    assert math.ceil(utilization * total) <= memory  # what vLLM asks for
    assert utilization == round(utilization, 4)
    assert utilization > memory / total - 0.00021


def test_the_utilization_keeps_the_lease_where_the_float_rounds_up():
    total, memory = 89_989_000_000, 27_149_681_300
    assert math.ceil(0.3017 * total) == memory + 1
    assert utilization_of(PlacedGpu(index=0, uuid="GPU-0", memory=memory, memory_total=total)) == 0.3016


@given(st.integers(GIB, 300 * GIB), st.integers(1, 10_000))
def test_a_utilization_of_4_decimals_comes_back_as_it_was(total, steps):
    asked = steps / 10_000
    one = replace(gpu(0), memory_total=total, memory_free=total)
    (placed,) = place(ask(utilization=asked), inventory(one), (), deployment="qwen", margin=0).gpus
    assert utilization_of(placed) == asked
