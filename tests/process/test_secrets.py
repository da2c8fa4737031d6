"""A key is in one file of its owner's and in its vLLM's environment, and nowhere else."""

import os
import re
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from box import Box, eventually, post

CANARY = "canary-4f9d1c7e55aa"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


def api_key(form: str, box: Box, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The manifest's ``api_key``, for a key that is CANARY where it isn't generated."""
    if form == "env":
        monkeypatch.setitem(box.env, "MY_MODEL_KEY", CANARY)
        return {"env": "MY_MODEL_KEY"}
    if form == "file":
        (box.root / "manifests" / "key").write_text(f"{CANARY}\n")
        return {"file": "key"}
    return CANARY if form == "literal" else "generate"


def files_with(box: Box, text: str) -> set[str]:
    """The files of the box that hold the text, but for its manifests."""
    files = (path for path in box.root.rglob("*") if path.is_file() and path.parent.name != "manifests")
    return {str(path.relative_to(box.root)) for path in files if text.encode() in path.read_bytes()}


def arguments_with(box: Box, text: str) -> list[int]:
    """The box's processes that show the text in their command line."""
    return [pid for pid in box.processes() if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("form", ["literal", "env", "file", "generate"])
def test_a_key_is_asked_for_and_kept_in_one_file(
    box: Box, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = box.run("up", box.manifest(api_key=api_key(form, box, monkeypatch)))
    key = box.key()
    assert (key == CANARY) == (form != "generate")
    base_url = box.endpoints()["tiny"]["root_url"] + "/v1"
    assert post(base_url, "/chat/completions", CHAT, key)[0] == 200
    assert post(base_url, "/chat/completions", CHAT, "wrong")[0] == 401
    assert arguments_with(box, key) == []
    assert files_with(box, key) == {"state/secrets/tiny.json"}
    assert key not in up.stdout + up.stderr


def test_a_key_shows_up_nowhere(fresh_box: Box) -> None:
    box = fresh_box
    manifest = box.manifest(api_key=CANARY)
    said = [box.run("up", manifest)]
    assert f"OPENAI_API_KEY={CANARY}" in box.run("env", "tiny").stdout  # on request, and only there
    for command in (["ps"], ["ps", "--json"], ["logs", "tiny"], ["wait", "tiny", "--json"], ["up", manifest]):
        said.append(box.run(*command))
    said.append(box.run("chat", "tiny", "hello"))
    os.kill(box.tree()["main"], signal.SIGKILL)
    eventually(lambda: box.events().count("ready") == 2, "ready again")
    assert arguments_with(box, CANARY) == []
    assert files_with(box, CANARY) == {"state/secrets/tiny.json"}
    secrets, log = box.state / "secrets" / "tiny.json", Path(box.record()["log"])
    assert [stat.S_IMODE(path.stat().st_mode) for path in (secrets, log)] == [0o600, 0o600]
    assert [stat.S_IMODE(path.parent.stat().st_mode) for path in (secrets, log)] == [0o700, 0o700]

    box.kill_supervisor()
    said += [box.run("ps", exits=5), box.run("ps", "--json", exits=5), box.run("wait", "tiny", exits=5)]
    box.serve()
    said.append(box.run("down", "tiny"))
    assert not [done.args for done in said if CANARY in done.stdout + done.stderr]
    assert files_with(box, CANARY) == set()


def test_a_key_in_the_log_is_masked(fresh_box: Box) -> None:
    box = fresh_box
    # A model whose file names hold the key stands for a vLLM that logs it.
    model = box.root / f"model-{CANARY}"
    model.mkdir()
    (model / "config.json").write_text("{}")
    manifest = box.manifest(api_key=CANARY, model=str(model), fake={"fail_start": "missing_weights"})
    failed = box.run("up", manifest, exits=6)
    assert "Cannot find any model weights with" in failed.stderr
    logs = box.run("logs", "tiny")
    listed = [box.run("ps"), box.run("ps", "--json")]
    for done in (failed, logs, *listed):
        assert CANARY not in done.stdout + done.stderr
    assert "***" in logs.stdout
    eventually(lambda: "backoff" in box.events() or "failed" in box.events(), "it has failed")
    assert CANARY not in (box.state / "events.jsonl").read_text()
    assert CANARY not in (box.state / "supervisor.log").read_text()


def test_tokens_of_the_environment_are_secrets_too(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(box.env, "HF_TOKEN", CANARY)
    box.run("up", box.manifest())
    environ = Path(f"/proc/{box.tree()['main']}/environ").read_bytes()
    assert f"HF_TOKEN={CANARY}".encode() in environ
    assert arguments_with(box, CANARY) == []
    assert files_with(box, CANARY) == {"state/secrets/tiny.json"}


def test_a_changed_key_restarts_and_a_generated_one_is_kept(box: Box) -> None:
    box.run("up", box.manifest(api_key="generate"))
    first = box.key()
    assert re.fullmatch(r"sk-[\w-]{20,}", first)
    box.run("up", box.manifest(api_key="generate", max_model_len=256))
    assert box.key() == first
    changed = box.run("up", box.manifest(api_key=CANARY, max_model_len=256))
    assert "api_key" in changed.stderr
    other = box.run("up", box.manifest(api_key=f"{CANARY}-2", max_model_len=256))
    assert "tiny: restarted, since its manifest changed\n  api_key: changed\n" in other.stderr
    assert CANARY not in changed.stderr + other.stderr
    assert box.run("chat", "tiny", "hello").stdout


def test_errors_about_keys_do_not_quote_them(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (f"{CANARY} two", f"{CANARY}\u00e9"):
        failed = box.run("up", box.manifest(api_key=key), exits=2)
        assert CANARY not in failed.stderr
    monkeypatch.setitem(box.env, "MY_MODEL_KEY", f"{CANARY} two")
    failed = box.run("up", box.manifest(api_key={"env": "MY_MODEL_KEY"}), exits=2)
    assert CANARY not in failed.stderr
