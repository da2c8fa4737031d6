"""Starts that fail: said at once, with the cause and the fix; retried only where that can help."""

import http.server
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from box import Box, alive, eventually


@contextmanager
def stranger(port: int, model: str = "tiny") -> Iterator[None]:
    """A program that answers as vLLM would; like many, it sets SO_REUSEADDR."""

    class Models(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": model}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Models) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_an_exit_is_told_at_once_with_all_that_is_known(box: Box) -> None:
    began = time.monotonic()
    failed = box.run("up", box.manifest(fake={"fail_start": "kv_too_small", "startup": 0.1}), exits=6)
    assert time.monotonic() - began < 10  # not the 20 minutes of readiness.timeout
    assert "error: tiny didn't start: a context of 131072 tokens needs 16.0 GiB of KV cache" in failed.stderr
    assert "exception: ValueError: To serve at least one request" in failed.stderr
    assert "hint: set `max_model_len: 77168` or less" in failed.stderr
    assert "  | " in failed.stderr
    log = re.search(r"whole log: (\S+)", failed.stderr)
    assert log
    assert "To serve at least one request" in Path(log[1]).read_text()
    assert failed.stdout == ""

    listed = box.run("ps")
    assert listed.stdout.splitlines()[1].split()[:2] == ["tiny", "failed"]
    assert "a context of 131072 tokens" in listed.stderr
    assert "a context of 131072 tokens" in box.run("wait", "tiny", exits=6).stderr
    assert "To serve at least one request" in box.run("logs", "tiny").stdout


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("badarg", "--not-a-flag"),
        ("tool_parser", "set `tool_call_parser` to one of: hermes,llama3_json,mistral"),
        ("tool_parser_tokenizer", "the tool parser llama3_json doesn't fit"),
        ("unsupported_arch", "FooForCausalLM"),
    ],
)
def test_what_would_fail_again_is_not_tried_again(box: Box, failure: str, words: str) -> None:
    failed = box.run("up", box.manifest(fake={"fail_start": failure, "startup": 0.1}), exits=6)
    assert words in failed.stderr
    assert "tries again" not in failed.stderr
    assert box.ps()["tiny"]["endpoint"]["phase"] == "failed"
    assert box.events() == ["pending", "starting", "sweeping", "failed"]


def test_what_may_pass_is_tried_again(box: Box) -> None:
    fake = {"fail_start": "exit1", "fail_start_times": 2, "startup": 0.1}
    restart = {"backoff_initial": 0.4, "backoff_max": 0.4}
    failed = box.run("up", box.manifest("flaky", fake=fake, restart=restart), exits=6)
    assert re.search(r"told to exit with 1; the supervisor tries again in 0\.\d s", failed.stderr)
    assert "`vllm-manager down flaky` ends that" in failed.stderr
    assert box.run("ps").stdout.splitlines()[1].split()[1] in ("backoff", "pending", "starting")
    box.run("wait", "flaky")
    assert box.events("flaky").count("starting") == 3
    assert box.ps()["flaky"]["failed_starts"] == 0


def test_a_crash_loop_ends_and_up_begins_anew(box: Box) -> None:
    fake = {"fail_start": "exit1", "fail_start_times": 3, "startup": 0.1}
    restart = {"backoff_initial": 0.05, "max_failed_starts": 3}
    manifest = box.manifest("looping", fake=fake, restart=restart)
    box.run("up", manifest, exits=6)
    assert "the fake was told to exit with 1" in box.run("wait", "looping", exits=6).stderr
    assert box.events("looping").count("starting") == 3
    assert box.ps()["looping"]["failed_starts"] == 3
    assert "looping is ready" in box.run("up", manifest).stdout


def test_restart_policy_never(box: Box) -> None:
    manifest = box.manifest(fake={"fail_start": "exit1"}, restart={"policy": "never"})
    assert "tries again" not in box.run("up", manifest, exits=6).stderr
    assert box.events().count("starting") == 1


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"wrong_model_name": True}, "it serves some-other-model, not tiny"),
        ({"warmup_500": True}, "the 1-token request failed with HTTP 500"),
        ({"empty_completion": True}, "the 1-token request yielded no token"),
    ],
)
def test_an_http_200_is_not_ready(box: Box, knobs: dict[str, bool], words: str) -> None:
    failed = box.run("up", box.manifest(fake=knobs, restart={"policy": "never"}), exits=6)
    assert words in failed.stderr
    assert "last lines of its log:" in failed.stderr
    assert "whole log: " in failed.stderr
    assert "ready" not in box.events()
    refused = box.run("chat", "tiny", "hello", exits=1)
    assert words in refused.stderr


def test_a_start_that_never_listens_times_out(box: Box) -> None:
    manifest = box.manifest(
        fake={"stall_at": "http"}, readiness={"timeout": 1.5}, restart={"policy": "never"}
    )
    failed = box.run("up", manifest, exits=6)
    assert "it wasn't ready after 1.5 s (it was at: http)" in failed.stderr
    assert "readiness: {timeout: …}" in failed.stderr


def test_a_silent_start_is_stalled(box: Box) -> None:
    manifest = box.manifest(
        fake={"startup_delay": "inf"}, readiness={"stall": 1}, restart={"policy": "never"}
    )
    failed = box.run("up", manifest, exits=6)
    assert "no sign of progress for 1 s (it was at: distributed)" in failed.stderr
    assert "readiness: {stall: …}" in failed.stderr


def test_a_port_in_use_names_its_owner_and_nothing_is_started(box: Box) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", box.ports[3]))
        listener.listen()
        failed = box.run("up", box.manifest(port=box.ports[3]), exits=6)
    assert f"port {box.ports[3]} is in use by pid {os.getpid()} " in failed.stderr
    assert "leave `port` out" in failed.stderr
    assert box.ps() == {}


def test_a_port_of_the_range_that_is_taken_is_passed_over(box: Box) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a test before may have used it
        listener.bind(("127.0.0.1", box.ports[0]))
        listener.listen()
        box.run("up", box.manifest())
    assert box.record()["port"] == box.ports[1]


def test_a_port_stolen_while_it_loads(box: Box) -> None:
    port = box.ports[4]
    box.run("up", "-d", box.manifest(port=port, fake={"stall_at": "http"}, restart={"policy": "never"}))
    box.wait_for_phase("loading")
    with stranger(port):
        failed = box.run("wait", "tiny", exits=6)
        assert f"port {port} was taken by pid {os.getpid()} " in failed.stderr
        assert "ready" not in box.events()


def test_no_such_engine(box: Box) -> None:
    failed = box.run("up", box.manifest(engine={"python": "/no/such/python"}), exits=6)
    assert "no program /no/such/python" in failed.stderr
    assert "hint:" in failed.stderr
    assert box.ps() == {}


def test_an_engine_without_its_program(box: Box, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(box.engine)
    failed = box.run("up", box.manifest(engine={"python": str(python)}), exits=6)
    assert f"no vLLM beside {python}" in failed.stderr
    assert box.ps() == {}


def test_an_engine_that_vanishes_while_it_runs(box: Box, tmp_path: Path) -> None:
    from tests.fakes.fake_engine import make_fake_engine

    python = make_fake_engine(tmp_path / "engine")
    box.run("up", box.manifest(engine={"python": str(python)}))
    python.with_name("vllm").unlink()
    os.kill(box.tree()["main"], signal.SIGKILL)
    box.wait_for_phase("failed")
    assert f"no vLLM beside {python}" in box.run("wait", "tiny", exits=6).stderr


def test_a_model_that_vanishes_while_it_runs(box: Box, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    box.run("up", box.manifest(model=str(model)))
    main = box.tree()["main"]
    model.rename(tmp_path / "moved")
    os.kill(main, signal.SIGKILL)
    box.wait_for_phase("failed")
    assert not alive(main)
    assert f"the model's directory {model} isn't there" in box.run("wait", "tiny", exits=6).stderr


def test_one_failure_does_not_hide_another_success(box: Box) -> None:
    bad = box.manifest("bad", fake={"fail_start": "badarg"})
    failed = box.run("up", bad, box.manifest("good"), exits=6)
    assert "bad didn't start" in failed.stderr
    eventually(lambda: box.phase("good") == "ready", "the other one is ready")
