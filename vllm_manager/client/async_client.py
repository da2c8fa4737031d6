"""The client for asyncio; the same as ``sync_client`` in all but waiting."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self

import httpx

from vllm_manager.client import transport, wire
from vllm_manager.client.chat_stream import ChatStreamReader, StreamProgress
from vllm_manager.client.values import ChatChunk, ChatResponse, Prompt
from vllm_manager.types import Endpoint


class AsyncChatStream(StreamProgress):
    """The pieces of an answer as they arrive, and what has arrived so far.

    The request is sent when the first piece is asked for. ``aclose()``, leaving an ``async with`` block, or
    cancelling the task closes the connection, at which vLLM ends the generation.
    """

    def __init__(self, reader: ChatStreamReader, chunks: AsyncGenerator[ChatChunk, None]) -> None:
        super().__init__(reader)
        self._chunks = chunks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatChunk:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """End the stream, and with it the generation."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncClient:
    """Talks to one deployment's model; ``Client`` says more.

    It may be used from several event loops, one after another or at once: each has its own connections, since
    a connection can't leave the loop that opened it. ``aclose()``, or leaving an ``async with`` block, is for
    the loop that runs.

    Args:
        resolve: Tells the endpoint; called for every request, and must not block.
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
        self._settings = transport.settings(trust_env=trust_env)
        self._by_loop: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

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

    async def chat(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> ChatResponse:
        """The model's answer to a text, or to a conversation.

        Args:
            prompt: A text, which becomes one user message, or messages as in OpenAI's chat API.
            timeout: The longest silence in seconds, instead of the client's.
            **options: Further fields of OpenAI's request: ``max_tokens``, ``temperature``, ``tools``, …
        """
        return wire.chat_response(await self._fetch(wire.chat_request(prompt, options), timeout))

    def stream(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> AsyncChatStream:
        """The answer in pieces, as it is generated; takes what ``chat`` takes.

        A stream that breaks raises ``StreamInterrupted``, which holds the text so far.
        """
        reader = ChatStreamReader()
        build = wire.chat_request(prompt, options, stream=True)
        return AsyncChatStream(reader, self._chunks(build, timeout, reader))

    async def models(self, *, timeout: float = transport.LOOKUP_TIMEOUT) -> tuple[str, ...]:
        """The names that the other side serves."""
        return wire.model_names(await self._fetch(wire.models_request, timeout))

    async def ready(self, *, timeout: float = transport.LOOKUP_TIMEOUT) -> bool:
        """Whether the deployment is READY and lists its model at this moment; ``Client.ready`` says more."""
        try:
            return self._resolve().model in await self.models(timeout=timeout)
        except transport.CANT_ANSWER_NOW:
            return False

    async def aclose(self) -> None:
        """Close this event loop's connections; a later request opens new ones."""
        if http := self._by_loop.pop(asyncio.get_running_loop(), None):
            await http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _http(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if (http := self._by_loop.get(loop)) is None:
            for other in list(self._by_loop):
                if other.is_closed():
                    del self._by_loop[other]
            http = self._by_loop[loop] = httpx.AsyncClient(**self._settings)
        return http

    async def _fetch(self, build: wire.RequestBuilder, timeout: float | None) -> wire.Reply:
        endpoint, response = await self._send(build, timeout)
        return await self._read(endpoint, response)

    async def _chunks(
        self, build: wire.RequestBuilder, timeout: float | None, reader: ChatStreamReader
    ) -> AsyncGenerator[ChatChunk, None]:
        endpoint, response = await self._send(build, timeout)
        if not transport.is_event_stream(response):
            (await self._read(endpoint, response)).error()
        try:
            async for data in response.aiter_bytes():
                for chunk in reader.feed(data, endpoint):
                    yield chunk
            reader.end(endpoint)
        except httpx.RequestError as error:
            reader.end(endpoint, transport.reason_of(error))
        finally:
            await response.aclose()

    async def _send(
        self, build: wire.RequestBuilder, timeout: float | None
    ) -> tuple[Endpoint, httpx.Response]:
        http = self._http()
        repeated = False
        while True:
            endpoint = self._resolve()
            trace = transport.ConnectionTrace()
            arguments = transport.prepare(
                build(endpoint), self._timeout if timeout is None else timeout, trace.anote
            )
            try:
                return endpoint, await http.send(http.build_request(**arguments), stream=True)
            except httpx.RequestError as error:
                if repeated or not trace.idle_connection_closed(error):
                    raise transport.failure(error, endpoint) from error
                repeated = True

    @staticmethod
    async def _read(endpoint: Endpoint, response: httpx.Response) -> wire.Reply:
        try:
            body = await response.aread()
        except httpx.RequestError as error:
            raise transport.failure(error, endpoint) from error
        finally:
            await response.aclose()
        return wire.Reply(endpoint=endpoint, status=response.status_code, headers=response.headers, body=body)
