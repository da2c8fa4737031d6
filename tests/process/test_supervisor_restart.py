"""The supervisor ends, in every way and at any moment: models don't notice, and the next one goes on."""

import json
import os
import signal
import socket
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from box import Box, alive, eventually


@pytest.fixture
def box(fresh_box: Box) -> Box:
    """Each test has its own: it ends supervisors."""
    return fresh_box


def edit_record(box: Box, name: str = "tiny", **handle: Any) -> None:
    """Change values of the handle in an instance's record."""
    record = box.record(name)
    record["handle"]["data"] |= handle
    (box.state / "instances" / f"{name}.json").write_text(json.dumps(record))


def start_time(pid: int) -> int:
    """proc_pid_stat(5), field 22."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


# --- killed while models are ready -------------------------------------------------------------------


def test_models_run_on_and_are_taken_over(box: Box) -> None:
    manifest = box.manifest(api_key="generate")
    box.run("up", manifest, box.manifest("other"))
    before = {name: box.tree(name) for name in ("tiny", "other")}
    key = box.key()
    box.kill_supervisor()

    gone = box.run("ps", exits=5)
    assert [line.split()[1] for line in gone.stdout.splitlines()[1:]] == ["ready", "ready"]
    assert "no supervisor answers, though other, tiny run on" in gone.stderr
    assert box.ps(exits=5)["tiny"]["pid"] == before["tiny"]["main"]
    assert box.run("chat", "tiny", "hello").stdout == "Hello, this is the fake model.\n"
    assert box.run("logs", "-n", "1", "tiny").stdout
    assert "no supervisor answers" in box.run("wait", "tiny", exits=5).stderr

    assert "tiny: unchanged" in box.run("up", manifest).stderr
    assert {name: box.tree(name) for name in ("tiny", "other")} == before
    assert box.key() == key
    assert [status["restarts"] for status in box.ps().values()] == [0, 0]
    assert box.ps()["tiny"]["ready_after"] is not None

    # Taken over is as good as started: deaths are seen, and a stop is clean.
    os.kill(before["tiny"]["EngineCore"], signal.SIGKILL)
    eventually(lambda: box.events().count("ready") == 2, "ready again")
    box.run("down", "--all")
    assert box.left_of_instances() == []


def test_killed_again_and_again(box: Box) -> None:
    box.run("up", box.manifest())
    main = box.tree()["main"]
    for _ in range(2):
        box.kill_supervisor()
        began = time.monotonic()
        served = box.serve()
        assert time.monotonic() - began < 5
        assert box.ps()["tiny"]["pid"] == main
        assert served.process.poll() is None
    assert box.events().count("starting") == 1


def test_a_model_that_died_meanwhile_is_started_once(box: Box) -> None:
    box.run("up", box.manifest())
    tree, first = box.tree(), box.record()
    box.kill_supervisor()
    os.kill(tree["main"], signal.SIGKILL)
    eventually(lambda: not alive(tree["main"]), "the main process is dead")
    assert alive(tree["EngineCore"])  # as vLLM's, it outlives the API server
    assert box.ps()["tiny"]["endpoint"]["phase"] == "stopped"

    box.serve()
    eventually(lambda: box.phase() == "ready" and box.tree()["main"] != tree["main"], "started again")
    assert not [pid for pid in tree.values() if alive(pid)]
    assert not Path(first["cwd"]).exists()
    assert box.events().count("starting") == 2
    assert box.ps()["tiny"]["restarts"] == 1


# --- killed at other moments -------------------------------------------------------------------------


def test_down_without_a_supervisor_starts_one_to_do_it(box: Box) -> None:
    box.run("up", box.manifest(), box.manifest("other"))
    tree, other = box.tree(), box.tree("other")
    box.kill_supervisor()
    os.kill(tree["main"], signal.SIGKILL)  # its engine lives on, and only a sweep finds it
    box.run("down", "tiny")
    assert not [pid for pid in tree.values() if alive(pid)]
    assert box.tree("other") == other
    assert list(box.ps()) == ["other"]
    box.kill_supervisor()
    box.run("down", "--all")
    assert box.left_of_instances() == []
    assert "nothing is up" in box.run("down", "--all").stderr
    assert "no deployment named" in box.run("down", "tiny", exits=4).stderr


def test_up_of_a_model_that_was_lost_meanwhile_brings_it_up(box: Box) -> None:
    manifest = box.manifest()
    box.run("up", manifest)
    tree = box.tree()
    box.kill_supervisor()
    for pid in tree.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert "tiny is ready" in box.run("up", manifest).stdout


def test_killed_during_a_start(box: Box) -> None:
    hanging = ["imports", "http"]
    box.run("up", "-d", *(box.manifest(name, fake={"stall_at": name}) for name in hanging))
    eventually(lambda: box.tree("imports") and "Worker" in box.tree("http"), "they are starting")
    box.wait_for_phase("loading", name="http")
    before = {name: box.tree(name) for name in hanging}
    box.kill_supervisor()
    box.serve()
    assert {name: status["endpoint"]["phase"] for name, status in box.ps().items()} == {
        "imports": "starting",
        "http": "loading",
    }
    assert {name: box.tree(name) for name in hanging} == before
    box.run("down", "--now", *hanging)
    assert box.left_of_instances() == []


def test_a_start_goes_on_to_ready(box: Box) -> None:
    up = box.start("up", box.manifest(fake={"startup": 3.0}))
    eventually(lambda: "Worker" in box.tree(), "it is loading")
    main = box.tree()["main"]
    box.wait_for_phase("loading")
    seen = {step["name"]: step["began"] for step in box.record()["steps"]}
    box.kill_supervisor()
    assert up.wait() == 5
    assert "the supervisor ended" in up.err
    box.serve()
    box.run("wait", "tiny")
    assert box.tree()["main"] == main
    assert box.events().count("starting") == 1
    steps = {step["name"]: step["began"] for step in box.ps()["tiny"]["steps"]}
    assert {"import", "weights", "warm-up"} <= set(steps)
    assert steps["import"] < steps["weights"] < steps["warm-up"]
    assert "engine" in seen
    assert steps | seen == steps


def test_a_stop_is_finished(box: Box) -> None:
    box.run("up", "-d", box.manifest(fake={"stall_at": "http", "ignore_sigterm": True}))
    box.wait_for_phase("loading")
    tree = box.tree()
    down = box.start("down", "tiny")
    box.wait_for_phase("stopping")
    box.kill_supervisor()
    assert down.wait() == 5
    supervisor = box.serve()
    assert alive(tree["main"])
    os.kill(tree["main"], signal.SIGKILL)  # the grace period is long
    eventually(lambda: box.phase() is None, "it is down")
    assert not [pid for pid in tree.values() if alive(pid)]
    assert box.left_of_instances() == []
    assert box.ps() == {}
    assert supervisor.process.poll() is None


def test_a_change_is_finished(box: Box) -> None:
    """Killed between taking note of a changed manifest and ending what ran by the old one."""
    knobs = {"stall_at": "http", "ignore_sigterm": True}
    box.run("up", "-d", box.manifest(fake=knobs))
    box.wait_for_phase("loading")
    old = box.tree()["main"]
    up = box.start("up", "-d", box.manifest(aliases=["second"]))
    box.wait_for_phase("stopping")
    box.kill_supervisor()
    assert up.wait() == 5
    box.serve()
    os.kill(old, signal.SIGKILL)  # the grace period is long
    box.run("wait", "tiny")
    assert box.endpoints()["tiny"]["names"] == ["tiny", "second"]
    assert not alive(old)


# --- several, signals, socket ------------------------------------------------------------------------


def test_of_ten_at_once_one_wins(box: Box) -> None:
    started = [box.start("serve") for _ in range(10)]
    eventually(lambda: sum(s.process.poll() is None for s in started) == 1, "one wins")
    eventually(box.socket.is_socket, "it listens")
    winner = next(s for s in started if s.process.poll() is None)
    assert box.supervisor_pid() == winner.pid
    losers = [s for s in started if s is not winner]
    assert [s.wait() for s in losers] == [8] * 9
    # A loser that came before the winner had written its pid can't name it.
    assert any(f"another supervisor, pid {winner.pid}, has {box.state}" in s.err for s in losers)
    assert box.run("ps").returncode == 0


def test_sigterm_stops_everything_until_the_next_supervisor(box: Box) -> None:
    supervisor = box.serve(box.manifest())
    box.wait_for_phase("ready")
    supervisor.process.terminate()
    assert supervisor.wait() == 0
    assert box.left_of_instances() == []
    assert box.processes() == {}
    assert not box.socket.exists()
    # What nobody took down comes up with the next supervisor, as after a reboot.
    box.serve()
    box.wait_for_phase("ready")


def test_a_second_interrupt_skips_the_grace(box: Box) -> None:
    supervisor = box.serve(box.manifest(fake={"stall_at": "http", "ignore_sigterm": True}))
    box.wait_for_phase("loading")
    supervisor.interrupt()
    box.wait_for_phase("stopping")
    assert "stopping" in box.run("ps").stdout
    supervisor.interrupt()
    assert supervisor.wait(5) == 0
    assert box.left_of_instances() == []


def test_sigusr1_leaves_everything_running(box: Box) -> None:
    supervisor = box.serve(box.manifest())
    box.wait_for_phase("ready")
    tree = box.tree()
    supervisor.process.send_signal(signal.SIGUSR1)
    assert supervisor.wait() == 0
    assert all(map(alive, tree.values()))
    assert box.run("ps", exits=5).stdout.splitlines()[1].split()[1] == "ready"
    box.serve()
    assert box.ps()["tiny"]["pid"] == tree["main"]
    assert box.tree() == tree


def test_a_background_supervisor_that_is_told_to_end_leaves_its_models_running(box: Box) -> None:
    box.run("up", box.manifest())
    pid, tree = box.supervisor_pid(), box.tree()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not alive(pid), "the supervisor ended")
    assert all(map(alive, tree.values()))
    box.run("up", box.manifest())
    assert box.tree() == tree


def test_a_stale_socket_is_replaced_and_a_lost_one_made_anew(box: Box) -> None:
    box.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(box.socket))
    assert box.run("ps").returncode == 0
    box.run("up", box.manifest())
    assert stat.S_IMODE(box.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(box.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(box.state.stat().st_mode) == 0o700

    box.socket.unlink()
    eventually(box.socket.is_socket, "the socket is back")
    assert set(box.ps()) == {"tiny"}
    assert stat.S_IMODE(box.socket.stat().st_mode) == 0o600


# --- records that tell of something else -------------------------------------------------------------


def test_a_stranger_with_a_recorded_pid_is_left_alone(box: Box) -> None:
    names = ["rebooted", "reused"]
    box.run("up", *map(box.manifest, names))
    box.kill_supervisor()
    for pid in (pid for name in names for pid in box.tree(name).values()):
        os.kill(pid, signal.SIGKILL)
    # Leaders of their sessions, as instances are.
    strangers = [subprocess.Popen(["sleep", "60"], start_new_session=True, cwd="/") for _ in names]
    try:
        one, other = (stranger.pid for stranger in strangers)
        edit_record(box, "rebooted", pid=one, start_time=start_time(one), boot_id="another boot")
        edit_record(box, "reused", pid=other, start_time=start_time(other) - 1)
        assert {status["endpoint"]["phase"] for status in box.ps().values()} == {"stopped"}
        box.serve()
        box.run("wait", *names)
        box.run("down", *names)
        assert [stranger.poll() for stranger in strangers] == [None, None]
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def test_damaged_instance_records(box: Box) -> None:
    damage = {"empty": "", "cut": '{"instance": "tiny-', "other-fields": '{"instance": 1}'}
    box.run("up", box.manifest(), *map(box.manifest, damage))
    before = {name: box.tree(name) for name in ("tiny", *damage)}
    box.kill_supervisor()
    records = box.state / "instances"
    for name, text in damage.items():
        (records / f"{name}.json").write_text(text)
    box.run("ps", exits=5)

    supervisor = box.serve()
    for name, text in damage.items():
        assert (records / f"{name}.json.corrupt-1").read_text() == text
        assert f"{name}.json is damaged" in supervisor.err
    assert box.tree() == before["tiny"]
    box.run("wait", *damage)
    # What ran without a record is not left beside the new instance.
    assert not [pid for name in damage for pid in before[name].values() if alive(pid)]
    box.run("down", "--all")
    assert box.left_of_instances() == []


def test_a_damaged_deployment_record(box: Box) -> None:
    manifest = box.manifest()
    box.run("up", manifest, box.manifest("other"))
    main, other = box.tree()["main"], box.tree("other")
    box.kill_supervisor()
    path = box.state / "deployments" / "tiny.json"
    path.write_text(path.read_text()[:40])

    supervisor = box.serve()
    assert (path.parent / "tiny.json.corrupt-1").exists()
    assert "tiny.json is damaged" in supervisor.err
    assert box.ps()["other"]["pid"] == other["main"]
    # The manifest makes it whole again; nothing of it runs twice.
    box.run("up", manifest)
    assert len([pid for pid, name in box.processes().items() if name == "EngineCore"]) == 2
    assert box.tree()["main"] == main or not alive(main)
    box.run("down", "--all")
    assert box.left_of_instances() == []


def test_damaged_secrets_and_endpoints(box: Box) -> None:
    manifest = box.manifest(api_key="generate")
    box.run("up", manifest)
    box.kill_supervisor()
    (box.state / "secrets" / "tiny.json").write_text('{"api_key": "sk-')
    (box.state / "endpoints.json").write_text("{")
    refused = box.run("chat", "tiny", "hello", exits=1)
    assert "endpoints.json can't be read" in refused.stderr
    box.run("ps", exits=None)
    box.serve()
    # Its key is lost, so `up` gives it a new one.
    assert "api_key" in box.run("up", manifest).stderr
    assert box.run("chat", "tiny", "hello").stdout == "Hello, this is the fake model.\n"
