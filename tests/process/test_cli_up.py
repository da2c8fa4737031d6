"""up of files and directories: what changed, what is gone, what is to be replaced."""

import json
from pathlib import Path
from typing import Any

from box import MODEL, Box, alive


def write(box: Box, file: str, *deployments: dict[str, Any], **defaults: Any) -> Path:
    """A manifest with several deployments of the fake vLLM."""
    path = box.root / "several" / file
    path.parent.mkdir(exist_ok=True)
    common = {
        "model": str(MODEL),
        "gpus": "none",
        "args": {"load-format": "dummy"},
        "engine": {"python": str(box.engine)},
        "env": {"FAKE_VLLM": '{"startup": 0.02}'},
    }
    path.write_text(json.dumps({"defaults": common | defaults, "deployments": deployments}))
    return path


def pids(box: Box) -> dict[str, int]:
    return {name: status["pid"] for name, status in box.ps().items()}


def test_a_directory_of_manifests_with_several_deployments_each(box: Box) -> None:
    write(box, "a.yaml", {"name": "one"}, {"name": "two"})
    write(box, "b.yml", {"name": "three"})
    (box.root / "several" / "notes.txt").write_text("no manifest")
    directory = box.root / "several"
    done = box.run("up", directory)
    for name in ("one", "two", "three"):
        assert f"{name} is ready at" in done.stdout
    before = pids(box)

    # One of them changes, one goes, one comes: nothing else is touched.
    write(box, "a.yaml", {"name": "one", "max_model_len": 256}, {"name": "four"})
    planned = box.run("plan", directory).stdout
    assert "two: is no longer in several/a.yaml; it runs on: " in planned
    assert planned.endswith("plan: 1 no longer declared, 1 to restart, 1 to start, 1 unchanged\n")
    done = box.run("up", directory)
    assert (
        f"two is no longer in several/a.yaml; it runs on: `vllm-manager up --prune {directory}` ends it"
        in done.stderr
    )
    assert "one: restarted, since its manifest changed\n  max_model_len: added (256)\n" in done.stderr
    assert "three: unchanged" in done.stderr
    after = pids(box)
    assert {name for name, pid in after.items() if before.get(name) == pid} == {"two", "three"}

    # Asking for one file says nothing of what another file declared.
    (box.root / "several" / "b.yml").unlink()
    assert "no longer" not in box.run("up", box.root / "several" / "a.yaml").stderr.replace(
        "two is no longer", ""
    )
    planned = box.run("plan", "--prune", directory).stdout
    assert "three: ends, since it is no longer in" in planned
    assert pids(box) == after
    done = box.run("up", "--prune", directory)
    assert "three: down, since it is no longer in" in done.stderr
    assert "two: down, since it is no longer in" in done.stderr
    assert set(box.ps()) == {"one", "four"}
    assert not alive(after["two"])


def test_a_stopped_one_that_is_no_longer_declared_stays_stopped(box: Box) -> None:
    write(box, "a.yaml", {"name": "one"}, {"name": "two"})
    box.run("up", box.root / "several" / "a.yaml")
    box.run("stop", "two")
    path = write(box, "a.yaml", {"name": "one"})
    assert "two is no longer in several/a.yaml; it is kept, stopped: " in box.run("up", path).stderr
    assert box.phase("two") == "stopped"


def test_recreate_replaces_what_is_unchanged(box: Box) -> None:
    manifest = box.manifest()
    box.run("up", manifest)
    first, port = box.tree()["main"], box.record()["port"]
    done = box.run("up", "--recreate", manifest)
    assert "tiny: restarted, as asked for" in done.stderr
    assert "tiny is ready" in done.stdout
    assert not alive(first)
    assert box.record()["port"] == port


def test_a_fixed_manifest_starts_what_had_failed(box: Box) -> None:
    box.run("up", box.manifest(fake={"fail_start": "badarg"}), exits=6)
    box.wait_for_phase("failed")
    assert (
        "tiny: starts again, failed now\n  env.FAKE_VLLM: changed\n" in box.run("plan", box.manifest()).stdout
    )
    done = box.run("up", box.manifest())
    assert "tiny: started again, with what changed in its manifest\n  env.FAKE_VLLM: changed\n" in done.stderr
    assert box.phase() == "ready"


def test_serve_takes_directories_and_leaves_alone_what_was_stopped(fresh_box: Box) -> None:
    box = fresh_box
    write(box, "a.yaml", {"name": "one"}, {"name": "two"})
    supervisor = box.serve(box.root / "several")
    for name in ("one", "two"):
        box.wait_for_phase("ready", name=name)
    box.run("stop", "two")
    supervisor.process.terminate()
    assert supervisor.wait() == 0
    # As at the next boot.
    supervisor = box.serve(box.root / "several")
    box.wait_for_phase("ready", name="one")
    assert box.phase("two") == "stopped"
    assert "two stays stopped, as asked for" in supervisor.err
