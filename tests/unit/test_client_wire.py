import json
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_manager.client import speech_wire, text_wire, wire
from vllm_manager.client.transport import is_loopback
from vllm_manager.errors import (
    AuthenticationFailed,
    InvalidRequest,
    InvalidResponse,
    ModelNotReady,
    UnsupportedOperation,
)
from vllm_manager.types import Endpoint, Phase, Task

RECORDED = json.loads((Path(__file__).parents[1] / "data/vllm-0.32-http-errors.json").read_text())
CHATS = [r for r in RECORDED if r["status"] == 200 and '"chat.completion"' in r["body"]]

READY = Endpoint(
    deployment="llama",
    model="llama",
    names=("llama", "llama-8b"),
    root_url="http://127.0.0.1:8000",
    phase=Phase.READY,
    api_key="sk-1",
    task=Task.CHAT,
)


def reply(body: object, status: int = 200) -> wire.Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire.Reply(endpoint=READY, status=status, headers={}, body=raw)


def answer(message: dict, **choice) -> dict:
    return {"model": "llama", "choices": [{"message": message, **choice}]}


# --- requests


def test_a_text_becomes_one_user_message_and_options_are_passed_on():
    request = text_wire.chat_request("hello", {"max_tokens": 5})(READY)

    assert (request.method, request.url) == ("POST", "http://127.0.0.1:8000/v1/chat/completions")
    assert request.headers["Authorization"] == "Bearer sk-1"
    assert json.loads(request.content) == {
        "model": "llama",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
    }


def test_messages_are_passed_on_as_they_are():
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]

    assert json.loads(text_wire.chat_request(messages, {})(READY).content)["messages"] == messages


def test_a_stream_asks_for_its_usage_and_keeps_other_stream_options():
    request = text_wire.chat_request("hi", {"stream_options": {"continuous_usage_stats": True}}, stream=True)(
        READY
    )

    body = json.loads(request.content)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_stream_as_an_option_is_refused():
    with pytest.raises(InvalidRequest, match="stream"):
        text_wire.chat_request("hi", {"stream": True})


def test_without_a_key_no_authorization_is_sent():
    assert "Authorization" not in wire.models_request(replace(READY, api_key=None)).headers


@pytest.mark.parametrize("key", ["sk 1", "sk\n1", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key):
    with pytest.raises(AuthenticationFailed) as caught:
        wire.models_request(replace(READY, api_key=key))

    assert key not in repr(caught.value.payload())


def test_a_request_does_not_show_its_key():
    assert "sk-1" not in repr(wire.models_request(READY))


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.READY])
def test_nothing_is_sent_to_a_deployment_that_is_not_ready(phase):
    endpoint = replace(READY, phase=phase, step="weights 62 %", cause="because")

    with pytest.raises(ModelNotReady) as caught:
        text_wire.chat_request("hi", {})(endpoint)

    error = caught.value
    assert (error.phase, error.deployment) == (phase.value, "llama")
    assert error.cause == f"llama isn't ready: {phase} (weights 62 %; because)"
    assert error.hint


def test_the_hint_of_a_failure_is_handed_on():
    assert wire.not_ready(replace(READY, phase=Phase.FAILED, hint="do this")).hint == "do this"


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        (Task.COMPLETION, "use complete(), or set chat_template in the manifest"),
        (Task.EMBED, "it offers embed(), rerank(), score(), pooling()"),
        (Task.SCORE, "it offers rerank(), score(), classify(), pooling()"),
        (Task.CLASSIFY, "it offers classify(), pooling()"),
        (Task.POOLING, "it offers pooling()"),
        (Task.TRANSCRIPTION, "it offers transcribe()"),
    ],
)
def test_chat_with_a_model_that_cannot_chat_is_refused_before_the_wire(task, hint):
    with pytest.raises(UnsupportedOperation) as caught:
        text_wire.chat_request("hi", {})(replace(READY, task=task))

    assert caught.value.cause.startswith("llama: llama ")
    assert caught.value.hint == hint


def test_a_stream_of_chat_names_the_stream_of_completions():
    with pytest.raises(UnsupportedOperation) as caught:
        text_wire.chat_request("hi", {}, stream=True)(replace(READY, task=Task.COMPLETION))

    assert "stream_completion()" in caught.value.hint


@pytest.mark.parametrize("task", [Task.CHAT, Task.COMPLETION])
def test_what_only_some_models_of_a_task_offer_is_left_to_the_other_side(task):
    build = speech_wire.transcription_request(("a.wav", b""), None, None, {})

    assert build(replace(READY, task=task)).url.endswith("/v1/audio/transcriptions")


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_asked_for_as_one(stream):
    request = text_wire.completion_request("once", {"max_tokens": 3}, stream=stream)(READY)
    body = json.loads(request.content)

    assert request.url == "http://127.0.0.1:8000/v1/completions"
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("llama", "once", 3)
    assert body.get("stream", False) is stream


def test_an_unknown_task_is_left_to_the_other_side():
    assert text_wire.chat_request("hi", {})(replace(READY, task=None)).method == "POST"


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_fixed_address_may_end_in_v1(url):
    assert wire.fixed_endpoint(url, "m", None).root_url == "http://h:1"


def test_a_fixed_address_must_be_http():
    with pytest.raises(InvalidRequest, match="localhost:8000"):
        wire.fixed_endpoint("localhost:8000", "m", None)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8000", True),
        ("http://localhost:8000", True),
        ("http://10.0.0.1:8000", False),
        ("http://example.org", False),
        ("http://localhost.example.org", False),
    ],
)
def test_loopback_addresses_are_told_apart(url, expected):
    assert is_loopback(url) is expected


# --- answers


@pytest.mark.parametrize("record", CHATS, ids=[record["case"] for record in CHATS])
def test_every_recorded_answer_is_read(record):
    response = text_wire.chat_response(reply(record["body"].encode()))
    choice = json.loads(record["body"])["choices"][0]

    assert str(response) == response.text == (choice["message"]["content"] or "")
    assert response.model == "tiny"
    assert response.usage.prompt_tokens > 0
    assert response.finish_reason == choice["finish_reason"]
    assert list(response.tool_calls) == choice["message"].get("tool_calls", [])


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_an_answer_that_is_all_reasoning_has_an_empty_text(field):
    response = text_wire.chat_response(reply(answer({"content": None, field: "let me think"})))

    assert (response.text, response.reasoning, response.usage) == ("", "let me think", None)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "boom"}},
        {"choices": None},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": "text"}]},
        answer({"content": ["parts"]}),
        answer({"content": "x"}) | {"usage": "none"},
        ["not", "an", "object"],
        b"",
        b"<html>",
        b'{"choices": [',
    ],
)
def test_a_200_that_is_no_answer_is_an_invalid_response(body):
    with pytest.raises(InvalidResponse) as caught:
        text_wire.chat_response(reply(body))

    assert caught.value.status == 200


def test_an_aborted_answer_is_not_taken_for_a_whole_one():
    with pytest.raises(InvalidResponse, match="abort"):
        text_wire.chat_response(reply(answer({"content": "half an ans"}, finish_reason="abort")))


def test_a_completion_is_read():
    choice = {"index": 0, "text": " upon a time", "finish_reason": "length"}
    usage = {"prompt_tokens": 2, "completion_tokens": 3}
    response = text_wire.completion_response(reply({"model": "m", "choices": [choice], "usage": usage}))

    assert str(response) == response.text == " upon a time"
    assert (response.finish_reason, response.usage.completion_tokens, response.model) == ("length", 3, "m")


@pytest.mark.parametrize("choices", [None, [], [{"text": 7}], [{"text": "x", "finish_reason": "abort"}]])
def test_a_200_that_is_no_whole_completion_is_an_invalid_response(choices):
    with pytest.raises(InvalidResponse):
        text_wire.completion_response(reply({"choices": choices}))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, {"detail": "Not Found"}, True),
        (405, {"detail": "Method Not Allowed"}, True),
        (404, b"<html>", True),
        (404, {"error": {"message": "The model `x` does not exist.", "type": "NotFoundError"}}, False),
        (501, {"error": {"message": "The model does not support Rerank (Score) API"}}, False),
        (200, {}, False),
    ],
)
def test_a_missing_route_is_told_from_a_missing_model(status, body, expected):
    assert reply(body, status).no_such_route is expected


def test_the_served_names_are_read():
    (record,) = (r for r in RECORDED if r["case"] == "GET /v1/models")

    assert wire.model_names(reply(record["body"].encode())) == ("tiny",)


@pytest.mark.parametrize("body", [{"data": None}, {"data": [{}]}, {"data": "x"}, b"ok"])
def test_a_list_of_models_that_is_none_is_an_invalid_response(body):
    with pytest.raises(InvalidResponse):
        wire.model_names(reply(body))
