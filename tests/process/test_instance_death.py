"""Deaths of a ready model, or of parts of it: unpublished at once, swept, started again."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from box import Box, alive, eventually, listening


def unpublished_after(box: Box, pid: int) -> float:
    """SIGKILL a process; seconds until endpoints.json stops calling the deployment ready."""
    noticed: list[float] = []

    def watch() -> None:
        while box.phase() == "ready":
            time.sleep(0.002)
        noticed.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    watcher.join(30)
    return noticed[0] - killed


@pytest.mark.parametrize("who", ["main", "EngineCore", "Worker"])
def test_a_killed_process_ends_and_restarts_the_instance(box: Box, who: str) -> None:
    # vLLM itself needs seconds to notice the death of a part of it; nobody waits for that.
    box.run("up", box.manifest(fake={"engine_death_delay": 20}))
    before, first = box.tree(), box.record()
    shared = eventually(lambda: box.record()["shared_memory"], "its shared memory is recorded")
    assert all(map(os.path.exists, shared))

    assert unpublished_after(box, before[who]) < 0.2

    box.wait_for_phase("ready")
    after, second = box.tree(), box.record()
    assert not [name for name, pid in before.items() if alive(pid)]
    assert not any(map(os.path.exists, shared))
    assert not Path(first["cwd"]).exists()
    assert second["instance"] != first["instance"]
    assert second["port"] == first["port"]
    assert set(after) == set(before)
    phases = ["pending", "starting", "loading", "warming", "ready"]
    assert box.events() == [*phases, "sweeping", "backoff", *phases]
    assert box.ps()["tiny"]["restarts"] == 1
    assert box.run("chat", "tiny", "hello").stdout == "Hello, this is the fake model.\n"


def test_a_worker_that_left_the_session_is_swept_too(box: Box) -> None:
    box.run("up", box.manifest(fake={"escape_session": True}))
    tree = box.tree()
    assert os.getsid(tree["Worker"]) != tree["main"]
    os.kill(tree["main"], signal.SIGKILL)
    eventually(lambda: box.phase() == "ready" and box.tree()["main"] != tree["main"], "started again")
    assert not alive(tree["Worker"])


def test_why_it_died_is_told_while_it_is_away(box: Box) -> None:
    manifest = box.manifest(restart={"backoff_initial": 20, "backoff_max": 20})
    box.run("up", manifest)
    os.kill(box.tree()["EngineCore"], signal.SIGKILL)
    box.wait_for_phase("backoff")
    listed = box.run("ps")
    assert re.search(r"^tiny +backoff \(again in \d+ s\)", listed.stdout, re.M)
    # The worker sees EngineCore's end within the same instant.
    assert re.search(r"(EngineCore|Worker) \(pid \d+\) ended while the model was ready", listed.stderr)
    assert "ended while the model was ready" in box.run("chat", "tiny", "hello", exits=1).stderr
    # Whoever doesn't want to wait brings it up again.
    assert "tiny is ready" in box.run("up", manifest).stdout


def test_it_is_given_up_after_too_many_restarts(box: Box) -> None:
    box.run("up", box.manifest(restart={"backoff_initial": 0.05, "max_restarts": 1}))
    os.kill(box.tree()["main"], signal.SIGKILL)
    eventually(lambda: box.events().count("ready") == 2, "ready again")
    os.kill(box.tree()["main"], signal.SIGKILL)
    box.wait_for_phase("failed")
    assert "ended while the model was ready" in box.run("wait", "tiny", exits=6).stderr


def test_a_death_while_it_starts(box: Box) -> None:
    box.run("up", "-d", box.manifest(fake={"stall_at": "graphs"}))
    eventually(lambda: "Worker" in box.tree(), "the worker runs")
    tree = box.tree()
    os.kill(tree["main"], signal.SIGKILL)
    eventually(lambda: box.events().count("starting") == 2, "started again")
    assert not [pid for pid in tree.values() if alive(pid)]


def test_the_port_is_kept_though_clients_are_connected(box: Box) -> None:
    box.run("up", box.manifest())
    port = box.record()["port"]
    assert listening(port)  # leaves a connection in TIME_WAIT
    os.kill(box.tree()["main"], signal.SIGKILL)
    eventually(lambda: box.events().count("ready") == 2, "ready again")
    assert box.record()["port"] == port
