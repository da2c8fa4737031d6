"""Each task from the manifest to the client, on the fake vLLM: detection, warm-up, and what is offered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from box import Box

from vllm_manager import registry
from vllm_manager.client import Client
from vllm_manager.errors import UnsupportedOperation
from vllm_manager.tasks import may_offer, operations
from vllm_manager.types import Task
from vllm_manager.warm_ups import sound

MODELS = Path(__file__).parents[2] / "manifests" / "models"
DUMMY: dict[str, Any] = {"load-format": "dummy"}


def labels(count: int) -> dict[str, Any]:
    return DUMMY | {"hf-overrides": {"num_labels": count}}


CHAT: dict[str, Any] = {}
COMPLETION = {"model": str(MODELS / "tiny-base")}
EMBED = {"runner": "pooling", "convert": "embed"}
SCORE = {"runner": "pooling", "convert": "classify", "args": labels(1)}
CLASSIFY = {"runner": "pooling", "convert": "classify", "args": labels(3)}
TOKENS = EMBED | {"args": DUMMY | {"pooler-config": {"task": "token_embed"}}}
SPEECH = {"model": str(MODELS / "tiny-whisper"), "max_model_len": 64}

FIELDS = {
    Task.CHAT: CHAT,
    Task.COMPLETION: COMPLETION,
    Task.EMBED: EMBED,
    Task.SCORE: SCORE,
    Task.CLASSIFY: CLASSIFY,
    Task.POOLING: TOKENS,
    Task.TRANSCRIPTION: SPEECH,
}

# What each method is called with, and whether its answer is one.
CALLS: dict[str, Callable[[Client], Any]] = {
    "chat": lambda client: client.chat("hi").usage.completion_tokens,
    "stream": lambda client: "".join(str(chunk) for chunk in client.stream("hi")),
    "complete": lambda client: client.complete("hi", max_tokens=2).usage.completion_tokens == 2,
    "stream_completion": lambda client: "".join(str(chunk) for chunk in client.stream_completion("hi")),
    "embed": lambda client: [len(vector) for vector in client.embed(["a", "b"]).vectors] == [64, 64],
    "rerank": lambda client: client.rerank("red fish", ["a cat", "a fish"], 1).results[0].index == 1,
    "score": lambda client: client.score("red fish", ["a fish", "a cat"]).scores == (0.5, 0.0),
    "classify": lambda client: client.classify("a").results[0].label == "LABEL_0",
    "pooling": lambda client: client.pooling(["a", "b"]).data[1],
    "transcribe": lambda client: client.transcribe(sound(), "en").seconds == 1,
}


@pytest.fixture(autouse=True)
def _registry_of_the_box(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(box.state))


@pytest.mark.parametrize("task", FIELDS)
def test_a_model_is_ready_as_what_it_is_for_and_its_client_offers_that(box: Box, task: Task) -> None:
    box.run("up", box.manifest(**FIELDS[task], api_key="generate"))
    assert box.ps()["tiny"]["endpoint"]["task"] == task
    with registry.client("tiny") as client:
        for operation in operations(task):
            assert CALLS[operation](client), operation
        for operation in set(CALLS) - {name for name in CALLS if may_offer(task, name)}:
            with pytest.raises(UnsupportedOperation) as refused:
                CALLS[operation](client)
            assert refused.value.status is None  # before the wire
            assert any(f"{name}()" in refused.value.hint for name in operations(task))


def test_what_one_model_of_a_task_has_not_is_refused_by_the_model(box: Box) -> None:
    box.run("up", box.manifest())
    with registry.client("tiny") as client, pytest.raises(UnsupportedOperation) as refused:
        client.transcribe(sound())
    assert refused.value.status == 404


def test_the_task_is_found_without_a_log_that_tells_it(box: Box) -> None:
    """As with another log format: every task is tried, and the model's own answers decide."""
    box.run("up", box.manifest(**SCORE, fake={"silent_tasks": True}))
    assert box.ps()["tiny"]["endpoint"]["task"] == Task.SCORE


@pytest.mark.parametrize(
    ("fields", "fake", "cause"),
    [
        (CHAT, {"empty_completion": True}, "the 1-token request yielded no token"),
        (COMPLETION, {"empty_completion": True}, "the 1-token request yielded no token"),
        (EMBED, {"not_finite": True}, "the embedding of a word yielded no list of finite numbers"),
        (SCORE, {"not_finite": True}, "the score of two words yielded no finite number"),
        (CLASSIFY, {"not_finite": True}, "the classification of a word yielded no list of finite numbers"),
        (TOKENS, {"not_finite": True}, "the pooling of a word yielded no finite numbers"),
        (EMBED, {"warmup_500": True}, "the embedding of a word failed with HTTP 500: CUDA error"),
        (
            SPEECH,
            {"no_sound_libraries": True},
            "the transcription of a second of sound failed with HTTP 400: Invalid",
        ),
        (SPEECH, {"warmup_500": True}, "the transcription of a second of sound failed with HTTP 500"),
    ],
)
def test_a_model_that_answers_without_having_computed_is_not_ready(
    box: Box, fields: dict[str, Any], fake: dict[str, Any], cause: str
) -> None:
    up = box.run("up", box.manifest(**fields, fake=fake), exits=6)
    assert cause in up.stderr
    assert "hint:" in up.stderr
    assert box.phase() != "ready"


def test_an_adapter_is_served_beside_its_model(box: Box, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    box.run("up", box.manifest(lora_modules={"polite": str(tmp_path)}))
    with registry.client("tiny") as client:
        assert client.models()[-1] == "polite"
        assert client.chat("hi", model="polite").model == "polite"
