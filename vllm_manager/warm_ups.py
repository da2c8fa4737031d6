"""The smallest request of each task, and what its answer has to hold to prove that the model computes.

Paths, fields and refusals are those of vLLM 0.32 (``vllm/entrypoints/``); no I/O here.
"""

import io
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from types import MappingProxyType
from typing import Any, Final

from vllm_manager.errors import WarmUpFailed
from vllm_manager.types import Task

SAMPLE_RATE = 16_000
"""Hz: what speech models work with, so that nothing has to be resampled."""

_ANYWAY: Final = "`readiness: {warm_up: false}` takes its HTTP answer for enough"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """One smallest request.

    Attributes:
        name: What it is, for messages.
        path: Where it is posted to.
        body: Its fields, without the model.
        missing: Says what a 200 lacks to be a proof; None where it lacks nothing.
        with_sound: Whether it is a form with a sound file instead of JSON.
    """

    name: str
    path: str
    body: Mapping[str, Any]
    missing: Callable[[Any], str | None]
    with_sound: bool = False


@cache
def sound() -> bytes:
    """A second of a 400 Hz square wave as a WAV file: short, and not the silence that some models refuse."""
    half = SAMPLE_RATE // 800
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes((b"\x00\x08" * half + b"\x00\xf8" * half) * 400)
    return file.getvalue()


def offered(task: Task, status: int, body: Any) -> bool:
    """Whether the model has the endpoint at all; where it doesn't, it is for another task."""
    if status == 404:
        # The router's own answer; an unknown model is a 404 as well, with an error object.
        return isinstance(body, Mapping) and "error" in body
    if task is Task.CHAT and status == 400 and "chat template" in message_of(body):
        return False
    return status not in (405, 501)


def check(task: Task, status: int, body: Any) -> None:
    """Hold an answer to what it has to prove.

    Raises:
        WarmUpFailed: It is an error, or shows no computation.
    """
    warm_up = WARM_UPS[task]
    if status != 200:
        message = message_of(body)[:300]
        hint, permanent = _advice(task, status, message)
        raise WarmUpFailed(
            cause=f"{warm_up.name} failed with HTTP {status}: {message}",
            hint=hint,
            status=status,
            permanent=permanent,
        )
    if missing := warm_up.missing(body):
        raise WarmUpFailed(
            cause=f"{warm_up.name} {missing}",
            hint="its weights, `dtype` or `quantization` may not suit this GPU; the log may say more",
            status=status,
        )


def message_of(body: Any) -> str:
    """The error text of an answer in any of vLLM's shapes."""
    if isinstance(body, Mapping):
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, Mapping) else error)
    return str(body)


def _advice(task: Task, status: int, message: str) -> tuple[str, bool]:
    """The hint, and whether another start would end the same way."""
    if task is Task.TRANSCRIPTION and status == 400 and "unsupported audio" in message:
        # What vLLM says of any sound where the libraries that decode it aren't installed (measured).
        return (
            "vLLM's environment needs the packages soundfile and av to read sound: install them there",
            True,
        )
    if 400 <= status < 500:
        return f"if this model can't answer such a request, {_ANYWAY}", False
    return "the log says what it met", False


# --- what an answer has to hold ----------------------------------------------------------------------


def _token(body: Any) -> str | None:
    usage = body.get("usage") if isinstance(body, Mapping) else None
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    # The text may well be empty (a token that decodes to nothing); the count is the proof.
    return None if isinstance(tokens, int) and tokens >= 1 else f"yielded no token (usage: {usage})"


def _numbers(key: str) -> Callable[[Any], str | None]:
    return lambda body: None if _finite(_first(body).get(key)) else "yielded no list of finite numbers"


def _score(body: Any) -> str | None:
    return None if _finite([_first(body).get("score")]) else "yielded no finite number"


def _numbers_or_rows(body: Any) -> str | None:
    data = _first(body).get("data")
    rows = data if isinstance(data, list) and data and isinstance(data[0], list) else [data]
    even = len({len(row) for row in rows if isinstance(row, list)}) == 1
    return (
        None if even and all(map(_finite, rows)) else "yielded no finite numbers, of the text or its tokens"
    )


def _text(body: Any) -> str | None:
    found = isinstance(body, Mapping) and isinstance(body.get("text"), str)
    return None if found else "yielded no text, not even an empty one"


def _first(body: Any) -> Mapping[str, Any]:
    data = body.get("data") if isinstance(body, Mapping) else None
    return data[0] if isinstance(data, list) and data and isinstance(data[0], Mapping) else {}


def _finite(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


_TOKEN: Final = "the 1-token request"  # noqa: S105 - no password

WARM_UPS: Final[Mapping[Task, WarmUp]] = MappingProxyType(
    {
        Task.CHAT: WarmUp(
            name=_TOKEN,
            path="/v1/chat/completions",
            body={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
            missing=_token,
        ),
        Task.COMPLETION: WarmUp(
            name=_TOKEN, path="/v1/completions", body={"prompt": "hi", "max_tokens": 1}, missing=_token
        ),
        Task.EMBED: WarmUp(
            name="the embedding of a word",
            path="/v1/embeddings",
            body={"input": "hi"},
            missing=_numbers("embedding"),
        ),
        # Not /v1/score, at which vLLM logs a warning.
        Task.SCORE: WarmUp(
            name="the score of two words",
            path="/score",
            body={"text_1": "hi", "text_2": "ho"},
            missing=_score,
        ),
        Task.CLASSIFY: WarmUp(
            name="the classification of a word",
            path="/classify",
            body={"input": "hi"},
            missing=_numbers("probs"),
        ),
        Task.POOLING: WarmUp(
            name="the pooling of a word", path="/pooling", body={"input": "hi"}, missing=_numbers_or_rows
        ),
        Task.TRANSCRIPTION: WarmUp(
            name="the transcription of a second of sound",
            path="/v1/audio/transcriptions",
            body={"max_completion_tokens": 1},
            missing=_text,
            with_sound=True,
        ),
    }
)
"""By task; the proofs are: a token counted, finite numbers, or a text."""
