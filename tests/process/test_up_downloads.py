"""Models of a hub that are brought up: fetched first, by whichever supervisor is there."""

import os
import signal
from pathlib import Path

from box import Box, alive, eventually
from downloading import MODEL, SHARD, workers

from tests.fakes.hub import Hub


def at_the_hub(box: Box, hub: Hub, **fields: object) -> tuple[Path, dict[str, str]]:
    """A manifest of the hub's model, and the variables that lead there."""
    manifest = box.manifest(model=MODEL, args={}, **fields)
    return manifest, {"HF_ENDPOINT": hub.url, "HF_HOME": str(box.root / "hf"), "NO_PROXY": "*"}


def test_the_weights_are_fetched_before_the_engine_starts(fresh_box: Box, hub: Hub) -> None:
    box = fresh_box
    manifest, variables = at_the_hub(box, hub, readiness={"timeout": "10s", "stall": "10s"})
    hub.hold[SHARD] = 600_000
    starting = box.start("up", manifest, env=variables)
    held = eventually(lambda: (box.ps().get("tiny") or {}).get("download"), "a download is shown")
    assert held["repository"] == MODEL
    assert 0 < held["done"] < held["total"]
    assert box.phase() == "pending"
    assert box.tree() == {}
    assert "download" in box.run("ps").stdout
    hub.release.set()
    assert starting.wait() == 0
    assert "tiny: download" in starting.err
    assert box.ps()["tiny"]["download"] is None
    assert box.run("chat", "tiny", "hello").stdout == "Hello, this is the fake model.\n"


def test_a_download_under_way_ends_with_its_deployment(fresh_box: Box, hub: Hub) -> None:
    box = fresh_box
    manifest, variables = at_the_hub(box, hub)
    hub.hold[SHARD] = 600_000
    box.run("up", "-d", manifest, env=variables)
    worker = eventually(lambda: workers(box.supervisor_pid()), "a download is under way")[0]
    box.run("down", "tiny")
    assert not alive(worker.pid)
    assert box.ps() == {}


def test_a_supervisor_that_is_killed_takes_no_download_with_it(fresh_box: Box, hub: Hub) -> None:
    box = fresh_box
    manifest, variables = at_the_hub(box, hub)
    hub.hold[SHARD] = 600_000
    box.run("up", "-d", manifest, env=variables)
    (worker,) = eventually(lambda: workers(box.supervisor_pid()), "a download is under way")
    eventually(lambda: (box.ps()["tiny"]["download"] or {}).get("done", 0) >= 600_000, "a part has arrived")
    box.kill_supervisor()
    eventually(lambda: not alive(worker.pid), "the download ended with it")
    hub.hold.clear()
    box.serve()
    box.wait_for_phase("ready")
    assert hub.sent(SHARD)[-1].range is not None


def test_what_cannot_be_had_is_told_once_with_its_remedy(fresh_box: Box, hub: Hub) -> None:
    box = fresh_box
    hub.repositories[MODEL].gated = True
    manifest, variables = at_the_hub(box, hub)
    said = box.run("up", manifest, env=variables, exits=6).stderr
    assert "gated" in said
    assert f"huggingface.co/{MODEL}" in said
    assert box.events() == ["pending", "sweeping", "failed"]


def test_a_crash_asks_the_hub_nothing(fresh_box: Box, hub: Hub) -> None:
    box = fresh_box
    manifest, variables = at_the_hub(box, hub)
    box.run("up", manifest, env=variables)
    asked, first = len(hub.requests), box.record()["instance"]
    os.kill(box.tree()["main"], signal.SIGKILL)
    eventually(lambda: box.phase() == "ready" and box.record()["instance"] != first, "it was restarted")
    assert len(hub.requests) == asked
