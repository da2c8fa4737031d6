"""The main paths on the real vLLM. The tests share one deployment and run in the order of this file."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process.box import Box, alive, eventually, listening, post
from vllm_manager import registry

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

README = Path(__file__).parents[2] / "README.md"
START = 240.0
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


def manifest(box: Box) -> Path:
    return box.manifest(
        api_key="generate",
        aliases=["tiny-alias"],
        enable_auto_tool_choice=True,
        tool_call_parser="llama3_json",
        max_model_len=512,
        args={"load-format": "dummy", "enforce-eager": True},
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )


@pytest.fixture
def ready(box: Box, monkeypatch: pytest.MonkeyPatch) -> Box:
    """The box with the model up, and this process's registry looking at it."""
    if box.phase() != "ready":
        box.run("up", manifest(box), timeout=START)
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(box.state))
    return box


def base_url(box: Box) -> str:
    return f"{box.endpoints()['tiny']['root_url']}/v1"


def test_up_returns_when_the_model_has_answered_and_says_how_long_each_step_took(box: Box):
    up = box.run("up", manifest(box), timeout=START)
    assert f"tiny is ready at {base_url(box)}" in up.stdout
    steps = re.search(r"ready after +[\dms .]+: (.*)", up.stdout)[1]
    assert re.findall(r"([a-z-]+) \d", steps) == [
        "import", "config", "engine", "distributed", "weights", "kv-cache", "http", "warm-up",
    ]  # fmt: skip
    assert "talks gibberish" in up.stdout
    status = box.ps()["tiny"]
    assert status["endpoint"]["task"] == "chat"
    assert status["endpoint"]["max_model_len"] == 512
    assert status["kv_cache_tokens"] > 512


def test_up_again_changes_nothing(ready: Box):
    before = ready.ps()["tiny"]["pid"]
    assert "unchanged" in ready.run("up", manifest(ready)).stderr
    assert ready.ps()["tiny"]["pid"] == before


def test_the_key_is_needed_and_stands_in_no_command_line(ready: Box):
    assert post(base_url(ready), "/chat/completions", CHAT)[0] == 401
    status, answer = post(base_url(ready), "/chat/completions", CHAT, ready.key())
    assert status == 200
    assert answer["usage"]["completion_tokens"] >= 1
    for pid in ready.processes():
        assert ready.key().encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert ready.key() not in ready.run("logs", "tiny").stdout


def test_a_request_with_tools_is_accepted(ready: Box):
    tool = {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
    }
    status, _ = post(base_url(ready), "/chat/completions", CHAT | {"tools": [tool]}, ready.key())
    assert status == 200


@pytest.mark.parametrize("name", ["tiny", "tiny-alias"])
def test_the_registrys_clients_talk_to_it(ready: Box, name: str):
    with registry.client(name) as client:
        response = client.chat("hello", max_tokens=5)
        assert response.usage.completion_tokens >= 1
        assert str(response) == response.text
        assert client.models() == ("tiny", "tiny-alias")
        assert client.ready()
        with client.stream("hello", max_tokens=5) as stream:
            text = "".join(chunk.text for chunk in stream)
        assert stream.text == text
        assert stream.finish_reason in ("length", "stop")

    async def ask() -> None:
        async with registry.async_client(name) as client:
            assert (await client.chat("hello", max_tokens=5)).usage.completion_tokens >= 1
            assert "".join([chunk.text async for chunk in client.stream("hello", max_tokens=5)]) is not None
            assert await client.ready()

    asyncio.run(ask())


def test_a_killed_supervisor_costs_no_request_and_the_next_one_takes_over(ready: Box):
    before = ready.ps()["tiny"]
    ready.kill_supervisor()
    assert ready.ps(exits=5)["tiny"]["pid"] == before["pid"]
    assert registry.client("tiny").chat("hello", max_tokens=2).usage.completion_tokens >= 1
    ready.run("up", manifest(ready))
    after = ready.ps()["tiny"]
    assert (after["pid"], after["instance"], after["restarts"]) == (before["pid"], before["instance"], 0)


def test_a_killed_api_server_is_withdrawn_swept_and_started_again(ready: Box):
    """vLLM's EngineCore and worker outlive their API server for ever, and keep the memory."""
    tree = ready.tree()
    assert {"main", "EngineCore", "Worker"} <= set(tree)
    killed_at = time.monotonic()
    os.kill(tree["main"], signal.SIGKILL)
    eventually(lambda: ready.phase() != "ready", "withdrawn", 5)
    assert time.monotonic() - killed_at < 2
    eventually(lambda: not any(alive(pid) for pid in tree.values()), "swept", 10)
    eventually(lambda: ready.phase() == "ready", "ready again", START)
    assert ready.tree()["main"] != tree["main"]
    assert ready.ps()["tiny"]["restarts"] == 1
    assert registry.client("tiny").chat("hello", max_tokens=2).usage.completion_tokens >= 1


def test_the_readmes_commands_do_what_they_say(ready: Box):
    """The block after the first command, pasted into a shell; its last line takes the model down."""
    block = README.read_text().split("```sh\n")[2].split("```")[0]
    port = ready.ps()["tiny"]["endpoint"]["root_url"].rsplit(":", 1)[1]
    environment = ready.env | {"PATH": f"{Path(sys.executable).parent}:{ready.env['PATH']}"}
    done = subprocess.run(
        ["bash", "-euxc", block], env=environment, cwd=ready.root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^tiny +ready +http://", done.stdout, re.MULTILINE)
    assert '"completion_tokens"' in done.stdout
    assert "tiny: down" in done.stderr
    assert not listening(int(port))
    assert ready.left_of_instances() == []
    assert not list((ready.state / "logs").iterdir())
    assert not list((ready.state / "secrets").iterdir())


def test_a_flag_that_this_vllm_does_not_know_is_refused_before_anything_starts(box: Box):
    path = box.manifest(name="bad", args={"load-format": "dummy", "max-num-sqes": 1}, file="bad.yaml")
    up = box.run("up", path, exits=2, timeout=START)
    assert "args.max-num-sqes" in up.stderr
    assert "max-num-seqs" in up.stderr.split("hint:")[1]
    assert box.ps() == {}


def test_a_model_that_vllm_cannot_run_is_named_at_once_and_not_tried_again(box: Box):
    args = {"load-format": "dummy", "hf-overrides": {"architectures": ["NopeForCausalLM"]}}
    up = box.run("up", box.manifest(name="bad", args=args, file="bad.yaml"), exits=6, timeout=START)
    assert "NopeForCausalLM" in up.stderr
    assert "hint:" in up.stderr
    assert box.ps()["bad"]["endpoint"]["phase"] == "failed"
    assert box.ps()["bad"]["failed_starts"] == 1
    box.run("down", "bad")
