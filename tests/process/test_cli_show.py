"""inspect, events and ps -w, as people and programs see them."""

import json
import os
import re
import signal

import pytest
from box import Box, eventually
from terminal import terminal

CANARY = "canary-4f9d1c7e55aa"
ESCAPE = "\x1b"


# --- inspect -----------------------------------------------------------------------------------------


@pytest.fixture
def secret_box(box: Box, monkeypatch: pytest.MonkeyPatch) -> Box:
    """Its deployment has a secret in its key, its variables, its flags and its environment."""
    monkeypatch.setitem(box.env, "HF_TOKEN", CANARY)
    monkeypatch.setitem(box.env, "HTTPS_PROXY", f"http://me:{CANARY}@127.0.0.1:9")
    monkeypatch.setitem(box.env, "NO_PROXY", "127.0.0.1")
    box.run("up", box.manifest(api_key=CANARY, max_model_len=512, env={"MY_SECRET": CANARY, "PLAIN": "told"}))
    return box


def test_inspect_tells_everything_but_secrets(secret_box: Box) -> None:
    box = secret_box
    text = box.run("inspect", "tiny").stdout
    record, tree = box.record(), box.tree()
    assert text.startswith("tiny: ready\n")
    for words in (
        f"address       http://127.0.0.1:{record['port']}/v1",
        "wanted        running",
        f"manifest of   {box.root}/manifests/tiny.yaml",
        f"instance      {record['instance']}",
        f"log           {record['log']}",
        "gpu           none, runs on the CPU",
        f"{tree['EngineCore']}  vm-{record['instance']}::EngineCore",
        '"max_model_len": 512',
        "--max-model-len 512",
        "PLAIN=told",
        "MY_SECRET='***'",
        "HF_TOKEN='***'",
        "HTTPS_PROXY='http://***@127.0.0.1:9'",
        "VLLM_API_KEY='***'",
    ):
        assert words in text, words
    assert re.search(r"ready after +\d.*: import \d.*, warm-up \d", text)
    data = json.loads(box.run("inspect", "tiny", "--json").stdout)
    assert data["desired"] == "running"
    assert data["manifest"]["max_model_len"] == 512
    assert {each["pid"] for each in data["processes"]} >= set(tree.values())
    assert data["status"]["steps"]
    assert CANARY not in text + json.dumps(data)


def test_inspect_without_a_supervisor_and_of_what_failed(fresh_box: Box) -> None:
    box = fresh_box
    box.run("up", box.manifest(api_key=CANARY))
    box.run("up", box.manifest("bad", fake={"fail_start": "badarg"}), exits=6)
    box.wait_for_phase("failed", name="bad")
    failed = box.run("inspect", "bad").stdout
    assert failed.startswith("bad: failed\n")
    assert re.search(r"error  +\S", failed)
    assert re.search(r"failed starts in a row: 1\b", failed)
    box.kill_supervisor()
    done = box.run("inspect", "tiny")
    assert done.stdout.startswith("tiny: ready\n")
    assert "EngineCore" in done.stdout
    assert CANARY not in done.stdout
    assert "did you mean tiny?" in box.run("inspect", "tny", exits=4).stderr
    box.serve()


def test_inspect_cuts_titles_on_a_terminal_only(box: Box) -> None:
    box.run("up", box.manifest())
    pid = box.tree()["main"]
    (line,) = [
        line for line in box.run("inspect", "tiny").stdout.splitlines() if line.startswith(f"    {pid}")
    ]
    assert "--served-model-name" in line
    with terminal(box, "inspect", "tiny") as shown:
        assert shown.process.wait(30) == 0
        (line,) = [line for line in shown.text.splitlines() if line.startswith(f"    {pid}")]
    assert line.endswith(" …")
    assert "--served-model-name" not in line


# --- events ------------------------------------------------------------------------------------------


def test_events_tell_when_what_and_why(box: Box) -> None:
    box.run("up", box.manifest(), box.manifest("other"))
    instance = box.record()["instance"]
    lines = box.run("events", "tiny").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["pending", "starting", "loading", "warming", "ready"]
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  tiny      {instance}  ready", lines[-1])
    assert len(box.run("events", "-n", "3").stdout.splitlines()) == 3
    parsed = [json.loads(line) for line in box.run("events", "--json", "other").stdout.splitlines()]
    assert {event["deployment"] for event in parsed} == {"other"}

    follower = box.start("events", "-f", "-n", "1", "tiny")
    eventually(lambda: follower.out.endswith("ready\n"), "the last event is told")
    os.kill(box.tree()["main"], signal.SIGKILL)
    eventually(lambda: follower.out.count("ready\n") == 2, "the restart is told")
    phases = [line.split()[4] for line in follower.out.splitlines()]
    assert phases[:3] == ["ready", "sweeping", "backoff"]
    assert re.search(r"backoff +\S.*", follower.out)  # with its cause
    assert "other" not in follower.out
    follower.interrupt()
    assert follower.wait() == 130


def test_events_need_no_supervisor(fresh_box: Box) -> None:
    box = fresh_box
    assert box.run("events").stdout == ""
    box.run("up", box.manifest())
    box.run("down", "tiny")
    eventually(lambda: box.supervisor_pid() is None, "the idle supervisor ends by itself")
    assert box.run("events", "-n", "1").stdout.split()[-1] == "stopped"
    # Its history is there, though it isn't any more.
    assert box.run("events", "-n", "1", "tiny").stdout.split()[-1] == "stopped"
    for arguments in ([], ["-f"]):
        unknown = box.run("events", *arguments, "tinny", exits=4)
        assert unknown.stderr.startswith(
            "error: there is no deployment named tinny\nhint: did you mean tiny?"
        )
        assert unknown.stdout == ""
    with (box.state / "events.jsonl").open("a") as file:
        file.write('{"cut off\n[]\n{}\n')
    assert box.run("events", "-n", "1").stdout.split()[2:] == ["?", "-", "?"]


# --- validate ----------------------------------------------------------------------------------------


def test_validate_notes_what_this_version_cannot_run(box: Box) -> None:
    done = box.run("validate", "--json", box.manifest("r", replicas=2), box.manifest())
    told = "more than one replica is not supported yet by this version"
    assert [each["unsupported"] for each in json.loads(done.stdout)] == [told, None]
    assert f"r: replicas: {told}\n" in done.stderr


def test_validate_reads_key_files_but_not_the_callers_variables(box: Box) -> None:
    (box.root / "manifests" / "empty").write_text("")
    missing = box.manifest("missing", api_key={"file": "no-such-file"})
    empty = box.manifest("empty", api_key={"file": "empty"})
    failed = box.run("validate", missing, empty, exits=2)
    assert failed.stderr.count("error:") == 2
    for path, words in ((missing, "no-such-file can't be read"), (empty, "is empty")):
        assert any(f"error: {path}:1:" in line and words in line for line in failed.stderr.splitlines())
    (box.root / "manifests" / "empty").write_text("a-key")
    variable = box.manifest("variable", api_key={"env": "NO_SUCH_VARIABLE"})
    assert box.run("validate", empty, variable).stdout.count("ok") == 2


# --- ps ----------------------------------------------------------------------------------------------


def test_ps_of_some_and_under_its_other_names(box: Box) -> None:
    box.run("up", box.manifest(), box.manifest("other"))
    assert len(box.run("ls").stdout.splitlines()) == 3
    (line,) = box.run("status", "other").stdout.splitlines()[1:]
    assert line.startswith("other")
    assert [each["name"] for each in json.loads(box.run("ps", "--json", "other", "tiny").stdout)] == [
        "other",
        "tiny",
    ]
    assert "did you mean tiny?" in box.run("ps", "tny", exits=4).stderr


def test_ps_watch_prints_a_table_at_each_change(box: Box) -> None:
    watching = box.start("ps", "-w")
    eventually(lambda: "NAME" in watching.out, "a table")
    box.run("up", box.manifest())
    eventually(lambda: re.search(r"^tiny +ready ", watching.out, re.M), "ready is shown")
    assert re.search(r"^tiny +(pending|starting|loading)", watching.out, re.M)
    box.run("stop", "tiny")
    eventually(lambda: re.search(r"^tiny +stopped ", watching.out, re.M), "stopped is shown")
    assert ESCAPE not in watching.out
    tables = watching.out.split("\n\n")
    assert len(tables) == len(set(tables)) > 3
    watching.interrupt()
    assert watching.wait() == 130
    lines = box.start("ps", "-w", "--json")
    eventually(lambda: lines.out.endswith("\n"), "a line")
    assert [each["name"] for each in json.loads(lines.out.splitlines()[0])] == ["tiny"]
    lines.interrupt()
    assert lines.wait() == 130


def test_ps_watch_goes_on_without_a_supervisor(fresh_box: Box) -> None:
    box = fresh_box
    box.run("up", box.manifest())
    watching = box.start("ps", "-w")
    eventually(lambda: "ready" in watching.out, "it is shown")
    main = box.tree()["main"]
    box.kill_supervisor()
    os.kill(main, signal.SIGKILL)
    eventually(lambda: "stopped" in watching.out, "its death is shown")
    box.serve()
    eventually(lambda: watching.out.rstrip().splitlines()[-1].split()[1] == "ready", "the restart is shown")


def test_ps_watch_redraws_a_terminal(box: Box) -> None:
    box.run("up", box.manifest())
    with terminal(box, "ps", "-w") as shown:
        eventually(lambda: "ready" in shown.text, "a table")
        eventually(lambda: shown.text.count("NAME") >= 3, "it is redrawn, since times run on")
        assert f"{ESCAPE}[2A" in shown.text  # over what was there
        assert f"{ESCAPE}[32mready" in shown.text
        box.run("stop", "tiny")
        eventually(lambda: "stopped" in shown.text, "the change is shown")
        shown.interrupt()
        assert shown.process.wait(10) == 130


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_escape_codes_gets_none(box: Box, env: dict[str, str]) -> None:
    with terminal(box, "up", box.manifest("tiny"), **env) as shown:
        assert shown.process.wait(30) == 0
        assert "tiny: weights (after" in shown.text
        if "NO_COLOR" in env:
            assert ESCAPE not in shown.text
    with terminal(box, "ps", "-w", **env) as shown:
        eventually(lambda: "ready" in shown.text, "a table")
        box.run("restart", "tiny")
        eventually(lambda: shown.text.count("NAME") >= 3, "new tables")
        assert f"{ESCAPE}[J" not in shown.text
        if "NO_COLOR" in env:
            assert ESCAPE not in shown.text


# --- the rest ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("list", "ps"), ("rm", "down"), ("run", "up"), ("deploy", "up"), ("kill", "stop"),
        ("describe", "inspect"), ("restrat", "restart"), ("evnts", "events"), ("statsu", "status"),
        ("frobnicate", None),
    ],
)  # fmt: skip
def test_the_names_that_other_tools_use_lead_here(box: Box, word: str, command: str | None) -> None:
    failed = box.run(word, exits=2)
    assert f"there is no command {word!r}" in failed.stderr
    assert (f"did you mean {command}?" in failed.stderr) == (command is not None)
    assert "hint: `vllm-manager --help` shows how" in failed.stderr


def test_a_misspelt_option(box: Box) -> None:
    failed = box.run("up", "--dryrun", "x.yaml", exits=2)
    assert failed.stderr == (
        "error: there is no option --dryrun: did you mean --dry-run?\n"
        "hint: `vllm-manager up --help` shows how\n"
    )


def test_the_schema_is_the_committed_one(box: Box) -> None:
    from vllm_manager.manifest.schema import text

    assert box.run("schema").stdout == text()
