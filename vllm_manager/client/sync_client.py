"""The client for ordinary code; see ``async_client`` for asyncio."""

from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self

import httpx

from vllm_manager.client import transport, wire
from vllm_manager.client.chat_stream import ChatStreamReader, StreamProgress
from vllm_manager.client.values import ChatChunk, ChatResponse, Prompt
from vllm_manager.types import Endpoint


class ChatStream(StreamProgress):
    """The pieces of an answer as they arrive, and what has arrived so far.

    The request is sent when the first piece is asked for. ``close()``, or leaving a ``with`` block, closes
    the connection, at which vLLM ends the generation.
    """

    def __init__(self, reader: ChatStreamReader, chunks: Generator[ChatChunk, None, None]) -> None:
        super().__init__(reader)
        self._chunks = chunks

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChatChunk:
        return next(self._chunks)

    def close(self) -> None:
        """End the stream, and with it the generation."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Client:
    """Talks to one deployment's model; keeps its connections, and may be shared by threads.

    Every method raises an ``errors.ClientError`` that says what went wrong. Nothing is retried, except that a
    request on a kept connection that the other side had just closed is sent once more on a new one.

    Args:
        resolve: Tells the endpoint; called for every request, so that the client follows a deployment
            through restarts and changes of its port.
        timeout: The longest silence of the other side, in seconds.
        trust_env: Whether the environment's proxy settings apply.
    """

    def __init__(
        self,
        resolve: Callable[[], Endpoint],
        *,
        timeout: float = transport.READ_TIMEOUT,
        trust_env: bool = False,
    ) -> None:
        self._resolve = resolve
        self._timeout = timeout
        self._http = httpx.Client(**transport.settings(trust_env=trust_env))

    @classmethod
    def at(
        cls, root_url: str, *, model: str, api_key: str | None = None, timeout: float = transport.READ_TIMEOUT
    ) -> Self:
        """A client for a fixed address, such as ``http://127.0.0.1:8000``.

        The environment's proxy settings apply unless the address is a loopback one.

        Raises:
            InvalidRequest: It is no HTTP address.
        """
        endpoint = wire.fixed_endpoint(root_url, model, api_key)
        return cls(lambda: endpoint, timeout=timeout, trust_env=not transport.is_loopback(root_url))

    def chat(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> ChatResponse:
        """The model's answer to a text, or to a conversation.

        Args:
            prompt: A text, which becomes one user message, or messages as in OpenAI's chat API.
            timeout: The longest silence in seconds, instead of the client's.
            **options: Further fields of OpenAI's request: ``max_tokens``, ``temperature``, ``tools``, …
        """
        return wire.chat_response(self._fetch(wire.chat_request(prompt, options), timeout))

    def stream(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> ChatStream:
        """The answer in pieces, as it is generated; takes what ``chat`` takes.

        A stream that breaks raises ``StreamInterrupted``, which holds the text so far.
        """
        reader = ChatStreamReader()
        return ChatStream(
            reader, self._chunks(wire.chat_request(prompt, options, stream=True), timeout, reader)
        )

    def models(self, *, timeout: float = transport.LOOKUP_TIMEOUT) -> tuple[str, ...]:
        """The names that the other side serves."""
        return wire.model_names(self._fetch(wire.models_request, timeout))

    def ready(self, *, timeout: float = transport.LOOKUP_TIMEOUT) -> bool:
        """Whether the deployment is READY and lists its model at this moment.

        READY in the registry means that it has produced a token; this doesn't make it produce another one.
        What waiting won't mend, such as a wrong key, is raised.
        """
        try:
            return self._resolve().model in self.models(timeout=timeout)
        except transport.CANT_ANSWER_NOW:
            return False

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._http.is_closed

    def close(self) -> None:
        """Close all connections; streams that run on them break."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fetch(self, build: wire.RequestBuilder, timeout: float | None) -> wire.Reply:
        endpoint, response = self._send(build, timeout)
        return self._read(endpoint, response)

    def _chunks(
        self, build: wire.RequestBuilder, timeout: float | None, reader: ChatStreamReader
    ) -> Generator[ChatChunk, None, None]:
        endpoint, response = self._send(build, timeout)
        if not transport.is_event_stream(response):
            self._read(endpoint, response).error()
        try:
            for data in response.iter_bytes():
                yield from reader.feed(data, endpoint)
            reader.end(endpoint)
        except httpx.RequestError as error:
            reader.end(endpoint, transport.reason_of(error))
        finally:
            response.close()

    def _send(self, build: wire.RequestBuilder, timeout: float | None) -> tuple[Endpoint, httpx.Response]:
        repeated = False
        while True:
            endpoint = self._resolve()
            trace = transport.ConnectionTrace()
            arguments = transport.prepare(
                build(endpoint), self._timeout if timeout is None else timeout, trace.note
            )
            try:
                return endpoint, self._http.send(self._http.build_request(**arguments), stream=True)
            except httpx.RequestError as error:
                if repeated or not trace.idle_connection_closed(error):
                    raise transport.failure(error, endpoint) from error
                repeated = True

    @staticmethod
    def _read(endpoint: Endpoint, response: httpx.Response) -> wire.Reply:
        try:
            body = response.read()
        except httpx.RequestError as error:
            raise transport.failure(error, endpoint) from error
        finally:
            response.close()
        return wire.Reply(endpoint=endpoint, status=response.status_code, headers=response.headers, body=body)
