"""The faults that the fake vLLM can be told to have: each does what its name says."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from fake_engine import make_fake_engine
from fake_vllm import FAILURES, PHASES
from vllm_instances import MODEL, MODELS, PREFIX, Engine, Instance, eventually, tone

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
ENGINE_CORE, WORKER = f"{PREFIX}::EngineCore"[:15], f"{PREFIX}::Worker"[:15]

Start = Callable[..., AbstractContextManager[Instance]]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine("fake", make_fake_engine(tmp_path_factory.mktemp("engine") / "fake"))


@pytest.fixture
def start(fake: Engine, tmp_path: Path) -> Start:
    def begin(
        *flags: str, model: Path = MODEL, max_model_len: int = 512, **knobs: Any
    ) -> AbstractContextManager[Instance]:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        flags = (*flags, "--max-model-len", str(max_model_len))
        return fake.start(directory, *flags, model=model, knobs={"startup": 0.05, **knobs})

    return begin


class Background(threading.Thread):
    """A request whose answer nobody waits for."""

    def __init__(self, instance: Instance, **fields: Any) -> None:
        super().__init__(daemon=True)
        self.instance, self.fields = instance, fields
        self.text: str | None = None
        self.start()

    def run(self) -> None:
        try:
            self.text = self.instance.ask("POST", CHAT, BODY | self.fields).text
        except (OSError, ValueError) as error:
            self.text = repr(error)
        except Exception as error:  # http.client's own
            self.text = repr(error)

    def done(self) -> bool:
        return self.text is not None


def gauge(instance: Instance) -> float:
    prefix = "vllm:num_requests_running{"
    line = next(line for line in instance.ask("GET", "/metrics").text.splitlines() if line.startswith(prefix))
    return float(line.split()[1])


@pytest.mark.parametrize("knobs", [{"no_such": 1}, {"fail_start": "nope"}, {"startup": -1}, {"hang": "yes"}])
def test_wrong_knobs_are_an_error(fake: Engine, tmp_path: Path, knobs: dict[str, Any]) -> None:
    with fake.start(tmp_path, knobs=knobs) as instance:
        assert instance.process.wait(5) == 64
        assert "fake_vllm: " in instance.stderr


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_failing_start_says_why_and_leaves_nothing_running(start: Start, name: str) -> None:
    code = {"badarg": 2, "segv": -signal.SIGSEGV}.get(name, 1)
    with start(fail_start=name) as instance:
        assert instance.process.wait(5) == code
        text = FAILURES[name][1].partition("{model}")[0].partition("\n")[0]
        assert text in instance.stdout + instance.stderr
        if FAILURES[name][0] not in ("imports", "config", "http"):
            assert "See root cause above. Failed core proc(s): {'EngineCore': 1}\n" in instance.stderr
        eventually(lambda: not instance.pids(), 5, "every process gone")


def test_start_succeeds_after_so_many_failures(start: Start) -> None:
    knobs = {"fail_start": "oom", "fail_start_times": 2}
    for _ in range(2):
        with start(**knobs) as instance:
            assert instance.process.wait(5) == 1
    with start(**knobs) as instance:
        instance.wait_until_open()


@pytest.mark.parametrize("phase", sorted(PHASES))
def test_stalled_start_never_listens(start: Start, phase: str) -> None:
    with start(stall_at=phase) as instance:
        threading.Event().wait(0.5)  # a negative can only be watched for a while
        assert instance.process.poll() is None
        assert instance.refused()


def test_hung_start_is_silent_and_needs_two_sigterms(start: Start) -> None:
    with start(startup_delay="inf") as instance:
        instance.wait_for_log("distributed_init_method")
        size = len(instance.stdout)
        instance.process.send_signal(signal.SIGTERM)
        threading.Event().wait(0.3)
        assert instance.process.poll() is None
        assert len(instance.stdout) == size
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(5) == -signal.SIGINT
        assert "\nKeyboardInterrupt: terminated\n" in instance.stderr
        eventually(lambda: not instance.pids(), 5, "every process gone")


def test_sigterm_while_importing_kills_at_once(start: Start) -> None:
    with start(stall_at="imports") as instance:
        eventually(lambda: "vllm" in instance.members(), 5, "started")
        eventually(lambda: instance.process.send_signal(signal.SIGTERM) or instance.process.poll(), 5, "gone")
        assert instance.process.returncode == -signal.SIGTERM


def test_group_sigterm_while_starting_hangs_the_leader(start: Start) -> None:
    with start(startup_delay="inf") as instance:
        instance.wait_for_log("distributed_init_method")
        os.killpg(instance.pid, signal.SIGTERM)
        eventually(lambda: ENGINE_CORE not in instance.members(), 5, "EngineCore gone")
        threading.Event().wait(0.3)
        assert instance.process.poll() is None


def test_group_sigterm_with_requests_in_flight_hangs_the_leader(start: Start) -> None:
    with start(token_delay=0.2) as instance:
        instance.wait_until_open()
        request = Background(instance, max_tokens=100, ignore_eos=True)
        eventually(lambda: gauge(instance) == 1, 5, "running")
        os.killpg(instance.pid, signal.SIGTERM)
        eventually(lambda: "Waiting for connections to close" in instance.stderr, 5, "hanging")
        threading.Event().wait(0.5)
        assert instance.process.poll() is None
        assert not request.done()


def test_stop_hangs_until_the_client_leaves(start: Start) -> None:
    with start(hang_on_stop=True, token_delay=0.1) as instance:
        instance.wait_until_open()
        with instance.connect() as connection:
            response = instance.send(connection, "POST", CHAT, BODY | {"stream": True, "max_tokens": 400})
            response.read(1)
            instance.process.send_signal(signal.SIGTERM)
            eventually(lambda: set(instance.members()) == {"vllm", "python"}, 5, "the engine gone")
            threading.Event().wait(0.3)
            assert instance.process.poll() is None
            response.close()
        assert instance.process.wait(5) == 0


def test_sigterm_ends_streams_with_abort(start: Start) -> None:
    with start(token_delay=0.1) as instance:
        instance.wait_until_open()
        request = Background(instance, stream=True, max_tokens=400, ignore_eos=True)
        eventually(lambda: gauge(instance) == 1, 5, "running")
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(5) == 0
        eventually(request.done, 5, "ended")
        assert request.text is not None
        assert '"finish_reason":"abort"' in request.text
        assert request.text.endswith("data: [DONE]\n\n")


def test_killed_worker_takes_everything_down_with_0(start: Start) -> None:
    with start(engine_death_delay=0.1) as instance:
        instance.wait_until_open()
        os.kill(instance.members()[WORKER], signal.SIGKILL)
        assert instance.process.wait(5) == 0
        assert "VllmWorker-0 died unexpectedly" in instance.stdout
        eventually(lambda: not instance.pids(), 5, "every process gone")


def test_frozen_worker_hangs_generation_while_health_is_200(start: Start) -> None:
    with start() as instance:
        instance.wait_until_open()
        os.kill(instance.members()[WORKER], signal.SIGSTOP)
        request = Background(instance)
        threading.Event().wait(0.3)
        assert not request.done()
        assert instance.ask("GET", "/health").status == 200
        assert gauge(instance) == 0
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(5) == 0


def test_dies_by_itself_after_a_while(start: Start) -> None:
    with start(die_after=0.1, engine_death_delay=0.1) as instance:
        instance.wait_until_open()
        assert instance.process.wait(5) == 0


def test_ignores_sigterm(start: Start) -> None:
    with start(ignore_sigterm=True) as instance:
        instance.wait_until_open()
        os.killpg(instance.pid, signal.SIGTERM)
        threading.Event().wait(0.2)
        assert instance.ask("GET", "/health").status == 200


def test_worker_escapes_the_session_and_still_ends_with_its_engine(start: Start) -> None:
    with start(escape_session=True) as instance:
        instance.wait_until_open()
        assert WORKER not in instance.members()
        engine_core = instance.members()[ENGINE_CORE]
        children = Path(f"/proc/{engine_core}/task/{engine_core}/children")
        escaped = int(children.read_text())
        assert os.getsid(escaped) == escaped
        instance.process.kill()
        os.killpg(instance.pid, signal.SIGKILL)
        state = Path(f"/proc/{escaped}/stat")
        eventually(lambda: not state.exists() or ") Z " in state.read_text(), 5, "the worker gone")


@pytest.mark.parametrize(("knob", "running"), [("hang", 0), ("stall", 1)])
def test_hang_and_stall_begin_after_so_many_good_requests(start: Start, knob: str, running: int) -> None:
    with start(**{knob: 1}) as instance:
        instance.wait_until_open()
        assert instance.ask("POST", CHAT, BODY).status == 200
        request = Background(instance)
        eventually(lambda: gauge(instance) == running, 5, "the gauge")
        threading.Event().wait(0.2)
        assert not request.done()
        assert gauge(instance) == running
        assert instance.ask("GET", "/health").status == 200
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(5) == 0
        eventually(request.done, 5, "answered")


def test_drain_finishes_what_runs_and_refuses_the_rest(start: Start) -> None:
    with start("--shutdown-timeout", "10", token_delay=0.1) as instance:
        instance.wait_until_open()
        request = Background(instance, max_tokens=8)
        eventually(lambda: gauge(instance) == 1, 5, "running")
        instance.process.send_signal(signal.SIGTERM)
        eventually(lambda: instance.ask("POST", CHAT, BODY).status == 500, 5, "refused")
        assert instance.ask("GET", "/health").status == 200
        assert instance.process.wait(5) == 0
        eventually(request.done, 5, "answered")
        assert request.text is not None
        assert '"completion_tokens":8' in request.text


def test_drain_that_takes_too_long_is_cut(start: Start) -> None:
    with start("--shutdown-timeout", "1", token_delay=0.5) as instance:
        instance.wait_until_open()
        request = Background(instance, max_tokens=500, ignore_eos=True)
        eventually(lambda: gauge(instance) == 1, 5, "running")
        instance.process.send_signal(signal.SIGTERM)
        assert instance.process.wait(5) == 0
        eventually(request.done, 5, "answered")
        assert request.text is not None
        assert "EngineCore encountered an issue" in request.text


def test_client_that_leaves_frees_its_place(start: Start) -> None:
    with start("--enable-server-load-tracking", slow_first_token=60) as instance:
        instance.wait_until_open()
        with instance.connect() as connection:
            connection.request(
                "POST",
                CHAT,
                '{"messages":[{"role":"user","content":"hi"}]}',
                {
                    "Authorization": "Bearer contract-key",
                    "Content-Type": "application/json",
                },
            )
            eventually(lambda: instance.ask("GET", "/load").json == {"server_load": 1}, 5, "counted")
        eventually(lambda: instance.ask("GET", "/load").json == {"server_load": 0}, 1, "freed")


def test_stolen_port_goes_unnoticed(start: Start) -> None:
    with start(startup=1) as instance:
        instance.wait_for_log("Using max model len")
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("127.0.0.1", instance.port))
            thief.listen()
            eventually(lambda: "Application startup complete." in instance.stderr, 5, "the lie")
        threading.Event().wait(0.2)
        assert instance.process.poll() is None
        assert instance.refused()


def test_port_in_use_ends_with_1(fake: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        monkeypatch.setattr("vllm_instances.free_port", lambda: owner.getsockname()[1])
        with fake.start(tmp_path) as instance:
            assert instance.process.wait(5) == 1
            assert instance.stderr.rstrip().endswith("OSError: [Errno 98] Address already in use")


def test_faults_of_the_answers(start: Start) -> None:
    with start(warmup_500=True) as instance:
        instance.wait_until_open()
        assert instance.ask("POST", CHAT, BODY).status == 500
    with start(wrong_model_name=True) as instance:
        instance.wait_until_open()
        assert instance.ask("GET", "/v1/models").json["data"][0]["id"] == "some-other-model"
        assert instance.ask("POST", CHAT, {"model": "tiny", **BODY}).status == 404
    with start(no_chat_template=True) as instance:
        instance.wait_until_open()
        answer = instance.ask("POST", CHAT, BODY)
        assert (answer.status, "default chat template" in answer.text) == (400, True)
        assert instance.ask("POST", "/v1/completions", {"prompt": "hi", "max_tokens": 1}).status == 200
    with start(empty_completion=True) as instance:
        instance.wait_until_open()
        answer = instance.ask("POST", CHAT, BODY).json
        assert answer["usage"]["completion_tokens"] == 0
        assert answer["choices"][0]["message"]["content"] == ""
    with start(drop_mid_stream=True) as instance:
        instance.wait_until_open()
        request = Background(instance, stream=True, max_tokens=8)
        eventually(request.done, 5, "ended")
        assert request.text is not None
        assert request.text.startswith("IncompleteRead")


def test_delays(start: Start) -> None:
    with start(slow_health=0.3, slow_first_token=0.3, token_delay=0.1) as instance:
        instance.wait_until_open()
        for least, method, path, body in ((0.3, "GET", "/health", None), (0.5, "POST", CHAT, BODY)):
            before = time.monotonic()
            assert instance.ask(method, path, body).status == 200
            assert time.monotonic() - before >= least


def test_spews(start: Start) -> None:
    with start(spew=1_000_000) as instance:
        instance.wait_until_open()
        eventually(lambda: len(instance.stdout) > 200_000, 5, "output")


POOLING = ("--runner", "pooling", "--convert")


@pytest.mark.parametrize(
    ("flags", "path", "body", "key"),
    [
        (("embed",), "/v1/embeddings", {"input": "a"}, "embedding"),
        (("classify",), "/classify", {"input": "a"}, "probs"),
        (
            ("classify", "--hf-overrides", '{"num_labels": 1}'),
            "/score",
            {"text_1": "a", "text_2": "b"},
            "score",
        ),
        (("embed", "--pooler-config", '{"task": "token_embed"}'), "/pooling", {"input": "a"}, "data"),
    ],
)
def test_figures_that_are_not_finite_come_as_null(
    start: Start, flags: tuple[str, ...], path: str, body: dict[str, Any], key: str
) -> None:
    with start(*POOLING, *flags, not_finite=True) as instance:
        instance.wait_until_open()
        row = instance.ask("POST", path, body).json["data"][0][key]
        while isinstance(row, list):
            row = row[0]
        assert row is None


def test_without_the_libraries_no_sound_is_understood(start: Start) -> None:
    with start(model=MODELS / "tiny-whisper", max_model_len=64, no_sound_libraries=True) as instance:
        instance.wait_until_open()
        answer = instance.upload("/v1/audio/transcriptions", {}, tone(0.1))
        assert (answer.status, answer.json["error"]["message"]) == (400, "Invalid or unsupported audio file.")


def test_an_adapter_that_is_not_there_ends_the_start(start: Start, tmp_path: Path) -> None:
    with start("--enable-lora", "--lora-modules", f"x={tmp_path}/none") as instance:
        assert instance.process.wait(5) == 1
        assert f"Loading lora x failed: No adapter found for {tmp_path}/none" in instance.stderr
    with start("--lora-modules", f"x={tmp_path}") as instance:
        assert instance.process.wait(5) == 1
        assert "LoRA is not enabled" in instance.stderr


def test_cuda_build_has_no_worker_and_shows_its_phases(tmp_path: Path) -> None:
    engine = Engine("fake", make_fake_engine(tmp_path / "engine", version="0.32.0"))
    with engine.start(tmp_path, knobs={"startup": 0.05}) as instance:
        instance.wait_until_open()
        assert set(instance.members()) == {"vllm", "python", ENGINE_CORE}
        assert "GPU KV cache size: " in instance.stdout
        assert instance.ask("POST", CHAT, BODY).status == 200


def test_tensor_parallel_workers(start: Start) -> None:
    with start("--tensor-parallel-size", "2") as instance:
        instance.wait_until_open()
        titles = {Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") for pid in instance.pids()}
        assert {f"{PREFIX}::Worker_TP0".encode(), f"{PREFIX}::Worker_TP1".encode()} <= titles
