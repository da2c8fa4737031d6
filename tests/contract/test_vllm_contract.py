"""What vllm-manager relies on in vLLM 0.32, checked against the real one and the fake alike."""

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from vllm_instances import KEY, MODEL, PREFIX, Engine, Instance, eventually

pytestmark = pytest.mark.timeout(400)

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
OPEN: dict[str, str] = {}  # headers without a key

# The lines that the phases of a start are read from, in order. With --load-format dummy no weights are read.
STDOUT = [
    r"\(APIServer pid=\d+\) INFO .* version \d+\.\d+",
    r"\(APIServer pid=\d+\) INFO .*\] non-default args: \{.*'port': \d+",
    r"\(APIServer pid=\d+\) INFO .*\] Resolved architecture: LlamaForCausalLM",
    r"\(APIServer pid=\d+\) INFO .*\] Using max model len 512",
    r"\(EngineCore pid=\d+\) INFO .*\] Initializing a V1 LLM engine \(v[\d.]+\) with config: model=",
    r"\(Worker pid=\d+\) INFO .*\] world_size=1 rank=0 .*distributed_init_method=file://\S+ backend=gloo",
    r"\(Worker pid=\d+\) INFO .*\] Starting to load model .*/tiny\.\.\.",
    r"\(EngineCore pid=\d+\) INFO .*\] CPU KV cache size: [\d,]+ tokens, Maximum concurrency for 512 tokens",
    r"\(EngineCore pid=\d+\) INFO .*\] init engine \(.*\) took [\d.]+ s",
    r"\(APIServer pid=\d+\) INFO .*\] Supported tasks: \['generate'\]",
    r"\(APIServer pid=\d+\) INFO .*\] Starting vLLM server on http://127\.0\.0\.1:\d+",
    r"\(APIServer pid=\d+\) INFO .*\] Route: /v1/chat/completions, Methods: POST",
]
STDERR = [
    r"INFO:     Started server process \[\d+\]",
    r"INFO:     Waiting for application startup\.",
    r"INFO:     Application startup complete\.",
]
PREFIXED = re.compile(r"\((\w+) pid=(\d+)\) (INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d \[[\w.]+:\d+\] ")


def in_order(patterns: list[str], text: str) -> None:
    """Every pattern begins a line, each after the one before."""
    at = 0
    for pattern in patterns:
        found = re.compile(f"^{pattern}", re.MULTILINE).search(text, at)
        assert found, f"{pattern!r} isn't in what follows:\n{text[at:][:3000]}"
        at = found.end()


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, "max_tokens": 4, "ignore_eos": True, **fields}


def metric(instance: Instance, name: str) -> float:
    pattern = rf'^vllm:{name}{{engine="0",model_name="tiny"}} (\S+)$'
    found = re.search(pattern, instance.ask("GET", "/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


@pytest.fixture(scope="class")
def server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """One instance for all of TestServing, watched while it starts."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "llama3_json")
    knobs = {"startup": 1, "token_delay": 0.002}  # about the real one's pace
    with engine.start(tmp_path_factory.mktemp("server"), *flags, knobs=knobs) as instance:
        instance.wait_for_log("Using max model len")
        with socket.socket() as probe:
            instance.refused_before_ready = instance.refused()  # type: ignore[attr-defined]
            with suppress(OSError):
                probe.bind(("127.0.0.1", instance.port))
            instance.bound_before_ready = probe.getsockname()[1] == 0  # type: ignore[attr-defined]
        instance.wait_until_open()
        yield instance


class TestServing:
    """A running instance. The last test stops it."""

    def test_port_is_bound_early_and_refuses_until_ready(self, server: Any) -> None:
        assert server.refused_before_ready
        assert server.bound_before_ready

    def test_health_and_models_answer_as_soon_as_it_listens(self, server: Instance) -> None:
        assert server.ask("GET", "/health").status == 200
        assert server.ask("GET", "/v1/models").status == 200

    def test_log_shows_the_phases_in_order(self, server: Instance) -> None:
        in_order(STDOUT, server.stdout)
        in_order(STDERR, server.stderr)

    def test_log_lines_carry_the_process_and_its_pid(self, server: Instance) -> None:
        pids = {match[1]: int(match[2]) for match in PREFIXED.finditer(server.stdout)}
        members = server.members()
        assert pids["APIServer"] == server.pid
        assert pids["EngineCore"] == members[f"{PREFIX}::EngineCore"[:15]]
        assert pids["Worker"] == members[f"{PREFIX}::Worker"[:15]]

    def test_process_tree(self, server: Instance) -> None:
        members = server.members()
        tree = {name: psutil.Process(pid).ppid() for name, pid in members.items()}
        engine_core = members[f"{PREFIX}::EngineCore"[:15]]
        assert members["vllm"] == server.pid
        assert tree == {
            "vllm": os.getpid(),
            "python": server.pid,
            f"{PREFIX}::EngineCore"[:15]: server.pid,
            f"{PREFIX}::Worker"[:15]: engine_core,
        }
        assert {os.getpgid(pid) for pid in members.values()} == {server.pid}

    def test_children_show_their_title_alone(self, server: Instance) -> None:
        for name in ("EngineCore", "Worker"):
            pid = server.members()[f"{PREFIX}::{name}"[:15]]
            assert Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") == f"{PREFIX}::{name}".encode()
            # setproctitle wipes up to the first variable that the process has changed itself.
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert environ.startswith(b"\0")
            assert b"VLLM_API_KEY=" not in environ

    def test_leader_and_tracker_keep_command_and_environment(self, server: Instance) -> None:
        members = server.members()
        for pid, command in ((server.pid, b"\0serve\0"), (members["python"], b"resource_tracker")):
            assert command in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert f"VLLM_API_KEY={KEY}".encode() in Path(f"/proc/{pid}/environ").read_bytes()

    def test_every_process_has_the_log_as_stdout_and_stderr(self, server: Instance) -> None:
        for pid in server.pids():
            assert os.readlink(f"/proc/{pid}/fd/1") == str(server.directory / "stdout")
            assert os.readlink(f"/proc/{pid}/fd/2") == str(server.directory / "stderr")

    def test_resource_tracker_ignores_sigterm_and_sigint(self, server: Instance) -> None:
        status = Path(f"/proc/{server.members()['python']}/status").read_text()
        ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)  # type: ignore[index]
        assert ignored >> (signal.SIGTERM - 1) & 1
        assert ignored >> (signal.SIGINT - 1) & 1

    def test_only_the_leader_listens(self, server: Instance) -> None:
        listening = {
            pid
            for pid in server.pids()
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == server.port
        }
        assert listening == {server.pid}

    def test_files_outside_its_control_are_where_they_were_told(self, server: Instance) -> None:
        assert any((server.directory / "tmp").glob("vllm_dist_*"))
        assert all(path.is_socket() for path in (server.directory / "rpc").iterdir())
        assert any((server.directory / "rpc").iterdir())
        assert server.shared_memory

    def test_models_lists_every_served_name(self, server: Instance) -> None:
        answer = server.ask("GET", "/v1/models").json
        assert answer["object"] == "list"
        assert [model["id"] for model in answer["data"]] == ["tiny", "tiny-alias"]
        first = answer["data"][0]
        assert (first["owned_by"], first["root"], first["parent"]) == ("vllm", str(MODEL), None)
        assert first["max_model_len"] == 512
        assert set(first) == {
            *("id", "object", "created", "owned_by", "root", "parent", "max_model_len", "permission")
        }

    def test_version_load_and_ping(self, server: Instance) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+", server.ask("GET", "/version").json["version"])
        assert server.ask("GET", "/load").json == {"server_load": 0}
        assert server.ask("POST", "/ping").status == 200

    def test_openapi_paths_tell_the_task(self, server: Instance) -> None:
        paths = server.ask("GET", "/openapi.json", headers=OPEN).json["paths"]
        assert {CHAT, COMPLETION, "/tokenize", "/v1/models"} <= set(paths)
        assert not {"/v1/embeddings", "/classify", "/v1/score"} & set(paths)

    @pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/inference/v1/generate", "/v2/embed"])
    def test_key_guards_these_prefixes(self, server: Instance, path: str) -> None:
        for headers in (OPEN, {"Authorization": "Bearer wrong"}, {"x-api-key": KEY}, {"Authorization": KEY}):
            answer = server.ask("GET", path, headers=headers)
            assert (answer.status, answer.text) == (401, '{"error":"Unauthorized"}')

    @pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/metrics", "/load", "/openapi.json"])
    def test_key_is_not_asked_for_here(self, server: Instance, path: str) -> None:
        assert server.ask("GET", path, headers=OPEN).status == 200

    def test_tokenize_and_invocations_are_open(self, server: Instance) -> None:
        answer = server.ask("POST", "/tokenize", {"model": "tiny", "prompt": "hi"}, OPEN).json
        assert answer["count"] == len(answer["tokens"]) > 0
        assert answer["max_model_len"] == 512
        assert server.ask("POST", "/invocations", chat(), OPEN).status == 200

    @pytest.mark.parametrize(
        ("body", "status", "kind", "param", "message"),
        [
            (
                chat(model="nope"),
                404,
                "NotFoundError",
                "model",
                "The model `nope` does not exist. Valid aliases",
            ),
            (
                {"model": "tiny"},
                400,
                "Bad Request",
                "body.messages",
                "1 validation error:\n  {'type': 'missing'",
            ),
            (
                '{"model": nope',
                400,
                "Bad Request",
                "body.10",
                "1 validation error:\n  {'type': 'json_invalid'",
            ),
            ([1], 400, "Bad Request", "body", "1 validation error:\n  {'type': 'model_attributes_type'"),
            (chat(messages=[]), 400, "BadRequestError", None, "Cannot apply chat template to an empty"),
            (
                *(chat(messages=[{"role": "user", "content": "a b " * 5000}]), 400),
                *(
                    "BadRequestError",
                    "input_text",
                    "This model's maximum context length is 512 tokens. However",
                ),
            ),
            (
                *(chat(messages=[{"role": "user", "content": "a b " * 500}]), 400),
                *(
                    "BadRequestError",
                    "input_tokens",
                    "This model's maximum context length is 512 tokens. However",
                ),
            ),
            (
                chat(max_tokens=4096),
                400,
                "BadRequestError",
                "max_tokens",
                "max_tokens=4096 cannot be greater",
            ),
            (
                chat(max_tokens=0),
                400,
                "BadRequestError",
                "max_tokens",
                "max_tokens must be at least 1, got 0.",
            ),
            (chat(temperature=-3), 400, "BadRequestError", "temperature", "temperature must be non-negative"),
            (chat(tools=[]), 400, "BadRequestError", "tools", "`tools` must not be an empty array."),
        ],
    )
    def test_errors_of_a_chat_request(
        self, server: Instance, body: Any, status: int, kind: str, param: str | None, message: str
    ) -> None:
        answer = server.ask("POST", CHAT, body)
        assert answer.status == status
        error = answer.json.pop("error")
        assert set(answer.json) == {"error"}
        assert error.pop("message").startswith(message)
        assert error == {"type": kind, "param": param, "code": status}

    def test_error_of_a_completion_without_a_prompt(self, server: Instance) -> None:
        answer = server.ask("POST", COMPLETION, {"model": "tiny"})
        assert (answer.status, answer.json["error"]["param"]) == (400, "prompt")

    @pytest.mark.parametrize(
        ("method", "path", "status", "detail"),
        [
            ("GET", CHAT, 405, "Method Not Allowed"),
            ("POST", "/health", 405, "Method Not Allowed"),
            ("POST", "/v1/nope", 404, "Not Found"),
            ("POST", "/v1/embeddings", 404, "Not Found"),
            ("GET", "/v1/models/tiny", 404, "Not Found"),
        ],
    )
    def test_errors_of_the_router(
        self, server: Instance, method: str, path: str, status: int, detail: str
    ) -> None:
        answer = server.ask(method, path, {} if method == "POST" else None)
        assert (answer.status, answer.json) == (status, {"detail": detail})

    def test_wrong_content_type_is_refused(self, server: Instance) -> None:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "text/plain"}
        answer = server.ask("POST", CHAT, "x", headers)
        assert (answer.status, answer.json["error"]["type"]) == (400, "Bad Request")

    def test_chat_counts_its_tokens(self, server: Instance) -> None:
        answer = server.ask("POST", CHAT, chat(model="tiny-alias")).json
        assert answer["object"] == "chat.completion"
        assert answer["model"] == "tiny"  # the first served name, whichever was asked for
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["message"]["role"] == "assistant"
        usage = answer["usage"]
        assert usage["completion_tokens"] == 4
        assert usage["prompt_tokens"] > 0
        assert usage["total_tokens"] == usage["prompt_tokens"] + 4

    def test_model_may_be_left_out(self, server: Instance) -> None:
        assert server.ask("POST", CHAT, {"messages": HELLO, "max_completion_tokens": 2}).status == 200

    def test_tools_with_automatic_choice_are_accepted(self, server: Instance) -> None:
        assert server.ask("POST", CHAT, chat(tools=[TOOL])).json["choices"][0]["finish_reason"] == "length"

    def test_completion_counts_its_tokens(self, server: Instance) -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 3, "ignore_eos": True}
        answer = server.ask("POST", COMPLETION, body).json
        assert answer["object"] == "text_completion"
        assert isinstance(answer["choices"][0]["text"], str)
        assert answer["usage"]["completion_tokens"] == 3

    def test_chat_stream(self, server: Instance) -> None:
        answer = server.ask("POST", CHAT, chat(stream=True, stream_options={"include_usage": True}))
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        *chunks, usage, done = answer.events
        assert done == "[DONE]"
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["length"]
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 4

    def test_completion_stream_without_usage(self, server: Instance) -> None:
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 3, "ignore_eos": True, "stream": True}
        *chunks, done = server.ask("POST", COMPLETION, body).events
        assert done == "[DONE]"
        assert all("usage" not in chunk for chunk in chunks)
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"

    def test_connection_is_kept_alive(self, server: Instance) -> None:
        with server.connect() as connection:
            for _ in range(2):
                server.send(connection, "GET", "/health").read()
                assert connection.sock is not None

    def test_counters_move_with_each_request(self, server: Instance) -> None:
        names = ("prompt_tokens_total", "generation_tokens_total", "iteration_tokens_total_count")

        before = {name: metric(server, name) for name in names}
        server.ask("POST", CHAT, chat())
        for name in names:
            eventually(lambda name=name: metric(server, name) > before[name], 10, f"{name} moves")
        for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            eventually(lambda gauge=gauge: metric(server, gauge) == 0, 10, f"{gauge} falls to 0")

    def test_sigterm_kills_the_engine_and_exits_with_0_once_its_clients_are_gone(
        self, server: Instance
    ) -> None:
        # With a stream in flight the leader sometimes ends it (abort, or an error event) and exits within
        # 0.5 s, sometimes it waits for the connection to close, for ever.
        with server.connect() as connection:
            response = server.send(connection, "POST", CHAT, chat(stream=True, max_tokens=480))
            response.read(1)
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: set(server.members()) <= {"vllm", "python"}, 5, "the engine gone")
            eventually(server.refused, 5, "refusing")
            response.close()
        assert server.process.wait(10) == 0
        eventually(lambda: not server.pids(), 5, "every process gone")
        assert "shutdown triggered" in server.stdout
        assert not any(Path(path).exists() for path in server.shared_memory)


def test_sigterm_while_the_engine_starts_is_swallowed_and_a_dead_engine_ends_with_0(
    engine: Engine, tmp_path: Path
) -> None:
    with engine.start(tmp_path, knobs={"startup": 1, "engine_death_delay": 1}) as instance:
        instance.wait_for_log("Initializing a V1 LLM engine")
        instance.process.send_signal(signal.SIGTERM)
        instance.wait_until_open()
        assert instance.ask("GET", "/health").status == 200
        os.kill(instance.members()[f"{PREFIX}::EngineCore"[:15]], signal.SIGKILL)
        eventually(lambda: instance.ask("GET", "/health").status == 503, 2, "/health says 503")
        assert instance.process.wait(10) == 0
        eventually(lambda: not instance.pids(), 5, "every process gone")


def test_killed_leader_leaves_its_engine_until_the_group_is_killed(engine: Engine, tmp_path: Path) -> None:
    with engine.start(tmp_path) as instance:
        instance.wait_until_open()
        children = {name: pid for name, pid in instance.members().items() if name != "vllm"}
        instance.process.kill()
        assert instance.process.wait(5) == -signal.SIGKILL
        assert instance.refused()
        # A negative can only be watched for a while: no member goes within a second.
        threading.Event().wait(1)
        assert instance.members() == children
        os.killpg(instance.pid, signal.SIGKILL)
        eventually(lambda: not instance.pids(), 1, "every process gone")
        assert all(Path(path).exists() for path in instance.shared_memory)  # leaked


def test_unknown_flag_exits_with_2(engine: Engine, tmp_path: Path) -> None:
    with engine.start(tmp_path, "--not-a-flag", "1") as instance:
        assert instance.process.wait(60) == 2
        assert instance.stderr.endswith("vllm: error: unrecognized arguments: --not-a-flag 1\n")
        assert instance.stdout == ""


def test_version_is_in_the_metadata(engine: Engine) -> None:
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    found = subprocess.run([engine.python, "-c", code], capture_output=True, text=True, check=True)
    assert re.match(r"\d+\.\d+\.\d+", found.stdout)
