"""Requests and answers as values: what all calls share. No I/O.

``text_wire``, ``pooling_wire`` and ``speech_wire`` have what is particular to each.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from vllm_manager.client.failures import error_from_response, fault_in
from vllm_manager.client.values import Usage
from vllm_manager.errors import (
    AuthenticationFailed,
    InvalidRequest,
    ModelNotReady,
    UnsupportedOperation,
)
from vllm_manager.tasks import may_offer, operations
from vllm_manager.types import Endpoint, Phase, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request; its headers hold the key.

    Attributes:
        method: ``GET`` or ``POST``.
        url: Whole.
        headers: Without those of a form.
        content: A body of JSON, or None.
        form: The fields of a form, or None.
        file: The form's file: its name and bytes.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    content: bytes | None = None
    form: Mapping[str, Any] | None = None
    file: tuple[str, bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole response, and who gave it."""

    endpoint: Endpoint
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def no_such_route(self) -> bool:
        """Whether it is the router's own 404 or 405; a missing model's 404 holds an error object."""
        if self.status not in (404, 405):
            return False
        try:
            return fault_in(json.loads(self.body)) is None
        except ValueError:
            return True

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


def operation_request(
    operation: str, path: str, fields: Mapping[str, Any], options: Mapping[str, Any]
) -> RequestBuilder:
    """A call of one of the client's methods, as JSON; ``options`` are further fields.

    Raises:
        InvalidRequest: ``options`` say ``stream``, which the choice of method decides.
    """
    check_options(options)
    body = {**fields, **options}

    def build(endpoint: Endpoint) -> Request:
        require(endpoint, operation)
        content = json.dumps({"model": endpoint.model} | body).encode()
        return request(endpoint, "POST", path, {"Content-Type": "application/json"}, content=content)

    return build


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what isn't the caller's to say. Raises InvalidRequest."""
    if "stream" in options:
        raise InvalidRequest(
            cause="`stream` isn't an option of a request",
            hint="call stream() or stream_completion() for pieces, chat() or complete() for the whole",
        )


def models_request(endpoint: Endpoint) -> Request:
    """The list of served models."""
    return request(endpoint, "GET", "/v1/models")


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


def require(endpoint: Endpoint, operation: str) -> None:
    """Let a call pass where its model may answer it; an unknown task is left to the other side.

    Raises:
        UnsupportedOperation: It can't; the hint names what it does offer.
    """
    task = endpoint.task
    if task is None or may_offer(task, operation):
        return
    offered = ", ".join(f"{name}()" for name in operations(task))
    if task is Task.COMPLETION and operation in ("chat", "stream"):
        what = "has no chat template"
        hint = f"use {'complete' if operation == 'chat' else 'stream_completion'}(), or set chat_template in "
        hint += "the manifest"
    else:
        what, hint = f"is for {task}, and has no {operation}()", f"it offers {offered}"
    name = endpoint.deployment or None
    raise UnsupportedOperation(
        cause=f"{name}: {endpoint.model} {what}" if name else f"{endpoint.model} {what}",
        hint=hint,
        deployment=name,
    )


def request(
    endpoint: Endpoint,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    **content: Any,
) -> Request:
    """A request to a ready endpoint, with its key; ``content`` are the fields of ``Request`` for a body.

    Raises:
        ModelNotReady: It can't answer now.
        AuthenticationFailed: Its key can't be sent.
    """
    if endpoint.phase is not Phase.READY or endpoint.root_url is None:
        raise not_ready(endpoint)
    sent = {"Accept": "application/json", **(headers or {})}
    if key := endpoint.api_key:
        # Checked here, since the HTTP library would quote the key in its own complaint.
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise AuthenticationFailed(
                cause="the API key holds characters that an HTTP header can't carry",
                hint="use printable ASCII without spaces",
                deployment=endpoint.deployment or None,
            )
        sent["Authorization"] = f"Bearer {key}"
    return Request(method=method, url=f"{endpoint.root_url}{path}", headers=sent, **content)


# --- answers -----------------------------------------------------------------------------------------


def payload_of(reply: Reply) -> Mapping[str, Any]:
    """The JSON object of a good answer.

    Raises:
        InvalidResponse: A 200 that holds an error, or no object.
        ClientError: Any other status, by its meaning.
    """
    if reply.status != 200:
        reply.error()
    try:
        payload = json.loads(reply.body)
    except ValueError:
        reply.error()
    if not isinstance(payload, Mapping) or fault_in(payload):
        reply.error()
    return payload


def model_names(reply: Reply) -> tuple[str, ...]:
    """The served names in a list of models. Raises as ``payload_of`` does."""
    payload = payload_of(reply)
    try:
        return tuple(str(model["id"]) for model in payload["data"])
    except (KeyError, TypeError):
        reply.error()


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
