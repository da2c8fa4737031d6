"""chat and env: how what is up is used, by what its model is for."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import trustme
from box import Box

from vllm_manager.types import Task

MODELS = Path(__file__).parents[2] / "manifests" / "models"
EMBED = {"runner": "pooling", "convert": "embed"}
DUMMY: dict[str, Any] = {"load-format": "dummy"}
FIELDS: dict[Task, dict[str, Any]] = {
    Task.CHAT: {},
    Task.COMPLETION: {"model": str(MODELS / "tiny-base")},
    Task.EMBED: EMBED,
    Task.SCORE: {
        "runner": "pooling",
        "convert": "classify",
        "args": DUMMY | {"hf-overrides": {"num_labels": 1}},
    },
}


@pytest.mark.parametrize("task", FIELDS)
def test_what_up_says_to_try_works(box: Box, task: Task) -> None:
    lines = box.run("up", box.manifest(**FIELDS[task])).stdout.splitlines()
    tried = [line.strip() for line in lines[lines.index("  try it") + 1 :] if line.startswith("    ")]
    assert box.ps()["tiny"]["endpoint"]["task"] == task
    chats = [line for line in tried if line.startswith("vllm-manager chat tiny ")]
    assert len(chats) == (task in (Task.CHAT, Task.COMPLETION))
    for line in chats:
        assert box.run(*shlex.split(line)[1:]).stdout.strip()
    (program,) = [shlex.split(line)[2] for line in tried if line.startswith("python -c ")]
    assert box.python(program)


def test_chat_of_a_model_without_a_chat_template_completes_the_prompt(box: Box) -> None:
    box.run("up", box.manifest(**FIELDS[Task.COMPLETION]))
    assert box.run("chat", "tiny", "--max-tokens", "2", "hello").stdout.strip()
    refused = box.run("chat", "tiny", "--system", "be nice", "hello", exits=2)
    assert "error: --system needs a chat template, and tiny has none" in refused.stderr
    assert refused.stdout == ""


def test_chat_of_a_model_that_is_for_something_else_says_what_to_call(box: Box) -> None:
    box.run("up", box.manifest(**EMBED, served_model_name=["tiny", "vectors"]))
    for name in ("tiny", "vectors"):
        refused = box.run("chat", name, "hello", exits=1)
        assert f"error: {name} can't chat: the task of its model is embed\n" in refused.stderr
        assert 'registry.client("tiny").embed("hello")' in refused.stderr


def test_env_tells_how_to_trust_a_certificate_and_stays_for_eval(box: Box, tmp_path: Path) -> None:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "its certificate.pem")
    files = {"ssl-keyfile": str(tmp_path / "key.pem"), "ssl-certfile": str(tmp_path / "its certificate.pem")}
    box.run("up", box.manifest("secure", args=DUMMY | files))
    done = box.run("env", "secure")
    assert re.fullmatch(r"(export OPENAI_\w+=\S+\n){3}", done.stdout)
    assert f"secure serves TLS with {files['ssl-certfile']}" in done.stderr
    assert "curl: --cacert '" in done.stderr
    assert "--connect-to HOST:443:127.0.0.1:" in done.stderr
    (export,) = re.findall(r"export (SSL_CERT_FILE=.*)", done.stderr)
    (pair,) = shlex.split(export, comments=True)
    assert pair == f"SSL_CERT_FILE={files['ssl-certfile']}"
    assert box.run("up", box.manifest("plain")).returncode == 0
    assert box.run("env", "plain").stderr == ""
