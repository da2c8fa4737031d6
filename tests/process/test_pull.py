"""The command `pull`, on a terminal and in a pipe, on disks large and small."""

import json
import os
import pty
import select
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from box import alive, eventually
from downloading import MODEL, SHARD, get, held, workers

from tests.fakes.hub import small_model
from vllm_manager.errors import DiskFull

# --- disk space

rooted = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def small_disk(tmp_path):
    """Put before a command: gives it a cache on a disk of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=4m none {disk} && exec "$@"'
    return disk, ["unshare", "--mount", "sh", "-c", mount, "sh"]


def pull_command(*arguments):
    return [sys.executable, "-m", "vllm_manager", "pull", *arguments]


@rooted
def test_missing_disk_space_is_told_before_anything_large_is_fetched(hub, environment, small_disk):
    hub.add(MODEL, files=small_model(6_000_000))
    disk, prefix = small_disk
    done = subprocess.run(
        [*prefix, *pull_command(MODEL)],
        env=environment | {"HF_HUB_CACHE": str(disk)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == DiskFull.exit_code
    assert f"error: no room for {MODEL} in {disk}: 0.01 GB are still to come" in done.stderr
    assert "HF_HOME" in done.stderr
    assert not [r for r in hub.requests if r.path.startswith("/cdn/")]


@rooted
def test_a_disk_that_gets_full_in_the_middle_is_named(hub, environment, small_disk):
    disk, prefix = small_disk
    hub.hold[SHARD] = 600_000
    process = subprocess.Popen(
        [*prefix, *pull_command(MODEL)],
        env=environment | {"HF_HUB_CACHE": str(disk)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: hub.sent(SHARD), "the file is on its way")
        (worker,) = eventually(lambda: workers(process.pid), "there is a worker")
        inside = Path(f"/proc/{worker.pid}/root{disk}")
        with suppress(OSError), (inside / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        hub.release.set()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == DiskFull.exit_code
    assert f"error: no room for {MODEL} in {disk}: the disk is full" in err


# --- the command


def test_pull_in_a_pipe_prints_lines_and_the_path(hub, environment):
    done = subprocess.run(
        pull_command(MODEL), env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    fetched = get(environment)
    assert done.stdout.splitlines()[0].split() == ["REPOSITORY", "REVISION", "COMMIT", "SIZE", "PATH"]
    assert done.stdout.splitlines()[1].split()[-1] == fetched.path
    assert f"{MODEL}: 0.00 of 0.00 GB" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_pull_prints_json(hub, environment):
    done = subprocess.run(
        pull_command(MODEL, "--json"), env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    (result,) = json.loads(done.stdout)
    assert result["commit"] == hub.repositories[MODEL].commit
    assert result["bytes"] == get(environment).bytes
    assert Path(result["path"], "config.json").is_file()


def test_pull_takes_manifests_and_ids_together(hub, environment, tmp_path):
    hub.add("org/embed")
    manifest = tmp_path / "embed.yaml"
    manifest.write_text("name: embed\nmodel: org/embed\ngpus: none\n")
    done = subprocess.run(
        pull_command(MODEL, str(manifest), "--json"),
        env=environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert [each["repository"] for each in json.loads(done.stdout)] == [MODEL, "org/embed"]


@pytest.mark.parametrize(
    ("argument", "words"), [("no such thing", "no Hugging Face id"), ("missing.yaml", "missing.yaml")]
)
def test_pull_of_nonsense_is_a_usage_error(environment, argument, words, tmp_path):
    done = subprocess.run(
        pull_command(argument), env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert words in done.stderr


def test_pull_on_a_terminal_shows_a_bar_and_ctrl_c_says_that_it_can_go_on(hub, environment):
    hub.hold[SHARD] = 600_000
    parent, child = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *pull_command(MODEL)],
        env=environment | {"TERM": "xterm-256color", "COLUMNS": "100"},
        stdin=child,
        stdout=child,
        stderr=child,
    )
    os.close(child)
    said = b""

    def read() -> bytes:
        nonlocal said
        if select.select([parent], [], [], 0)[0]:
            with suppress(OSError):  # the terminal's other side was closed
                said += os.read(parent, 65536)
        return said

    try:
        held(environment, hub)
        eventually(lambda: b"/3.0 MB" in read(), "a bar is shown")
        (worker,) = workers(process.pid)
        os.write(parent, b"\x03")
        eventually(lambda: process.poll() is not None or (read() and False), "it has ended")
        eventually(lambda: b"interrupted" in read(), "it says so")
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    assert process.returncode == 130
    assert b"what has arrived is kept; the same command goes on from there" in said
    assert not alive(worker.pid)
    hub.release.set()
    get(environment)
    assert hub.sent(SHARD)[-1].range is not None


def test_the_command_line_does_not_import_the_hub_s_library():
    program = (
        "import sys, vllm_manager.cli.app, vllm_manager.cli.pull, vllm_manager.weights.fetch\n"
        "print([name for name in sys.modules if name.startswith(('huggingface_hub', 'httpx'))])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
