import json
from pathlib import Path

import pytest

from vllm_manager.client.failures import BODY_LIMIT, error_from_response
from vllm_manager.errors import (
    AuthenticationFailed,
    Busy,
    ContextLengthExceeded,
    InvalidRequest,
    InvalidResponse,
    ResponseTimeout,
    UnknownModel,
    UnsupportedOperation,
    UpstreamError,
)

RECORDED = json.loads((Path(__file__).parents[1] / "data/vllm-0.32-http-errors.json").read_text())
FAILED = [record for record in RECORDED if record["status"] != 200]

MEANING = {
    AuthenticationFailed: {
        "models no auth",
        "401 missing key",
        "401 wrong key",
        "401 non-bearer",
        "x-api-key header only",
        "401 wrong key stream",
        "anthropic wrong key",
    },
    UnknownModel: {
        "404 wrong model chat",
        "404 wrong model completions",
        "404 wrong model stream",
        "404 wrong model responses",
        "404 wrong model messages",
        "model prefixed hosted_vllm/",
        "model prefixed vllm/",
    },
    ContextLengthExceeded: {
        "400 max_tokens > max_model_len",
        "400 max_tokens 1000 (AIOS default)",
        "400 context too long",
        "400 context too long stream",
    },
    InvalidRequest: {
        "400 malformed json",
        "400 wrong content-type",
        "400 missing messages",
        "400 empty messages",
        "400 temperature out of range",
        "400 max_tokens 0",
        "top_logprobs too big",
        "image on text model",
        "tools named, unknown",
        "tool_choice auto, tools empty",
        "response_format json_schema invalid schema",
        "response_format json_schema missing",
        "responses retrieve unknown",
    },
    UnsupportedOperation: {
        "models doubled /v1/v1",
        "models at root (no /v1)",
        "embeddings on generate model",
        "rerank v1 on generate model",
        "rerank root on generate model",
        "score on generate model",
        "transcription on generate model",
        "405 method",
        "404 path",
        "chat at root (no /v1)",
        "chat doubled /v1/v1",
        "lora load (disabled)",
        "sleep (dev off)",
    },
}


def meant(case: str) -> type:
    (cls,) = (cls for cls, cases in MEANING.items() if case in cases)
    return cls


def failure(status: int, body: object, headers: dict[str, str] | None = None, **kwargs):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return error_from_response(status, headers or {}, raw, **kwargs)


@pytest.mark.parametrize("record", FAILED, ids=[record["case"] for record in FAILED])
def test_every_recorded_error_of_vllm_gets_its_class_and_keeps_its_text(record):
    error = error_from_response(record["status"], record["headers"], record["body"].encode(), "tiny")

    assert type(error) is meant(record["case"])
    assert (error.status, error.body, error.deployment) == (record["status"], record["body"], "tiny")
    assert error.cause.startswith("tiny: ")
    assert "\n" not in error.cause
    assert error.retry_after is None


def test_a_cause_carries_vllms_own_words():
    (record,) = (r for r in FAILED if r["case"] == "404 wrong model chat")
    error = error_from_response(404, {}, record["body"].encode(), "tiny")

    assert error.cause == "tiny: The model `nope` does not exist. Valid aliases: tiny. (HTTP 404)"


@pytest.mark.parametrize(
    ("status", "body", "cls"),
    [
        (503, {"error": {"message": "The engine is currently busy", "type": "Service Unavailable"}}, Busy),
        (503, {"error": "The model is currently scaling. Please try again later."}, Busy),
        (429, b"slow down", Busy),
        (500, {"error": {"message": "EngineCore encountered an issue", "code": 500}}, UpstreamError),
        (500, b"Internal Server Error", UpstreamError),
        (502, b"<html>bad gateway</html>", UpstreamError),
        (501, {"error": {"message": "The model does not support Rerank (Score) API"}}, UnsupportedOperation),
        (403, b"", AuthenticationFailed),
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}, InvalidRequest),
        (413, b"", InvalidRequest),
        (408, b"", ResponseTimeout),
        (307, b"", InvalidResponse),
        (200, {"error": {"message": "boom", "code": 500}}, InvalidResponse),
        (200, b"<html>a captive portal</html>", InvalidResponse),
        (204, b"", InvalidResponse),
        # vLLM before 0.10: the error's fields at the top, other words for a context that is too long
        (404, {"object": "error", "message": "The model `x` does not exist.", "code": 404}, UnknownModel),
        (400, {"object": "error", "message": "temperature must be in [0, 2]", "code": 400}, InvalidRequest),
        (
            400,
            {"error": {"message": "The decoder prompt (length 600) is longer than the maximum model length"}},
            ContextLengthExceeded,
        ),
        (
            400,
            {"error": {"message": "you must provide a chat template if the tokenizer"}},
            UnsupportedOperation,
        ),
        # other OpenAI-like servers
        (404, {"error": {"message": "no such thing", "code": "model_not_found"}}, UnknownModel),
    ],
)
def test_other_shapes_get_their_class(status, body, cls):
    assert type(failure(status, body)) is cls


def test_a_missing_tool_parser_is_answered_with_the_fields_to_set():
    message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'

    assert "tool_call_parser" in failure(400, {"error": {"message": message}}).hint


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        (
            {"Retry-After": "Sat, 21 Nov 2026 10:00:30 GMT", "Date": "Sat, 21 Nov 2026 10:00:00 GMT"},
            30.0,
        ),
        ({"Retry-After": "Sat, 21 Nov 2020 10:00:30 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers, seconds):
    assert failure(503, b"", headers).retry_after == seconds


def test_a_redirect_says_where_to():
    assert "https://elsewhere/v1" in failure(308, b"", {"Location": "https://elsewhere/v1"}).cause


def test_a_key_that_comes_back_is_not_shown():
    body = {"error": {"message": "bad key s3cret-canary!", "canary": "s3cret-canary!"}}
    error = failure(401, body, secrets=("s3cret-canary!",))

    assert "s3cret" not in repr(error.payload())


def test_a_huge_or_binary_body_is_kept_short():
    error = failure(500, b"\xff\x00" * 5_000_000)

    assert len(error.body) == BODY_LIMIT
    assert len(error.cause) < 1000
