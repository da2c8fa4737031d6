"""What went wrong, from what came back: pure functions from responses to ``vllm_manager.errors``.

vLLM 0.32 answers errors in four shapes, and older ones and proxies have more; all are understood here::

    {"error": {"message", "type", "param", "code"}}      most of them; also in SSE events and in HTTP 200
    {"type": "error", "error": {"type", "message"}}      /v1/messages
    {"error": "Unauthorized"}                            401; also 503 while scaling
    {"detail": "Not Found"}                              no such route, wrong method
    {"object": "error", "message", "type", "param"}      vLLM before 0.10
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any

from vllm_manager.clock import SystemClock
from vllm_manager.errors import (
    AuthenticationFailed,
    Busy,
    ClientError,
    ContextLengthExceeded,
    InvalidRequest,
    InvalidResponse,
    ResponseTimeout,
    UnknownModel,
    UnsupportedOperation,
    UpstreamError,
)
from vllm_manager.redact import redact

BODY_LIMIT = 4096
MESSAGE_LIMIT = 600

# vLLM 0.32 says "maximum context length" of prompts and "max_model_len" of max_tokens; its engine, and
# versions before 0.10, "longer than the maximum model length".
_CONTEXT = re.compile(r"maximum context length|max_model_len|maximum model length")
_NO_MODEL = re.compile(r"\bmodel\b.*\bdoes not exist")
# transformers' own words, which vLLM passes on with a 400.
_NO_TEMPLATE = "must provide a chat template"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What an error object says.

    Attributes:
        structured: True where an API handler wrote it, False for a bare text such as a router's 404.
    """

    message: str
    param: str | None = None
    code: str | None = None
    structured: bool = True


def fault_in(payload: Any) -> Fault | None:
    """The error that a decoded JSON value holds, whatever its HTTP status; None where it holds none."""
    if not isinstance(payload, Mapping):
        return None
    error = payload.get("error")
    if isinstance(error, Mapping) and error:
        return _fault(error)
    if isinstance(error, str) and error:
        return Fault(message=error, structured=False)
    if payload.get("object") == "error":
        return _fault(payload)
    return None


def _fault(error: Mapping[str, Any]) -> Fault:
    message, param, code = (error.get(key) for key in ("message", "param", "code"))
    return Fault(
        message=str(message or error.get("type") or "an error without a message"),
        param=None if param is None else str(param),
        code=None if code is None else str(code),
    )


def error_from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    deployment: str | None = None,
    *,
    secrets: Iterable[str] = (),
) -> ClientError:
    """The error that a response means: any whose status isn't 200, and a 200 that can't be used.

    Args:
        status: The HTTP status.
        headers: The response's; names in any case.
        body: As received.
        deployment: Its name, for messages and hints; None for a fixed address.
        secrets: Texts that must not show up in the error.
    """
    text = body.decode("utf-8", "replace")
    fields = {name.lower(): value for name, value in headers.items()}
    fault = _fault_of_body(status, text, fields)
    cls, hint = _classify(status, fault, deployment)
    secrets = tuple(secrets)
    return cls(
        cause=f"{describe(fault.message, deployment, secrets)} (HTTP {status})",
        hint=hint,
        deployment=deployment,
        status=status,
        body=_shown(text, secrets, BODY_LIMIT),
        retry_after=_retry_after(fields),
    )


def describe(message: str, deployment: str | None, secrets: Iterable[str] = ()) -> str:
    """Foreign text as a cause: one line of bearable length, without secrets, with the deployment's name."""
    line = " ".join(_shown(message, secrets, MESSAGE_LIMIT).split())
    return f"{deployment}: {line}" if deployment else line


def _shown(text: str, secrets: Iterable[str], limit: int) -> str:
    # Cut twice: searching megabytes takes seconds, and cutting first could leave a part of a secret.
    return redact(text[: 2 * limit], secrets)[:limit]


def _fault_of_body(status: int, text: str, headers: Mapping[str, str]) -> Fault:
    try:
        payload = json.loads(text)
    except ValueError:
        payload = None
    if fault := fault_in(payload):
        return fault
    if isinstance(payload, Mapping) and payload.get("detail"):
        detail = payload["detail"]  # FastAPI's: a text, or a list of validation errors
        return Fault(message=detail if isinstance(detail, str) else json.dumps(detail), structured=False)
    if 300 <= status < 400:
        return Fault(message=f"redirected to {headers.get('location', 'nowhere')}", structured=False)
    if status == 200:
        kind = headers.get("content-type", "no content type")
        return Fault(message=f"the answer isn't what was asked for ({kind})", structured=False)
    return Fault(message=text.strip() or "an answer without a body", structured=False)


def _classify(status: int, fault: Fault, deployment: str | None) -> tuple[type[ClientError], str | None]:
    logs = f"`vllm-manager logs {deployment}` shows what it met" if deployment else None
    if status in (401, 403):
        if deployment:
            return AuthenticationFailed, f"`vllm-manager env {deployment}` prints the present key"
        return AuthenticationFailed, "pass the api_key that the other side was started with"
    if status == 404 and fault.structured:
        if fault.param == "model" or fault.code == "model_not_found" or _NO_MODEL.search(fault.message):
            return UnknownModel, "models() lists the names that it serves"
        return InvalidRequest, None
    if status in (404, 405, 501):
        return UnsupportedOperation, "this model, or this version of vLLM, doesn't have that endpoint"
    if status in (429, 503):
        return Busy, "try again later"
    if status == 408:
        return ResponseTimeout, "try again"
    if status >= 500:
        return UpstreamError, logs
    if status >= 400:
        return _classify_refusal(fault.message)
    if status >= 300:
        return InvalidResponse, "use the address that it redirects to"
    return InvalidResponse, logs


def _classify_refusal(message: str) -> tuple[type[ClientError], str | None]:
    if _CONTEXT.search(message):
        return ContextLengthExceeded, "shorten the prompt, lower max_tokens, or raise max_model_len"
    if _NO_TEMPLATE in message:
        return UnsupportedOperation, "use complete(), or set chat_template in the manifest"
    if "--tool-call-parser" in message:
        return InvalidRequest, "set enable_auto_tool_choice: true and tool_call_parser in the manifest"
    return InvalidRequest, None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    # RFC 9110, 10.2.3: seconds or a date. A date counts from the sender's own Date, whose clock may be off.
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        if (until := _date(value)) is None:
            return None
        now = _date(headers.get("date", ""))
        return max(0.0, until - (SystemClock().wall() if now is None else now))
    return seconds if isfinite(seconds) and seconds >= 0 else None


def _date(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()  # HTTP's dates are GMT
