"""Chat and completion: their requests, answers and the pieces of a stream. No I/O."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_manager.client.values import ChatResponse, CompletionResponse, Prompt, TextChunk
from vllm_manager.client.wire import (
    Reply,
    RequestBuilder,
    check_options,
    operation_request,
    payload_of,
    text_of,
    usage_of,
)
from vllm_manager.errors import InvalidResponse


def chat_request(prompt: Prompt, options: Mapping[str, Any], *, stream: bool = False) -> RequestBuilder:
    """A chat completion; ``options`` are further fields of OpenAI's request.

    Raises:
        InvalidRequest: ``options`` say ``stream``.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    fields = {"messages": messages, **_streaming(options, stream)}
    return operation_request("stream" if stream else "chat", "/v1/chat/completions", fields, {})


def completion_request(prompt: str, options: Mapping[str, Any], *, stream: bool = False) -> RequestBuilder:
    """A plain completion of a text. Raises as ``chat_request`` does."""
    fields = {"prompt": prompt, **_streaming(options, stream)}
    return operation_request("stream_completion" if stream else "complete", "/v1/completions", fields, {})


def _streaming(options: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    check_options(options)
    if not stream:
        return dict(options)
    wanted = {"include_usage": True} | (options.get("stream_options") or {})
    return {**options, "stream": True, "stream_options": wanted}


def chat_response(reply: Reply) -> ChatResponse:
    """The answer of a chat completion.

    Raises:
        InvalidResponse: A 200 that holds an error, is no chat completion, or was aborted by the other side.
        ClientError: Any other status, by its meaning.
    """
    payload = payload_of(reply)
    try:
        choice = payload["choices"][0]
        message = choice["message"]
        response = ChatResponse(
            text=text_of(message, "content"),
            reasoning=_reasoning_of(message) or None,
            tool_calls=_tool_calls_of(message),
            finish_reason=choice.get("finish_reason"),
            usage=usage_of(payload),
            model=str(payload.get("model", "")),
            raw=payload,
        )
    except (AttributeError, IndexError, KeyError, TypeError):
        reply.error()
    _check_whole(response.finish_reason, reply)
    return response


def completion_response(reply: Reply) -> CompletionResponse:
    """The answer of a completion. Raises as ``chat_response`` does."""
    payload = payload_of(reply)
    try:
        choice = payload["choices"][0]
        response = CompletionResponse(
            text=text_of(choice, "text"),
            finish_reason=choice.get("finish_reason"),
            usage=usage_of(payload),
            model=str(payload.get("model", "")),
            raw=payload,
        )
    except (AttributeError, IndexError, KeyError, TypeError):
        reply.error()
    _check_whole(response.finish_reason, reply)
    return response


def text_chunk(payload: Mapping[str, Any]) -> TextChunk | None:
    """The piece that an event of a stream brings; None where it brings none (the role, the usage).

    Raises:
        ValueError: It is no event of a chat or completion stream.
    """
    try:
        choice = next((c for c in payload["choices"] if c.get("index", 0) == 0), None)
        if choice is None:
            return None
        delta = choice.get("delta") or {}
        chunk = TextChunk(
            text=text_of(delta, "content") or text_of(choice, "text"),
            reasoning=_reasoning_of(delta),
            tool_calls=_tool_calls_of(delta),
            finish_reason=choice.get("finish_reason"),
            raw=payload,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("no event of a stream of text") from error
    return chunk if chunk.text or chunk.reasoning or chunk.tool_calls or chunk.finish_reason else None


def _check_whole(finish_reason: str | None, reply: Reply) -> None:
    if finish_reason == "abort":
        raise InvalidResponse(
            cause="the other side ended the generation before its end (abort)",
            hint="it was probably being stopped; try again",
            deployment=reply.endpoint.deployment or None,
            status=reply.status,
        )


def _reasoning_of(message: Mapping[str, Any]) -> str:
    """What a reasoning parser took out; vLLM before 0.11 called it ``reasoning_content``."""
    return text_of(message, "reasoning") or text_of(message, "reasoning_content")


def _tool_calls_of(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or ()
    return tuple(calls)
