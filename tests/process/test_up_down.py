"""Bringing deployments up and down, as a user does."""

import json
import os
import re
import shlex
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from box import DEADLINE, Box, alive, eventually, listening, post

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def test_a_failure_among_several_is_told_at_once_and_hides_nobody(box: Box) -> None:
    slow = box.manifest("slow", fake={"startup": 4.0})
    bad = box.manifest("bad", fake={"fail_start": "tool_parser"})
    up = box.start("up", bad, slow)
    eventually(lambda: "bad didn't start" in up.err, "the failure is told")
    assert box.phase("slow") != "ready"
    assert up.wait() == 6
    assert "slow is ready at" in up.out
    assert up.err.count("bad didn't start") == 1


def test_up_serves_a_model_and_down_leaves_nothing(fresh_box: Box) -> None:
    box = fresh_box
    manifest = box.manifest(api_key="generate", served_model_name=["tiny", "tiny-alias"], max_model_len=512)

    up = box.run("up", manifest)
    status = box.ps()["tiny"]
    base_url = status["endpoint"]["root_url"] + "/v1"
    port = int(base_url.split(":")[2].split("/")[0])
    assert port in box.ports
    assert f"tiny is ready at {base_url}" in up.stdout
    assert re.search(r"model names +tiny, tiny-alias", up.stdout)
    assert re.search(r"context +512 tokens", up.stdout)
    assert re.search(r"ready after +\d.*: import \d.*, weights \d.*, warm-up \d", up.stdout)
    assert "talks gibberish" in up.stdout
    steps = re.findall(r"^tiny: ([\w-]+) \(after", up.stderr, re.M)
    assert steps == ["import", "config", "engine", "distributed", "weights", "kv-cache", "http", "warm-up"]

    table = box.run("ps").stdout.splitlines()
    assert table[0].split() == ["NAME", "PHASE", "URL", "GPUS", "PID", "SINCE", "MODEL"]
    assert table[1].split()[:5] == ["tiny", "ready", base_url, "cpu", str(status["pid"])]
    assert "tiny is ready" in box.run("wait", "tiny").stdout

    lines = Path(status["log"]).read_text().splitlines()
    assert box.run("logs", "tiny").stdout.splitlines()[: len(lines) - 5] == lines[: len(lines) - 5]
    assert len(box.run("logs", "-n", "3", "tiny").stdout.splitlines()) == 3
    assert box.run("chat", "tiny", "hello").stdout == "Hello, this is the fake model.\n"
    program = 'from vllm_manager import registry; print(registry.client("tiny-alias").chat("hello"))'
    assert box.python(program) == "Hello, this is the fake model."

    exports = shlex.split(box.run("env", "tiny").stdout)
    env = dict(word.split("=", 1) for word in exports if "=" in word)
    assert env["OPENAI_BASE_URL"] == base_url
    code, answer = post(env["OPENAI_BASE_URL"], "/chat/completions", CHAT, env["OPENAI_API_KEY"])
    assert (code, answer["usage"]["completion_tokens"]) == (200, 4)
    assert post(base_url, "/chat/completions", CHAT)[0] == 401

    tree, supervisor = box.tree(), box.supervisor_pid()
    assert {"main", "EngineCore", "Worker"} <= set(tree)
    assert box.run("down", "tiny").stderr.strip() == "tiny: down"
    assert not listening(port)
    assert not [pid for pid in tree.values() if alive(pid)]
    assert box.left_of_instances() == []
    assert box.endpoints() == {}
    kept = {"lock", "endpoints.json", "events.jsonl", "supervisor.log"}
    assert {str(p.relative_to(box.state)) for p in box.state.rglob("*") if p.is_file()} == kept
    assert box.run("ps").stdout.split() == ["NAME", "PHASE", "URL", "GPUS", "PID", "SINCE", "MODEL"]

    assert supervisor is not None
    eventually(lambda: not alive(supervisor), "the idle supervisor ends by itself")
    assert not box.socket.exists()
    assert box.processes() == {}


def test_ps_with_nothing_ever_up_is_an_empty_table(fresh_box: Box) -> None:
    box = fresh_box
    done = box.run("ps")
    assert done.stdout.split() == ["NAME", "PHASE", "URL", "GPUS", "PID", "SINCE", "MODEL"]
    assert done.stderr == ""
    assert box.ps() == {}
    assert not box.state.exists()


def test_up_again_does_nothing_unless_the_manifest_changed(box: Box) -> None:
    manifest = box.manifest()
    box.run("up", manifest)
    pid = box.ps()["tiny"]["pid"]

    again = box.run("up", manifest)
    assert "tiny: unchanged" in again.stderr
    assert "tiny is ready" in again.stdout
    assert box.ps()["tiny"]["pid"] == pid

    # How it is watched applies to the instance that runs.
    watching = {"readiness": {"timeout": "1h"}}
    applied = box.run("up", box.manifest(**watching)).stderr
    assert "tiny: unchanged\n  readiness.timeout: 1200 s → 3600 s (applies without a restart)\n" in applied
    assert box.ps()["tiny"]["pid"] == pid

    port = box.record()["port"]
    watching["readiness"]["timeout"] = "2h"  # a reason for no restart, and none that is named
    changed = box.run("up", box.manifest(max_model_len=1024, aliases=["other"], **watching))
    assert changed.stderr.startswith(
        "tiny: restarted, since its manifest changed\n"
        "  aliases: added (other)\n"
        "  max_model_len: added (1024)\n"
        "  readiness.timeout: 3600 s → 7200 s (applies without a restart)\n"
    )
    assert box.ps()["tiny"]["pid"] != pid
    assert box.record()["port"] == port
    assert not alive(pid)


def test_several_files_at_once(box: Box) -> None:
    done = box.run("up", box.manifest("one"), box.manifest("two"), "--json")
    assert [status["name"] for status in json.loads(done.stdout)] == ["one", "two"]
    statuses = box.ps()
    assert {status["endpoint"]["phase"] for status in statuses.values()} == {"ready"}
    assert statuses["one"]["endpoint"]["root_url"] != statuses["two"]["endpoint"]["root_url"]
    done = box.run("down", "--all")
    assert sorted(done.stderr.split("\n")[:2]) == ["one: down", "two: down"]
    assert box.left_of_instances() == []


def test_no_wait_returns_at_once_and_wait_waits(box: Box) -> None:
    manifest = box.manifest(fake={"startup": 1.0})
    done = box.run("up", "-d", manifest)
    assert done.stdout == ""
    assert "tiny: starting; `vllm-manager wait tiny` returns when it is ready" in done.stderr
    assert box.phase() in ("pending", "starting")
    assert "wasn't ready within" in box.run("wait", "tiny", "--timeout", "0.1s", exits=7).stderr
    timed_out = box.run("up", manifest, "--timeout", "0.1s", exits=7)
    assert "vllm-manager wait tiny" in timed_out.stderr
    assert "tiny is ready at" in box.run("wait", "tiny", "--timeout", "30s").stdout


def test_two_ups_at_once_start_one_instance(fresh_box: Box) -> None:
    box = fresh_box
    manifest = box.manifest(fake={"startup": 0.5})
    ups = [box.start("up", manifest) for _ in range(2)]
    assert [up.wait() for up in ups] == [0, 0], [up.err for up in ups]
    assert all("tiny is ready" in up.out for up in ups)
    assert box.events().count("starting") == 1


def test_logs_follow_a_restart_and_end_with_the_deployment(box: Box) -> None:
    box.run("up", box.manifest())
    first = box.tree()["main"]
    follower = box.start("logs", "-f", "tiny")
    eventually(lambda: "Application startup complete" in follower.out, "the log is shown")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: box.phase() == "ready" and box.tree()["main"] != first, "it is started again")
    second = box.tree()["main"]
    eventually(lambda: f"(APIServer pid={second})" in follower.out, "the new log is shown")
    eventually(lambda: "tiny was started again" in follower.err, "the change is said")
    box.run("down", "tiny")
    assert follower.wait() == 0
    assert "tiny was taken down" in follower.err


def test_chat_streams(box: Box) -> None:
    box.run("up", box.manifest(fake={"token_delay": 0.15}))
    chat = box.start("chat", "tiny", "hello")
    eventually(lambda: chat.out.startswith("Hello"), "the first token is shown")
    assert chat.process.poll() is None
    assert chat.out != "Hello, this is the fake model.\n"
    assert chat.wait() == 0
    assert chat.out == "Hello, this is the fake model.\n"
    # Without a prompt it reads one from a pipe.
    done = box.run("chat", "tiny", "--max-tokens", "2", stdin=None, input="hello")
    assert done.stdout == "Hello,\n"


def test_down_lets_a_request_finish(box: Box) -> None:
    box.run("up", box.manifest(fake={"token_delay": 0.15}))
    chat = box.start("chat", "tiny", "hello")
    eventually(lambda: chat.out, "the answer began")
    box.run("down", "tiny")
    assert chat.wait() == 0, chat.err
    assert chat.out == "Hello, this is the fake model.\n"


def test_down_now_cuts_a_request_off(box: Box) -> None:
    box.run("up", box.manifest(fake={"stall": 1}))
    with ThreadPoolExecutor() as pool:
        base_url = box.ps()["tiny"]["endpoint"]["root_url"] + "/v1"
        request = pool.submit(post, base_url, "/chat/completions", CHAT)
        metrics = eventually(lambda: _running(base_url), "the request runs")
        assert metrics == 1
        began = time.monotonic()
        box.run("down", "--now", "tiny")
        assert time.monotonic() - began < 4
        assert isinstance(request.exception(DEADLINE), OSError)


def _running(base_url: str) -> float:
    import urllib.request

    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/metrics", timeout=5) as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", text, re.M))


def test_down_while_it_starts(box: Box) -> None:
    # In the phase of their names all hang; `deaf` ignores every signal that can be ignored.
    hanging = {
        "imports": {},
        "engine": {},
        "graphs": {},
        "deaf": {"stall_at": "http", "ignore_sigterm": True},
    }
    manifests = [box.manifest(name, fake={"stall_at": name} | knobs) for name, knobs in hanging.items()]
    box.run("up", "-d", *manifests)
    eventually(lambda: box.tree("imports"), "its process is there")
    eventually(
        lambda: "EngineCore" in box.tree("engine") and "Worker" in box.tree("graphs"), "they are there"
    )
    box.wait_for_phase("loading", name="deaf")
    trees = {name: box.tree(name) for name in hanging}

    began = time.monotonic()
    downs = {name: box.start("down", name) for name in hanging}
    for name in ("imports", "engine", "graphs"):
        assert downs[name].wait() == 0
        assert not [pid for pid in trees[name].values() if alive(pid)]
    # vLLM swallows the first SIGTERM while its engine starts. The second one ends it, no SIGKILL.
    assert time.monotonic() - began < 8
    assert box.ps()["deaf"]["endpoint"]["phase"] == "stopping"
    assert downs["deaf"].wait() == 0
    assert box.left_of_instances() == []
    assert box.ps() == {}


def test_up_while_the_same_is_going_down_starts_it_anew(box: Box) -> None:
    manifest = box.manifest(fake={"token_delay": 0.15})
    box.run("up", manifest)
    first = box.tree()["main"]
    chat = box.start("chat", "tiny", "hello")
    eventually(lambda: chat.out, "the answer began")
    down = box.start("down", "tiny")
    box.wait_for_phase("stopping")
    assert "tiny is ready" in box.run("up", manifest).stdout
    assert down.wait() == 0
    assert chat.wait() == 0
    assert box.ps()["tiny"]["endpoint"]["phase"] == "ready"
    assert box.tree()["main"] != first


def test_interrupted_up_leaves_a_start_that_ps_explains(box: Box) -> None:
    up = box.start("up", box.manifest(fake={"startup": 1.2}))
    eventually(lambda: "tiny: config" in up.err, "the start is shown")
    up.interrupt()
    assert up.wait() == 130
    table = box.run("ps").stdout.splitlines()
    assert re.match(r"tiny +(starting|loading) \(", table[1])
    assert "tiny is ready" in box.run("wait", "tiny").stdout
    assert box.events().count("starting") == 1


def test_an_interrupted_up_names_only_what_is_not_ready_yet(box: Box) -> None:
    up = box.start("up", box.manifest("quick"), box.manifest("slow", fake={"stall_at": "http"}))
    box.wait_for_phase("ready", name="quick")
    eventually(lambda: "quick: warm-up" in up.err, "its last step is shown")
    # Another command of the same kind is told of quick's end at the latest when this one returns.
    box.run("wait", "quick")
    eventually(lambda: "slow: weights" in up.err, "the other start is shown")
    up.interrupt()
    assert up.wait() == 130
    assert "\nslow: goes on; `vllm-manager ps` shows it" in up.err


@pytest.mark.parametrize(("command", "cause"), [("down", "was taken down"), ("stop", "was stopped")])
@pytest.mark.parametrize("waiter", ["up", "wait"])
def test_whoever_waits_is_told_who_ended_it(box: Box, waiter: str, command: str, cause: str) -> None:
    manifest = box.manifest(fake={"stall_at": "http"})
    box.run("up", "-d", manifest)
    waiting = box.start("up", manifest) if waiter == "up" else box.start("wait", "tiny")
    eventually(lambda: "tiny: weights" in waiting.err, "it waits")
    box.run(command, "--now", "tiny")
    assert waiting.wait() == 6
    again = f"up {manifest}` brings it up again" if command == "down" else "start tiny` starts it"
    assert f"error: tiny {cause}\nhint: `vllm-manager {again}\n" in waiting.err


def test_json_has_an_entry_for_every_name_also_for_what_failed(box: Box) -> None:
    bad = box.manifest("bad", fake={"fail_start": "badarg"})
    good = box.manifest("good")
    box.run("up", "-d", box.manifest("owner", port=box.ports[7]))
    refused = box.manifest("refused", port=box.ports[7])
    done = box.run("up", "--json", bad, good, refused, exits=2)
    # Those with a port of their own come first.
    first, second, third = json.loads(done.stdout)
    assert first == {"name": "refused", "error": first["error"]}
    assert first["error"]["code"] == "manifest-conflict"
    assert (second["name"], second["endpoint"]["phase"]) == ("bad", "failed")
    assert second["error"]["cause"]
    assert (third["name"], third["endpoint"]["phase"], third["error"]) == ("good", "ready", None)
    assert "bad didn't start" in done.stderr

    for command in ("start", "restart", "wait"):
        done = box.run(command, "--json", "bad", "nobody", "good", exits=None)
        entries = json.loads(done.stdout)
        assert [entry["name"] for entry in entries] == ["bad", "nobody", "good"]
        assert entries[0]["endpoint"]["phase"] == "failed"
        assert entries[1]["error"]["code"] == "not-found"
        assert entries[2]["endpoint"]["phase"] == "ready"
        assert done.returncode == (6 if command == "wait" else 4)
    done = box.run("start", "-d", "--json", "nobody", "good", exits=4)
    assert [set(entry) == {"name", "error"} for entry in json.loads(done.stdout)] == [True, False]


def test_json_of_a_start_that_is_tried_again_or_not_waited_for_any_longer(box: Box) -> None:
    # The phase at which the command ended, whatever came after it.
    again = box.manifest(
        "again", fake={"fail_start": "oom"}, restart={"backoff_initial": 60, "backoff_max": 60}
    )
    (entry,) = json.loads(box.run("up", "--json", again, exits=6).stdout)
    assert (entry["endpoint"]["phase"], bool(entry["error"]["cause"])) == ("backoff", True)
    slow = box.manifest("slow", fake={"stall_at": "http"})
    (entry,) = json.loads(box.run("up", "--json", "--timeout", "0.5s", slow, exits=7).stdout)
    assert entry["endpoint"]["phase"] in ("pending", "starting", "loading")


def test_interrupted_down_goes_on(box: Box) -> None:
    box.run("up", "-d", box.manifest(fake={"stall_at": "http", "ignore_sigterm": True}))
    box.wait_for_phase("loading")
    down = box.start("down", "tiny")
    box.wait_for_phase("stopping")
    down.interrupt()
    eventually(lambda: "goes on stopping" in down.err or down.process.poll() is not None, "it says so")
    assert down.wait() in (0, 130)
    eventually(lambda: box.phase() is None, "it is down")
    assert box.left_of_instances() == []
