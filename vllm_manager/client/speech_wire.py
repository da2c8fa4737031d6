"""Transcription: its request, a form with a sound file, and its answer. Reads that file; no other I/O."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_manager.client.values import Sound, TranscriptionResponse
from vllm_manager.client.wire import (
    Reply,
    Request,
    RequestBuilder,
    check_options,
    payload_of,
    request,
    require,
    text_of,
)
from vllm_manager.errors import InvalidRequest
from vllm_manager.types import Endpoint

UNNAMED = "sound"
"""The name of a file that has none; vLLM looks at the content alone."""


def read_sound(file: Sound) -> tuple[str, bytes]:
    """The name and the content of a path, bytes, or an open binary file. Blocks.

    Raises:
        InvalidRequest: It can't be read, or holds text.
    """
    if isinstance(file, bytes):
        return UNNAMED, file
    try:
        if isinstance(file, str | os.PathLike):
            path = Path(file)
            return path.name, path.read_bytes()
        content = file.read()
    except OSError as error:
        raise InvalidRequest(
            cause=f"{file} can't be read: {error.strerror or error}",
            hint="pass the path of a sound file, its bytes, or a file opened with 'rb'",
        ) from error
    if not isinstance(content, bytes):
        raise InvalidRequest(cause="the sound file was opened as text", hint="open it with 'rb'")
    return os.path.basename(str(getattr(file, "name", UNNAMED))), content


def transcription_request(
    file: tuple[str, bytes], language: str | None, prompt: str | None, options: Mapping[str, Any]
) -> RequestBuilder:
    """The text of a sound file; ``options`` are further fields of OpenAI's request.

    Raises:
        InvalidRequest: ``options`` say ``stream``.
    """
    check_options(options)
    given = {"language": language, "prompt": prompt, **options}
    fields = {name: value for name, value in given.items() if value is not None}

    def build(endpoint: Endpoint) -> Request:
        require(endpoint, "transcribe")
        form = {"model": endpoint.model} | fields
        return request(endpoint, "POST", "/v1/audio/transcriptions", form=form, file=file)

    return build


def transcription_response(reply: Reply) -> TranscriptionResponse:
    """The text. Raises as ``wire.payload_of`` does, and InvalidResponse where there is none."""
    payload = payload_of(reply)
    try:
        usage = payload.get("usage") or {}
        seconds = payload.get("duration", usage.get("seconds"))
        return TranscriptionResponse(
            text=_required_text(payload),
            language=text_of(payload, "language") or None,
            seconds=None if seconds is None else float(seconds),
            raw=payload,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        reply.error()


def _required_text(payload: Mapping[str, Any]) -> str:
    if payload["text"] is None:
        raise TypeError("text")
    return text_of(payload, "text")
