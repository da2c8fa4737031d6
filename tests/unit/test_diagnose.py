"""Logs under tests/data/logs are recorded from vLLM 0.32.0 (CPU build), with neutral paths.

What needs a GPU is built around vLLM's exact words (failures.txt), in the shape of the recorded logs.
"""

import time
from pathlib import Path
from string import Template

import pytest

from vllm_manager.diagnose import CAUSES, diagnose

LOGS = Path(__file__).parents[1] / "data" / "logs"


def recorded(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text().splitlines()


# --- the shapes in which vLLM reports a failure -------------------------------------------------------

BEGINNING = """\
(APIServer pid=7) INFO 11-21 09:30:04 [api_utils.py:286] non-default args: {'model': '/srv/models/m'}
(APIServer pid=7) WARNING 11-21 09:30:04 [system_utils.py:255] Found ulimit of 20000 and failed to \
automatically increase with error current limit exceeds maximum limit. This can cause fd limit errors like \
`OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n
(APIServer pid=7) INFO 11-21 09:30:12 [model.py:733] Resolved architecture: LlamaForCausalLM
"""
API_TRACEBACK = """\
Traceback (most recent call last):
  File "/opt/vllm/bin/vllm", line 8, in <module>
    sys.exit(main())
             ^^^^^^
  File "/opt/vllm/lib/python3.12/site-packages/vllm/entrypoints/cli/main.py", line 120, in main
    args.dispatch_function(args)
"""
ENDING = (
    "RuntimeError: Engine core initialization failed. See root cause above. "
    "Failed core proc(s): {'EngineCore': 1}"
)


def tagged(process: str, where: str, text: str) -> str:
    prefix = f"({process} pid=12) ERROR 11-21 09:39:06 [{where}] "
    return "".join(prefix + line + "\n" for line in text.splitlines())


def raw(text: str) -> list[str]:
    return text.splitlines()


def argparse(text: str) -> list[str]:
    return f"usage: vllm serve [model_tag] [options]\nvllm serve: error: {text}\n".splitlines()


def api(text: str) -> list[str]:
    return (BEGINNING + API_TRACEBACK + text).splitlines()


def pydantic(text: str) -> list[str]:
    return api(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        f"  Value error, {text} [type=value_error, input_value=ArgsKwargs((), {{'seed': 0}})]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )


def engine(text: str) -> list[str]:
    """As with one GPU: the worker's code runs in the engine core."""
    core = tagged("EngineCore", "core.py:1510", f"EngineCore failed to start.\n{API_TRACEBACK}{text}")
    return (
        BEGINNING + core + "Process EngineCore:\n" + API_TRACEBACK + text + "\n" + API_TRACEBACK + ENDING
    ).splitlines()


def worker(text: str) -> list[str]:
    """As with several GPUs."""
    failed = tagged(
        "Worker_TP0", "multiproc_executor.py:953", f"WorkerProc failed to start.\n{API_TRACEBACK}{text}"
    )
    wrapper = (
        "Exception: WorkerProc initialization failed due to an exception in a background process. "
        "See stack trace for root cause."
    )
    core = tagged("EngineCore", "core.py:1510", f"EngineCore failed to start.\n{API_TRACEBACK}{wrapper}")
    return (
        BEGINNING
        + failed
        + core
        + "Process EngineCore:\n"
        + API_TRACEBACK
        + wrapper
        + "\n"
        + API_TRACEBACK
        + ENDING
    ).splitlines()


def running(text: str) -> list[str]:
    """As after READY: the engine dies, and the API server ends with exit status 0."""
    dead = (
        "AsyncLLM output_handler failed.\nTraceback (most recent call last):\n"
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
        "See stack trace (above) for the root cause."
    )
    core = tagged(
        "EngineCore", "core.py:1512", f"EngineCore encountered a fatal error.\n{API_TRACEBACK}{text}"
    )
    return (
        BEGINNING
        + "INFO:     Application startup complete.\n"
        + 'INFO:     127.0.0.1:38878 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
        + (core if text else "")
        + tagged("APIServer", "async_llm.py:906", dead)
        + "INFO:     Shutting down\nINFO:     Finished server process [7]\n"
    ).splitlines()


# --- every recognised cause ---------------------------------------------------------------------------

# (recorded log, code, what the hint must hold, permanent)
RECORDED = [
    ("unknown-flag", "flag-unknown", "--swap-space 4", True),
    ("invalid-choice", "flag-value", "--dtype to one of: 'auto', 'bfloat16'", True),
    ("tool-parser-missing", "tool-parser-missing", "tool_call_parser", True),
    ("tool-parser-unknown", "tool-parser-unknown", "apertus,cohere_command3", True),
    ("tool-parser-tokenizer", "tool-parser-tokenizer", "deepseek_v3", True),
    ("reasoning-parser-unknown", "reasoning-parser-unknown", "deepseek_r1", True),
    ("chat-template-missing", "chat-template-missing", "chat_template", True),
    ("architecture-unsupported", "architecture-unsupported", "FooForCausalLM", True),
    ("model-path-missing", "model-missing", "/srv/models/nope", True),
    ("weights-missing", "weights-missing", "/srv/models/empty", True),
    ("max-model-len-over-model", "max-model-len", "max_model_len: 2048", True),
    ("tensor-parallel-heads", "tensor-parallel-heads", "divisor of 2", True),
    ("quantization-unknown", "quantization-unknown", "'awq'", True),
    ("lora-missing", "lora-missing", "lora-modules", True),
    ("port-in-use", "port-in-use", "port", False),
    ("engine-death", "engine-killed", "dmesg", False),
]


def built():
    """The cases of failures.txt: (lines, code, what the hint must hold, permanent)."""
    shapes = {
        function.__name__: function for function in (raw, argparse, api, pydantic, engine, worker, running)
    }
    sections = (LOGS.parent / "failures.txt").read_text().split("\n== ")[1:]
    for section in sections:
        head, _, text = section.partition("\n")
        code, kind, shape, hint = head.split(" | ")
        yield shapes[shape](text.strip("\n")), code, hint, kind == "permanent"


BUILT = list(built())


@pytest.mark.parametrize(("log", "code", "hint", "permanent"), RECORDED, ids=[case[0] for case in RECORDED])
def test_recorded_failure_is_recognised(log, code, hint, permanent):
    diagnosis = diagnose(recorded(log), exit_status=1)
    assert (diagnosis.code, diagnosis.permanent) == (code, permanent)
    assert hint in diagnosis.hint


@pytest.mark.parametrize(
    ("lines", "code", "hint", "permanent"), BUILT, ids=[f"{i}-{case[1]}" for i, case in enumerate(BUILT)]
)
def test_failure_is_recognised(lines, code, hint, permanent):
    diagnosis = diagnose(lines, exit_status=1)
    assert (diagnosis.code, diagnosis.permanent) == (code, permanent)
    assert hint in diagnosis.hint


def test_every_cause_of_the_tables_has_a_case():
    assert {cause.code for cause in CAUSES} == {case[1] for case in RECORDED + BUILT}


def test_texts_use_only_what_their_pattern_captures():
    for cause in CAUSES:
        used = {*Template(cause.cause).get_identifiers(), *Template(cause.hint).get_identifiers()}
        assert used <= set(cause.pattern.groupindex), cause.code


def test_texts_are_one_line():
    for lines, *_ in BUILT:
        diagnosis = diagnose(lines)
        assert "\n" not in diagnosis.cause + diagnosis.hint + diagnosis.exception


# --- which line is believed ---------------------------------------------------------------------------


def test_worker_is_believed_before_the_wrappers_that_follow_it():
    assert diagnose(recorded("weights-missing")).exception == (
        "RuntimeError: Cannot find any model weights with `/srv/models/empty`"
    )


def test_worker_is_believed_before_the_engine_core():
    lines = worker("RuntimeError: root") + engine("RuntimeError: consequence")
    assert diagnose(lines).exception == "RuntimeError: root"


def test_engine_core_is_believed_before_untagged_tracebacks():
    assert (
        diagnose(engine("RuntimeError: root") + api("RuntimeError: consequence")).cause
        == "RuntimeError: root"
    )


def test_last_exception_of_a_process_is_believed():
    assert diagnose(api("RuntimeError: handled") + api("KeyError: 'x'")).cause == "KeyError: 'x'"


def test_tags_of_older_versions_without_a_level_are_understood():
    lines = [
        "(EngineCore_DP0 pid=272) Process EngineCore_DP0:",
        "(EngineCore_DP0 pid=272) Traceback (most recent call last):",
        "(EngineCore_DP0 pid=272) RuntimeError: root",
        "(APIServer pid=1) Traceback (most recent call last):",
        f"(APIServer pid=1) {ENDING}",
    ]
    assert diagnose(lines).exception == "RuntimeError: root"


def test_pydantic_error_is_named_by_its_value_error():
    diagnosis = diagnose(pydantic("Something new is wrong."))
    assert diagnosis.cause == "Something new is wrong."
    assert diagnosis.exception == "Value error, Something new is wrong."


def test_pydantic_error_of_a_field_names_the_field():
    lines = api(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig\n"
        "max_num_seqs\n  Input should be greater than or equal to 1 [type=greater_than_equal]\n"
    )
    assert diagnose(lines).cause == "max_num_seqs: Input should be greater than or equal to 1"


def test_engine_death_names_the_line_that_tells_most():
    assert diagnose(recorded("engine-death"), exit_status=0).exception == (
        "Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor."
    )


def test_unknown_exception_is_its_own_cause_though_the_engine_died_of_it():
    diagnosis = diagnose(running("RuntimeError: something new"), exit_status=0)
    assert (diagnosis.code, diagnosis.cause) == (None, "RuntimeError: something new")
    assert not diagnosis.permanent


def test_cause_inside_an_unknown_exceptions_traceback_is_recognised():
    lines = worker(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB.\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\nRuntimeError: new wrapper"
    )
    diagnosis = diagnose(lines)
    assert diagnosis.code == "gpu-out-of-memory"
    assert diagnosis.exception == "RuntimeError: new wrapper"


def test_very_long_exception_is_cut_in_the_cause_only():
    diagnosis = diagnose(api("RuntimeError: " + "x" * 1000))
    assert len(diagnosis.cause) < 500
    assert len(diagnosis.exception) > 1000


# --- what is no cause ---------------------------------------------------------------------------------


@pytest.mark.parametrize("log", ["start-eager", "start-compiled"])
def test_start_that_went_well_names_no_cause(log):
    """Also the log of an engine whose port was taken while it loaded: it says nothing of it."""
    diagnosis = diagnose(recorded(log), exit_status=0)
    assert (diagnosis.code, diagnosis.exception, diagnosis.hint) == (None, None, None)
    assert diagnosis.cause == "vLLM ended without an error message (exit status 0)"


def test_warning_of_the_limit_of_open_files_is_no_cause():
    assert diagnose(BEGINNING.splitlines()).code is None


def test_request_refused_for_want_of_a_chat_template_is_no_cause():
    refused = tagged(
        "APIServer",
        "serving.py:1",
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide one",
    )
    assert diagnose(BEGINNING.splitlines() + refused.splitlines()).code is None


def test_errors_quoted_in_ordinary_messages_are_no_cause():
    lines = [
        "(Worker pid=9) INFO 11-21 09:30:12 [x.py:1] ValueError: only quoted",
        "(Worker pid=9) WARNING 11-21 09:30:12 [x.py:1] CUDA out of memory. Tried to allocate 1.00 GiB",
        "/usr/lib/python3.11/multiprocessing/resource_tracker.py:224: UserWarning: leaked semaphore objects",
    ]
    assert diagnose(lines).exception is None


# --- exit status --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [-9, 137])
def test_sigkill_without_a_word_points_at_the_kernel(status):
    diagnosis = diagnose(recorded("start-eager"), exit_status=status)
    assert diagnosis.code == "killed"
    assert not diagnosis.permanent
    assert "dmesg" in diagnosis.hint
    assert "RAM" in diagnosis.hint


@pytest.mark.parametrize(
    ("status", "name"), [(-11, "SIGSEGV"), (-6, "SIGABRT"), (-4, "SIGILL"), (-7, "SIGBUS"), (139, "SIGSEGV")]
)
def test_crash_is_named_by_its_signal(status, name):
    diagnosis = diagnose([], exit_status=status)
    assert diagnosis.code == "crashed"
    assert name in diagnosis.cause


def test_error_in_the_log_counts_more_than_the_exit_status():
    assert diagnose(recorded("weights-missing"), exit_status=-9).code == "weights-missing"


@pytest.mark.parametrize(("status", "shown"), [(0, "0"), (1, "1"), (-15, "-15"), (None, "unknown")])
def test_silence_is_said_with_the_exit_status(status, shown):
    diagnosis = diagnose([], exit_status=status)
    assert diagnosis.cause == f"vLLM ended without an error message (exit status {shown})"
    assert (diagnosis.code, diagnosis.tail) == (None, ())


# --- tail and speed -----------------------------------------------------------------------------------


def test_tail_is_the_last_15_lines_with_their_prefix():
    lines = [f"(Worker pid=9) INFO 11-21 09:30:12 [x.py:1] {n}" for n in range(40)]
    padded = [text for line in lines for text in (line, "", "   ")]
    assert diagnose(padded).tail == tuple(lines[-15:])


def test_long_log_is_diagnosed_quickly_from_its_end():
    noise = tagged(
        "APIServer", "dump_input.py:1", "(RuntimeError) 'Error: Value " + "scheduled (x) [y] " * 100
    )
    lines = noise.splitlines() * 100_000 + recorded("port-in-use")
    began = time.process_time()
    diagnosis = diagnose(lines)
    assert time.process_time() - began < 3
    assert diagnosis.code == "port-in-use"
