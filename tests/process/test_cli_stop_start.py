"""stop, start and restart: what is wanted of a deployment outlives supervisors."""

import json
import os
import signal
import time

import pytest
from box import Box, alive, eventually, listening


@pytest.fixture
def box(fresh_box: Box) -> Box:
    """Each test has its own: it ends supervisors."""
    return fresh_box


def test_a_stopped_deployment_stays_known_and_stopped(box: Box) -> None:
    box.run("up", box.manifest(api_key="generate"))
    tree, port, key = box.tree(), box.record()["port"], box.key()
    assert box.run("stop", "tiny").stderr == "tiny: stopped\n"
    assert not [pid for pid in tree.values() if alive(pid)]
    assert not listening(port)
    assert list((box.state / "run").iterdir()) == []
    assert box.run("ps").stdout.splitlines()[1].split()[:2] == ["tiny", "stopped"]
    assert box.ps()["tiny"]["error"] is None
    assert box.run("logs", "-n", "1", "tiny").stdout
    waited = box.run("wait", "tiny", exits=6)
    assert "tiny was stopped\nhint: `vllm-manager start tiny` starts it" in waited.stderr
    assert box.run("stop", "tiny").stderr == "tiny: stopped\n"

    # It keeps no supervisor alive, and needs none to be listed.
    supervisor = box.supervisor_pid()
    eventually(lambda: box.supervisor_pid() is None, "the idle supervisor ends by itself")
    assert supervisor is not None
    assert not alive(supervisor)
    listed = box.run("ps")
    assert listed.stdout.splitlines()[1].split()[:2] == ["tiny", "stopped"]
    assert listed.stderr == ""
    assert box.ps()["tiny"]["source"] == str(box.root / "manifests" / "tiny.yaml")

    # Neither does the next supervisor start it.
    box.serve()
    assert box.phase() == "stopped"
    box.run("up", box.manifest("other"))
    assert box.phase() == "stopped"

    started = box.run("start", "tiny")
    assert started.stdout == f"tiny is ready at http://127.0.0.1:{port}/v1\n"
    assert box.key() == key
    assert box.run("chat", "tiny", "hello").stdout == "Hello, this is the fake model.\n"
    again = box.run("start", "tiny")
    assert "tiny: runs already" in again.stderr
    assert "tiny is ready at" in again.stdout


def test_start_without_a_supervisor_starts_one(box: Box) -> None:
    box.run("up", box.manifest())
    box.run("stop", "tiny")
    eventually(lambda: box.supervisor_pid() is None, "the idle supervisor ends by itself")
    assert "did you mean tiny?" in box.run("start", "tinny", exits=4).stderr
    assert box.supervisor_pid() is None
    assert "tiny is ready" in box.run("start", "--all").stdout
    assert json.loads(box.run("start", "--json", "tiny").stdout)[0]["endpoint"]["phase"] == "ready"


def test_up_resumes_what_was_stopped(box: Box) -> None:
    manifest = box.manifest()
    box.run("up", manifest)
    port = box.record()["port"]
    box.run("stop", "--all")
    done = box.run("up", manifest)
    assert "tiny: started again\n" in done.stderr
    assert box.record()["port"] == port
    box.run("stop", "tiny")
    changed = box.run("up", box.manifest(max_model_len=256))
    assert (
        "tiny: started again, with what changed in its manifest\n  max_model_len: added (256)"
        in changed.stderr
    )
    assert box.record()["port"] == port


def test_restart_keeps_the_port_and_starts_what_is_stopped(box: Box) -> None:
    box.run("up", box.manifest(), box.manifest("other"))
    before, port = {name: box.tree(name)["main"] for name in ("tiny", "other")}, box.record()["port"]
    done = box.run("restart", "tiny")
    assert done.stdout == f"tiny is ready at http://127.0.0.1:{port}/v1\n"
    assert not alive(before["tiny"])
    assert box.tree("other")["main"] == before["other"]
    box.run("stop", "tiny")
    assert "tiny is ready" in box.run("restart", "tiny").stdout
    box.run("restart", "-d", "--all")
    box.run("wait", "tiny", "other")
    assert not alive(before["other"])
    assert "no deployment named" in box.run("restart", "nobody", exits=4).stderr


def test_a_supervisor_that_is_killed_changes_nothing_that_is_wanted(box: Box) -> None:
    box.run("up", box.manifest(), box.manifest("other"))
    box.run("stop", "tiny")
    other = box.tree("other")
    box.kill_supervisor()
    assert {n: s["endpoint"]["phase"] for n, s in box.ps(exits=5).items()} == {
        "tiny": "stopped",
        "other": "ready",
    }
    box.serve()
    assert box.tree("other") == other
    assert box.ps()["other"]["restarts"] == 0
    assert box.phase() == "stopped"
    assert box.events()[-1] == "stopped"

    # Without a supervisor, `stop` leaves word and starts one that heeds it.
    box.kill_supervisor()
    assert box.run("stop", "other").stderr == "other: stopped\n"
    assert not [pid for pid in other.values() if alive(pid)]
    eventually(lambda: box.supervisor_pid() is None, "the idle supervisor ends by itself")
    assert {status["endpoint"]["phase"] for status in box.ps().values()} == {"stopped"}
    box.run("down", "--all")
    assert box.ps() == {}
    assert list((box.state / "deployments").iterdir()) == []


def test_a_stop_that_is_cut_off_is_finished(box: Box) -> None:
    box.run("up", "-d", box.manifest(fake={"stall_at": "http", "ignore_sigterm": True}))
    box.wait_for_phase("loading")
    tree = box.tree()
    stop = box.start("stop", "tiny")
    box.wait_for_phase("stopping")
    box.kill_supervisor()
    assert stop.wait() == 5
    assert "the supervisor ended before tiny was stopped\nhint: run it again: " in stop.err
    box.serve()
    os.kill(tree["main"], signal.SIGKILL)  # the grace period is long
    box.wait_for_phase("stopped")
    assert not [pid for pid in tree.values() if alive(pid)]
    assert box.left_of_instances() == []


def test_what_the_next_supervisor_will_start_is_told(box: Box) -> None:
    box.run("up", box.manifest(), box.manifest("other"), box.manifest("kept"))
    box.run("stop", "kept")
    main, other = box.tree()["main"], box.tree("other")["main"]
    box.kill_supervisor()
    assert "is to run, but" not in box.run("ps", exits=5).stderr
    os.kill(main, signal.SIGKILL)
    os.kill(other, signal.SIGKILL)
    eventually(lambda: not alive(main) and not alive(other), "they are dead")
    listed = box.run("ps", "tiny")
    assert listed.stderr == (
        "tiny is to run, but no supervisor does: `vllm-manager start tiny` starts both\n"
    )
    assert "kept" not in box.run("ps").stderr

    down = box.run("down", "tiny")
    assert down.stderr == (
        "this starts a supervisor, which will start other too, since it is to run\ntiny: down\n"
    )
    box.wait_for_phase("ready", name="other")


def test_start_while_it_is_stopping_starts_it_anew(box: Box) -> None:
    box.run("up", box.manifest(fake={"token_delay": 0.15}))
    first, port = box.tree()["main"], box.record()["port"]
    chat = box.start("chat", "tiny", "hello")
    eventually(lambda: chat.out, "the answer began")
    stop = box.start("stop", "tiny")
    box.wait_for_phase("stopping")
    assert "tiny is ready" in box.run("start", "tiny").stdout
    assert stop.wait() == 0
    assert chat.wait() == 0
    assert box.tree()["main"] != first
    assert box.record()["port"] == port


def test_start_while_it_goes_down_is_refused(box: Box) -> None:
    box.run("up", "-d", box.manifest(fake={"stall_at": "http", "ignore_sigterm": True}))
    box.wait_for_phase("loading")
    down = box.start("down", "tiny")
    box.wait_for_phase("stopping")
    for command in ("stop", "restart"):
        assert "tiny is being taken down" in box.run(command, "tiny", exits=4).stderr
    box.run("down", "--now", "tiny")
    assert down.wait() in (0, 4)
    assert box.ps() == {}


def test_stop_now_cuts_the_grace_short(box: Box) -> None:
    box.run("up", "-d", box.manifest(fake={"stall_at": "http", "ignore_sigterm": True}))
    box.wait_for_phase("loading")
    began = time.monotonic()
    box.run("stop", "--now", "tiny")
    assert time.monotonic() - began < 5
    assert box.phase() == "stopped"


def test_names_or_all(box: Box) -> None:
    for command in ("stop", "start", "restart", "down"):
        assert "--all" in box.run(command, exits=2).stderr
        assert "not both" in box.run(command, "x", "--all", exits=2).stderr
    assert "there are no deployments" in box.run("start", "--all").stderr
    assert "nothing is up" in box.run("stop", "--all").stderr
