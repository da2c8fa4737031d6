"""Requests and answers as values: what is sent for a call, and what its response means. No I/O."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from vllm_manager.client.failures import error_from_response, fault_in
from vllm_manager.client.values import ChatChunk, ChatResponse, Prompt, Usage
from vllm_manager.errors import (
    AuthenticationFailed,
    InvalidRequest,
    InvalidResponse,
    ModelNotReady,
    UnsupportedOperation,
)
from vllm_manager.types import Endpoint, Phase, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request; its headers hold the key."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole response, and who gave it."""

    endpoint: Endpoint
    status: int
    headers: Mapping[str, str]
    body: bytes

    def error(self) -> NoReturn:
        """Raise what this response means as an error."""
        raise error_from_response(
            self.status,
            self.headers,
            self.body,
            self.endpoint.deployment or None,
            secrets=secrets_of(self.endpoint),
        )


RequestBuilder = Callable[[Endpoint], Request]
"""Makes the request for the endpoint as it is at that moment; raises where none can be sent."""


def secrets_of(endpoint: Endpoint) -> tuple[str, ...]:
    """The texts that no error about this endpoint may show."""
    return (endpoint.api_key,) if endpoint.api_key else ()


def fixed_endpoint(root_url: str, model: str, api_key: str | None) -> Endpoint:
    """An endpoint for an address that no registry knows; a trailing ``/v1`` is taken off.

    Raises:
        InvalidRequest: It is no HTTP address.
    """
    if not root_url.startswith(("http://", "https://")):
        raise InvalidRequest(cause=f"{root_url!r} is no HTTP address", hint="such as http://127.0.0.1:8000")
    root_url = root_url.rstrip("/").removesuffix("/v1").rstrip("/")
    return Endpoint(
        deployment="", model=model, names=(model,), root_url=root_url, phase=Phase.READY, api_key=api_key
    )


# --- requests ----------------------------------------------------------------------------------------


def chat_request(prompt: Prompt, options: Mapping[str, Any], *, stream: bool = False) -> RequestBuilder:
    """A chat completion; ``options`` are further fields of OpenAI's request.

    Raises:
        InvalidRequest: ``options`` say ``stream``, which the choice of method decides.
    """
    if "stream" in options:
        raise InvalidRequest(
            cause="`stream` isn't an option of a request",
            hint="call stream() for pieces, chat() for the whole",
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    body: dict[str, Any] = {"messages": messages, **options}
    if stream:
        body |= {
            "stream": True,
            "stream_options": {"include_usage": True} | (body.get("stream_options") or {}),
        }

    def build(endpoint: Endpoint) -> Request:
        _require_chat(endpoint)
        return _request(endpoint, "POST", "/v1/chat/completions", {"model": endpoint.model} | body)

    return build


def models_request(endpoint: Endpoint) -> Request:
    """The list of served models."""
    return _request(endpoint, "GET", "/v1/models")


def not_ready(endpoint: Endpoint) -> ModelNotReady:
    """Why the endpoint can't answer now, and what would help."""
    name, phase = endpoint.deployment, endpoint.phase
    if phase is Phase.FAILED:
        hint = f"`vllm-manager logs {name}` shows why"
    elif phase in (Phase.STOPPED, Phase.STOPPING, Phase.SWEEPING):
        hint = "`vllm-manager up` with its manifest starts it"
    else:
        hint = f"`vllm-manager wait {name}` returns when it is ready"
    details = "; ".join(text for text in (endpoint.step, endpoint.cause) if text)
    return ModelNotReady(
        cause=f"{name} isn't ready: {phase}" + (f" ({details})" if details else ""),
        hint=endpoint.hint or hint,
        deployment=name or None,
        phase=phase.value,
    )


def _require_chat(endpoint: Endpoint) -> None:
    if endpoint.task is None or endpoint.task is Task.CHAT:
        return
    if endpoint.task is Task.COMPLETION:
        what = "completes text, but has no chat template"
        hint = f"set --chat-template in the manifest's args, or POST to {endpoint.base_url}/completions"
    else:
        what, hint = f"is for {endpoint.task}, not for chat", "deploy a generating model for chat"
    raise UnsupportedOperation(
        cause=f"{endpoint.deployment}: {endpoint.model} {what}",
        hint=hint,
        deployment=endpoint.deployment or None,
    )


def _request(endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None = None) -> Request:
    if endpoint.phase is not Phase.READY or endpoint.root_url is None:
        raise not_ready(endpoint)
    headers = {"Accept": "application/json"}
    if key := endpoint.api_key:
        # Checked here, since the HTTP library would quote the key in its own complaint.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise AuthenticationFailed(
                cause="the API key holds characters that an HTTP header can't carry",
                hint="use printable ASCII without spaces",
                deployment=endpoint.deployment or None,
            )
        headers["Authorization"] = f"Bearer {key}"
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(body).encode()
    return Request(method=method, url=f"{endpoint.root_url}{path}", headers=headers, content=content)


# --- answers -----------------------------------------------------------------------------------------


def chat_response(reply: Reply) -> ChatResponse:
    """The answer of a chat completion.

    Raises:
        InvalidResponse: A 200 that holds an error, is no chat completion, or was aborted by the other side.
        ClientError: Any other status, by its meaning.
    """
    payload = _payload(reply)
    try:
        choice = payload["choices"][0]
        message = choice["message"]
        response = ChatResponse(
            text=text_of(message, "content"),
            reasoning=reasoning_of(message) or None,
            tool_calls=tool_calls_of(message),
            finish_reason=choice.get("finish_reason"),
            usage=usage_of(payload),
            model=str(payload.get("model", "")),
            raw=payload,
        )
    except (AttributeError, IndexError, KeyError, TypeError):
        reply.error()
    if response.finish_reason == "abort":
        raise InvalidResponse(
            cause="the other side ended the generation before its end (abort)",
            hint="it was probably being stopped; try again",
            deployment=reply.endpoint.deployment or None,
            status=reply.status,
        )
    return response


def model_names(reply: Reply) -> tuple[str, ...]:
    """The served names in a list of models. Raises as ``chat_response`` does."""
    payload = _payload(reply)
    try:
        return tuple(str(model["id"]) for model in payload["data"])
    except (KeyError, TypeError):
        reply.error()


def chat_chunk(payload: Mapping[str, Any]) -> ChatChunk | None:
    """The piece that an event of a chat stream brings; None where it brings none (the role, the usage).

    Raises:
        ValueError: It is no event of a chat stream.
    """
    try:
        choice = next((c for c in payload["choices"] if c.get("index", 0) == 0), None)
        if choice is None:
            return None
        delta = choice.get("delta") or {}
        chunk = ChatChunk(
            text=text_of(delta, "content"),
            reasoning=reasoning_of(delta),
            tool_calls=tool_calls_of(delta),
            finish_reason=choice.get("finish_reason"),
            raw=payload,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("no event of a chat stream") from error
    return chunk if chunk.text or chunk.reasoning or chunk.tool_calls or chunk.finish_reason else None


def usage_of(payload: Mapping[str, Any]) -> Usage | None:
    """The tokens that a response or an event tells of. Raises TypeError where they are no numbers."""
    usage = payload.get("usage")
    if not usage:
        return None
    return Usage(
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
    )


def text_of(message: Mapping[str, Any], key: str) -> str:
    """A text that may be absent or null. Raises TypeError for anything else."""
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise TypeError(key)
    return value or ""


def reasoning_of(message: Mapping[str, Any]) -> str:
    """What a reasoning parser took out; vLLM before 0.11 called it ``reasoning_content``."""
    return text_of(message, "reasoning") or text_of(message, "reasoning_content")


def tool_calls_of(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The tool calls, or fragments of them."""
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or ()
    return tuple(calls)


def _payload(reply: Reply) -> Mapping[str, Any]:
    if reply.status != 200:
        reply.error()
    try:
        payload = json.loads(reply.body)
    except ValueError:
        reply.error()
    if not isinstance(payload, Mapping) or fault_in(payload):
        reply.error()
    return payload
