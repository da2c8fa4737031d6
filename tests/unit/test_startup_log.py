"""The logs under data/logs are recorded from vLLM 0.32.0; start-gpu.log has its exact words in its order."""

import re
from datetime import datetime
from pathlib import Path

import pytest

from vllm_manager.cli.progress import step_durations
from vllm_manager.startup_log import StartupLog
from vllm_manager.types import Phase, Step, StepName

LOGS = Path(__file__).parents[1] / "data" / "logs"

GPU = (LOGS.parent / "start-gpu.log").read_text()


def replay(text: str) -> tuple[StartupLog, list[Step]]:
    """Feed a log with the times of its own lines; the process began 8 s before the first of them."""
    log, seen, at, start = StartupLog(), [], 0.0, None
    for line in text.splitlines():
        if stamp := re.search(r" \d\d-\d\d (\d\d:\d\d:\d\d) ", line):
            moment = datetime.strptime(stamp[1], "%H:%M:%S").timestamp()
            start = moment - 8 if start is None else start
            at = moment - start
        if (step := log.feed(line, at)) is not None:
            assert step == log.current
            seen.append(step)
    return log, seen


def recorded(name: str) -> str:
    return (LOGS / f"{name}.log").read_text()


def durations_of(log: StartupLog, end: float) -> list[tuple[StepName, float]]:
    return [(step.name, seconds) for step, seconds in step_durations(log.steps, end)]


def names(log: StartupLog) -> list[str]:
    return [step.name.value for step in log.steps]


def test_start_begins_with_the_import_before_any_line():
    log = StartupLog()
    assert log.steps == (Step(name=StepName.IMPORT, began=0.0),)
    assert log.phase_hint is Phase.STARTING
    assert not log.http_started
    assert (log.supported_tasks, log.kv_cache_tokens, log.max_model_len, log.weights_seconds) == (
        (),
        None,
        None,
        None,
    )


def test_steps_of_a_recorded_eager_start():
    log, _ = replay(recorded("start-eager"))
    assert [(step.name.value, step.began) for step in log.steps] == [
        ("import", 0.0),
        ("config", 8.0),
        ("engine", 22.0),
        ("distributed", 29.0),
        ("weights", 29.0),
        ("kv-cache", 30.0),
        ("http", 33.0),
    ]
    assert log.http_started
    assert log.supported_tasks == ("generate",)
    assert (log.kv_cache_tokens, log.max_model_len, log.weights_seconds) == (2_097_152, 512, None)


def test_steps_of_a_recorded_compiled_start():
    log, seen = replay(recorded("start-compiled"))
    assert names(log) == [
        "import", "config", "engine", "distributed", "weights", "compile", "profile", "kv-cache", "http",
    ]  # fmt: skip
    assert dict(durations_of(log, 60.0))[StepName.COMPILE] == 26.0
    assert [step.detail for step in seen if step.name is StepName.WEIGHTS] == [
        None,
        "0/4 shards",
        "4/4 shards",
    ]
    assert log.weights_seconds == 0.01


def test_steps_of_a_start_on_two_gpus():
    log, seen = replay(GPU)
    assert names(log) == [
        "import", "config", "engine", "distributed", "weights",
        "compile", "profile", "kv-cache", "graphs", "http",
    ]  # fmt: skip
    assert [step.progress for step in seen if step.name is StepName.WEIGHTS] == [None, 0.0, 0.75, 1.0]
    assert [(step.progress, step.detail) for step in seen if step.name is StepName.GRAPHS] == [
        (0.0, "0/51 CUDA graphs (mixed prefill-decode, PIECEWISE)"),
        (1.0, "51/51 CUDA graphs (mixed prefill-decode, PIECEWISE)"),
        (pytest.approx(0.4286, abs=1e-4), "15/35 CUDA graphs (decode, FULL)"),
    ]
    assert next(step for step in log.steps if step.name is StepName.KV_CACHE).detail == "492,432 tokens"


def test_facts_of_a_start_on_two_gpus():
    log, _ = replay(GPU)
    assert log.supported_tasks == ("generate", "transcription")
    assert log.kv_cache_tokens == 492_432
    assert log.max_model_len == 65536  # what vLLM fitted, not what it began with
    assert log.weights_seconds == 4.9  # the slowest worker's
    assert log.http_started


def test_durations_add_up_to_the_whole_start():
    log, _ = replay(GPU)
    durations = durations_of(log, 70.0)
    assert dict(durations)[StepName.COMPILE] == 15.0
    assert durations[0] == (StepName.IMPORT, 8.0)
    assert sum(seconds for _, seconds in durations) == 70.0


def test_line_of_an_earlier_step_changes_nothing():
    log, _ = replay(GPU)
    before = log.steps
    for line in GPU.splitlines():
        assert log.feed(line, 99.0) is None
    assert log.steps == before


def test_phase_is_loading_from_the_weights_on():
    log = StartupLog()
    for line in GPU.splitlines():
        log.feed(line, 1.0)
        steps = {step.name for step in log.steps}
        assert log.phase_hint is (Phase.LOADING if StepName.WEIGHTS in steps else Phase.STARTING)
    assert log.phase_hint is Phase.LOADING


@pytest.mark.parametrize(
    "line",
    [
        "INFO 06-01 10:00:00 [gpu_model_runner.py:1595] Starting to load model m...",
        "INFO 06-01 10:00:00 model_runner.py:1110] Starting to load model m...",
        "(EngineCore_DP0 pid=272) INFO 06-01 10:00:00 [gpu/runner.py:9999] Loading model from scratch...",
        "Loading pt checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]",
        "(Worker_TP0 pid=272) Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]",
    ],
)
def test_message_counts_and_not_its_prefix(line):
    assert StartupLog().feed(line, 30.0).name is StepName.WEIGHTS


def test_last_state_of_a_line_with_carriage_returns_counts():
    log = StartupLog()
    log.feed("(EngineCore pid=2) INFO 11-20 12:00:58 [kv.py:2] GPU KV cache size: 8 tokens", 1.0)
    bar = "Capturing CUDA graphs (decode, FULL): {}%|##   | {}/4 [00:00<00:00]"
    step = log.feed("\r".join(["", bar.format(" 25", 1), bar.format(" 50", 2)]) + "\r\n", 2.0)
    assert step == Step(
        name=StepName.GRAPHS, began=2.0, progress=0.5, detail="2/4 CUDA graphs (decode, FULL)"
    )


def test_progress_of_one_bar_never_falls():
    """A draft model's weights are read after the model's, with the same words."""
    log = StartupLog()
    log.feed("Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:04<00:00]", 1.0)
    assert log.feed("Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?]", 2.0) is None
    assert log.current.detail == "4/4 shards"


def test_same_progress_twice_is_told_once():
    log = StartupLog()
    line = "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:04<00:00]"
    assert log.feed(line, 1.0) is not None
    assert log.feed(line, 2.0) is None


def test_graphs_captured_before_the_kv_cache_has_its_size_are_profiling():
    log = StartupLog()
    log.feed("torch.compile took 14.90 s in total", 1.0)
    step = log.feed("Capturing CUDA graphs (FULL):  50%|#####     | 1/2 [00:00<00:00]", 2.0)
    assert (step.name, step.began, step.progress) == (StepName.PROFILE, 1.0, 0.5)
    log.feed("Available KV cache memory: 60.11 GiB", 3.0)
    assert log.feed("Capturing CUDA graphs (FULL):   0%|     | 0/35 [00:00<?]", 4.0).name is StepName.GRAPHS


def test_smallest_kv_cache_of_several_engines_counts():
    log = StartupLog()
    for engine, tokens in enumerate(("40,000", "30,000", "50,000")):
        log.feed(
            f"(EngineCore_DP{engine} pid=2) INFO 11-20 12:00:58 [kv.py:1] GPU KV cache size: {tokens} tokens",
            1.0,
        )
    assert log.kv_cache_tokens == 30_000
    assert log.current.detail == "30,000 tokens"


def test_pooling_tasks_and_the_words_of_older_versions_are_read():
    for line, tasks in (
        ("Supported tasks: ['token_embed', 'embed']", ("token_embed", "embed")),
        ("Supported_tasks: ['generate']", ("generate",)),
        ("Supported tasks: ('classify',)", ("classify",)),
    ):
        log = StartupLog()
        log.feed(f"(APIServer pid=1) INFO 11-20 12:01:07 [entry.py:136] {line}", 1.0)
        assert log.supported_tasks == tasks


def test_tasks_named_in_an_error_are_not_the_models():
    log = StartupLog()
    log.feed("ValueError: The model does not support it. Supported tasks: ['generate']", 1.0)
    assert log.supported_tasks == ()


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=1) INFO 11-20 12:01:07 [entry.py:140] Starting vLLM server on http://127.0.0.1:8000",
        "(APIServer pid=1) INFO 06-01 10:00:00 [api.py:1] Starting vLLM API server 0 on http://0.0.0.0:8000",
        "INFO:     Application startup complete.",
    ],
)
def test_http_is_started_at_its_first_sign(line):
    log = StartupLog()
    log.feed(line, 1.0)
    assert log.http_started


def test_warm_up_is_entered_by_hand_and_once():
    log, _ = replay(GPU)
    assert log.begin(StepName.WARM_UP, 68.5) == Step(name=StepName.WARM_UP, began=68.5)
    assert log.begin(StepName.WARM_UP, 69.0) is None
    assert log.begin(StepName.GRAPHS, 69.0) is None
    assert durations_of(log, 70.0)[-1] == (StepName.WARM_UP, 1.5)


@pytest.mark.parametrize(
    "line", ["", "\r\n", "(", 'INFO:     127.0.0.1:1 - "GET / HTTP/1.1" 200 OK', "\x00�"]
)
def test_other_lines_tell_nothing(line):
    log = StartupLog()
    assert log.feed(line, 1.0) is None
    assert len(log.steps) == 1


def test_recorded_failures_stop_at_the_step_that_failed():
    reached = {
        "unknown-flag": StepName.IMPORT,
        "port-in-use": StepName.CONFIG,
        "tensor-parallel-heads": StepName.CONFIG,
        "weights-missing": StepName.WEIGHTS,
        "tool-parser-tokenizer": StepName.HTTP,
    }
    assert {name: replay(recorded(name))[0].current.name for name in reached} == reached
