"""Bad input and bad surroundings: one clear message, the documented exit code, never a traceback."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from box import MODEL, Box, eventually, unprivileged

GOOD = f"name: tiny\nmodel: {MODEL}\ngpus: none\n"


@pytest.fixture(scope="module")
def running_box(shared_box: Box) -> Box:
    shared_box.run("up", shared_box.manifest("running", port=shared_box.ports[5]))
    return shared_box


@pytest.fixture
def running(running_box: Box) -> Iterator[Box]:
    """A machine with a deployment called ``running``, which every test leaves as it was."""
    before = running_box.tree("running")
    yield running_box
    assert set(running_box.endpoints()) == {"running"}
    assert running_box.tree("running") == before


# --- manifests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("name: tiny\nmodel: [unclosed\n", ":3:1", "expected"),
        ("name: tiny\n\tmodel: x\n", ":2:1", "tab"),
        (GOOD + "tool_parser: hermes\n", ":4:1", "did you mean `tool_call_parser`?"),
        (GOOD + "name: other\n", ":4:1", "duplicate key"),
        (GOOD + "port: eighty\n", ":4:7", "port"),
        (GOOD + "max_model_len: yes\n", ":4:16", "max_model_len"),
        (GOOD.replace(str(MODEL), "./no/such/model"), ":2:8", "there is no such directory"),
        (GOOD + "api_key: two words\n", ":4:10", "holds spaces"),
        (GOOD + "api_key: {env: NO_SUCH_VARIABLE}\n", ":4:", "NO_SUCH_VARIABLE is not set"),
        (GOOD + "host: 0.0.0.0\n", ":4:7", "without an api_key"),
        (GOOD + "args: {port: 1}\n", ":4:8", "port"),
        ("", "", "empty"),
        ("- a\n- b\n", ":1:1", "holds a list"),
        (GOOD + "env: {A: no}\n", ":4:", "quote"),
    ],
    ids=lambda value: value.splitlines()[-1][:30] if "\n" in value else None,
)
def test_a_manifest_that_is_wrong(running: Box, text: str, place: str, words: str) -> None:
    path = running.root / "manifests" / "wrong.yaml"
    path.write_text(text)
    failed = running.run("up", path, exits=2)
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"error: {path}{place}")
    assert words in failed.stderr
    assert failed.stderr.count("error:") == 1


def test_all_problems_of_all_files_at_once(running: Box) -> None:
    one, two = running.root / "manifests" / "one.yaml", running.root / "manifests" / "two.yaml"
    one.write_text(GOOD + "port: eighty\nunknown_field: 1\n")
    two.write_text("nothing")
    for command in ("up", "validate"):
        failed = running.run(command, one, two, exits=2)
        assert failed.stderr.count("error:") == 3
        assert f"{one}:4" in failed.stderr
        assert f"{one}:5" in failed.stderr
        assert f"{two}" in failed.stderr


def test_what_is_no_manifest_at_all(running: Box) -> None:
    noise = running.root / "manifests" / "noise.yaml"
    noise.write_bytes(os.urandom(10 << 20))
    binary = running.root / "manifests" / "binary.yaml"
    binary.write_bytes(os.urandom(1000))
    folder = noise.parent / "empty"
    folder.mkdir()
    for path, words in (
        (noise, "larger than 1 MiB"),
        (binary, "isn't UTF-8 text"),
        (folder, "no manifests in it"),
        (noise.parent / "missing.yaml", "no such file"),
        ("/dev/null", "isn't a regular file"),
    ):
        failed = running.run("up", path, exits=2)
        assert words in failed.stderr
        assert len(failed.stderr) < 500


def test_two_files_with_one_name_or_port(running: Box) -> None:
    one = running.manifest("a", port=running.ports[6])
    other = running.manifest("b", port=running.ports[6])
    same = running.manifest("a", file="again.yaml", port=running.ports[7])
    failed = running.run("up", one, other, same, exits=2)
    assert f"port {running.ports[6]} is taken by {one}" in failed.stderr
    assert f"the name a is taken by {one}" in failed.stderr


def test_the_port_of_a_running_deployment(running: Box) -> None:
    failed = running.run("up", running.manifest("tiny", port=running.ports[5]), exits=2)
    assert f"port {running.ports[5]} belongs to the deployment running already" in failed.stderr


# --- names, commands, pipes --------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("down",), ("wait",), ("logs",), ("logs", "-f")])
def test_an_unknown_deployment(running: Box, command: tuple[str, ...]) -> None:
    failed = running.run(*command, "runnig", exits=4)
    assert "there is no deployment named runnig" in failed.stderr
    assert "did you mean running?" in failed.stderr


@pytest.mark.parametrize("command", [("chat", "runnig", "hello"), ("env", "runnig")])
def test_an_unknown_model(running: Box, command: tuple[str, ...]) -> None:
    assert "did you mean running?" in running.run(*command, exits=4).stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("upp",), "did you mean up?"),
        (("up",), "FILE"),
        (("up", "--no-such-option", "x.yaml"), "--no-such-option"),
        (("up", "--timeout", "soon", "x.yaml"), "--timeout"),
        (("down",), "--all"),
        (("down", "x", "--all"), "--all"),
        (("logs", "-n", "-1", "running"), "-1"),
        (("chat", "running", "--temperature", "9", "x"), "temperature"),
    ],
)
def test_usage_errors(running: Box, command: tuple[str, ...], words: str) -> None:
    assert words in running.run(*command, exits=2).stderr


def test_help_needs_nothing(running: Box) -> None:
    for command in ("up", "down", "wait", "ps", "logs", "gpus", "chat", "env", "validate", "engine", "serve"):
        assert "Usage: " in running.run(command, "--help").stdout


@pytest.mark.parametrize("command", ["ps", "logs running", "--help", "validate {manifest}"])
def test_a_reader_that_has_seen_enough(running: Box, command: str) -> None:
    words = command.format(manifest=running.manifest("tiny")).split()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as stdout:
        done = running.run(*words, stdout=stdout)
    assert done.stderr == ""


# --- rights and space --------------------------------------------------------------------------------


def test_no_rights_to_the_socket(running: Box) -> None:
    manifest = running.manifest("tiny")
    running.socket.parent.chmod(0)
    try:
        for command in (["ps"], ["up", manifest], ["down", "running"], ["gpus"]):
            failed = running.run(*command, exits=1, prefix=unprivileged())
            assert f"no rights to the control socket {running.socket}" in failed.stderr
            assert "hint: ask as the user who runs the supervisor" in failed.stderr
    finally:
        running.socket.parent.chmod(0o700)


def test_no_rights_to_the_state(running: Box) -> None:
    running.state.chmod(0)
    try:
        for command in (["chat", "running", "hi"], ["env", "running"]):
            failed = running.run(*command, exits=1, prefix=unprivileged())
            assert f"{running.state}/endpoints.json can't be read: Permission denied" in failed.stderr
            assert "hint:" in failed.stderr
    finally:
        running.state.chmod(0o700)


def test_a_state_directory_that_cannot_be_written(fresh_box: Box) -> None:
    fresh_box.state.mkdir(0o500)
    for command in (["up", fresh_box.manifest()], ["serve"]):
        failed = fresh_box.run(*command, exits=1, prefix=unprivileged())
        assert re.search(f"can't (write|open) {fresh_box.state}/.*: Permission denied", failed.stderr)
        assert "$VLLM_MANAGER_STATE_DIR" in failed.stderr
    assert fresh_box.run("ps", prefix=unprivileged()).stderr == ""


def test_a_state_directory_that_is_a_file(fresh_box: Box) -> None:
    fresh_box.state.write_text("")
    failed = fresh_box.run("up", fresh_box.manifest(), exits=1)
    assert f"can't write {fresh_box.state}: " in failed.stderr


def test_a_socket_path_that_is_too_long(fresh_box: Box) -> None:
    long = fresh_box.root / ("d" * 100) / "s"
    failed = fresh_box.run("serve", exits=1, env={"VLLM_MANAGER_SOCKET": str(long)})
    assert "too long" in failed.stderr
    assert "VLLM_MANAGER_SOCKET" in failed.stderr


def test_a_full_disk(fresh_box: Box) -> None:
    # A mount namespace of its own has a small file system there; /proc leads into it.
    mount = f'mount -t tmpfs -o size=128k,mode=700 tmpfs {fresh_box.state} && exec "$@"'
    enter = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "sh", "-c", mount, "sh"]
    fresh_box.state.mkdir(mode=0o700)
    supervisor = fresh_box.start(argv=[*enter, *fresh_box.command("serve")])
    eventually(lambda: fresh_box.socket.is_socket() or supervisor.process.poll() is not None, "it listens")
    if supervisor.process.poll() is not None and not os.environ.get("CI"):
        pytest.skip(f"no mount namespaces here: {supervisor.err}")
    inside = Path(f"/proc/{supervisor.pid}/root{fresh_box.state}")
    manifest = fresh_box.manifest()

    fill(inside / "filler")
    failed = fresh_box.run("up", manifest, exits=1)
    assert f"can't write {fresh_box.state}/" in failed.stderr
    assert "No space left on device" in failed.stderr
    assert "hint: make room" in failed.stderr
    assert json.loads(fresh_box.run("ps", "--json").stdout) == []

    (inside / "filler").unlink()
    assert "tiny is ready" in fresh_box.run("up", manifest, exits=0).stdout
    fill(inside / "filler")
    # A model runs on beside a full disk, and can still be taken down.
    status = json.loads(fresh_box.run("ps", "--json").stdout)[0]
    assert status["endpoint"]["phase"] == "ready"
    fresh_box.run("down", "--now", "tiny")
    assert json.loads(fresh_box.run("ps", "--json").stdout) == []
    supervisor.process.terminate()
    assert supervisor.wait() == 0


def fill(path: Path) -> None:
    """Write until the file system is full."""
    written = 512
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while written:
            written = file.write(b"x" * 512)
