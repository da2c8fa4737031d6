"""What both clients share of httpx: its settings, the idle-connection rule, and its errors as ours."""

import functools
import ipaddress
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

from vllm_manager.client.failures import describe
from vllm_manager.client.wire import Request, secrets_of
from vllm_manager.errors import (
    Busy,
    ClientError,
    InvalidResponse,
    ModelNotReady,
    ResponseTimeout,
    Unavailable,
    UpstreamError,
)
from vllm_manager.types import Endpoint

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 600.0
"""Default for the longest silence, in seconds: a long answer that isn't streamed is one long silence."""
LOOKUP_TIMEOUT = 10.0
"""Default for requests that need no generation, in seconds."""

# Below uvicorn's keep-alive of 5 s, which is vLLM's default, so that we are the one who closes.
_KEEPALIVE_EXPIRY = 4.0

CANT_ANSWER_NOW = (ModelNotReady, Unavailable, ResponseTimeout, Busy, UpstreamError)
"""The errors that make ``ready()`` say False."""


def settings(*, trust_env: bool, tls: ssl.SSLContext) -> dict[str, Any]:
    """Arguments of httpx's clients; ``trust_env`` lets the environment's proxies apply."""
    return {
        "trust_env": trust_env,
        "verify": tls,
        # No bound on connections: vLLM queues requests better than a pool does.
        "limits": httpx.Limits(
            max_connections=None, max_keepalive_connections=100, keepalive_expiry=_KEEPALIVE_EXPIRY
        ),
    }


@functools.cache
def public_tls() -> ssl.SSLContext:
    """Trusts the usual authorities; shared, since reading their certificates takes 50 ms."""
    return httpx.create_ssl_context()


def own_tls() -> ssl.SSLContext:
    """Trusts nobody, until ``trust`` names a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The certificate itself is known, whatever host it is made out to and whoever signed it.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def trust(context: ssl.SSLContext, endpoint: Endpoint) -> None:
    """Let the context trust the certificate that the deployment serves with, where it has one.

    Raises:
        Unavailable: The certificate can't be read.
    """
    if endpoint.certificate is None:
        return
    try:
        context.load_verify_locations(endpoint.certificate)
    except OSError as error:  # ssl.SSLError is one
        raise Unavailable(
            cause=f"the certificate {endpoint.certificate} can't be read: {error.strerror or error}",
            hint="it is `ssl-certfile` in the deployment's manifest",
            deployment=endpoint.deployment or None,
        ) from error


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own, which no proxy can reach."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def prepare(request: Request, timeout: float, trace: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of httpx's ``build_request``; ``timeout`` is the longest silence in seconds."""
    return {
        "method": request.method,
        "url": request.url,
        "headers": dict(request.headers),
        "content": request.content,
        "data": request.form,
        "files": {"file": request.file} if request.file else None,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
        "extensions": {"trace": trace},
    }


class ConnectionTrace:
    """Watches which connection a request takes, through httpcore's trace events."""

    def __init__(self) -> None:
        self._connected = False

    def note(self, event: str, _info: object) -> None:
        """Takes one event."""
        self._connected |= event == "connection.connect_tcp.started"

    async def anote(self, event: str, _info: object) -> None:
        """Takes one event, from the asynchronous client."""
        self.note(event, _info)

    def idle_connection_closed(self, error: httpx.RequestError) -> bool:
        """Whether a kept connection turned out to be closed before a response began.

        The other side may close an idle connection at the moment at which a request goes out. Such a request
        is repeated, once: nothing of a response was received, and on a connection that was open already its
        closing is the likely reason. On a new connection it isn't: the request itself may have brought the
        other side down.
        """
        return not self._connected and isinstance(error, httpx.ReadError | httpx.RemoteProtocolError)


def is_event_stream(response: httpx.Response) -> bool:
    """Whether the response is the stream that was asked for."""
    kind = str(response.headers.get("content-type", ""))
    return response.status_code == 200 and kind.startswith("text/event-stream")


def failure(error: httpx.RequestError, endpoint: Endpoint) -> ClientError:
    """An error of httpx as one of ours."""
    name = endpoint.deployment or None
    running = f"`vllm-manager ps` shows whether {name} runs" if name else None
    cls: type[ClientError] = Unavailable
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        message, hint = f"no connection to {endpoint.root_url}", running or "check that it runs"
    elif isinstance(error, httpx.TimeoutException):
        cls, message, hint = ResponseTimeout, "no answer", "pass a longer timeout=, or stream the answer"
    elif isinstance(error, httpx.DecodingError):
        cls, message, hint = InvalidResponse, "an unreadable answer", None
    else:
        message, hint = f"{endpoint.root_url} closed the connection before its answer was complete", running
    return cls(
        cause=describe(f"{message}: {reason_of(error)}", name, secrets_of(endpoint)),
        hint=hint,
        deployment=name,
    )


def reason_of(error: httpx.RequestError) -> str:
    """The error's own words, which httpx leaves empty or vague for timeouts."""
    if isinstance(error, httpx.ConnectTimeout):
        return "it didn't take the connection in time"
    if isinstance(error, httpx.TimeoutException):
        return f"not a byte for {error.request.extensions['timeout']['read']:g} s"
    return str(error) or type(error).__name__
