"""The client for asyncio; the same as ``sync_client`` in all but waiting."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from vllm_manager.client import pooling_wire, speech_wire, text_wire, transport, wire
from vllm_manager.client.text_stream import StreamProgress, TextStreamReader
from vllm_manager.client.values import (
    ChatResponse,
    ClassificationResponse,
    CompletionResponse,
    EmbeddingResponse,
    PoolingResponse,
    Prompt,
    RerankResponse,
    ScoreResponse,
    Sound,
    TextChunk,
    Texts,
    TranscriptionResponse,
)
from vllm_manager.types import Endpoint


class AsyncTextStream(StreamProgress):
    """The pieces of an answer as they arrive, and what has arrived so far.

    The request is sent when the first piece is asked for. ``aclose()``, leaving an ``async with`` block, or
    cancelling the task closes the connection, at which vLLM ends the generation.
    """

    def __init__(self, reader: TextStreamReader, chunks: AsyncGenerator[TextChunk, None]) -> None:
        super().__init__(reader)
        self._chunks = chunks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextChunk:
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
        tls: Whom to trust; by default only the certificate that a deployment serves with.
    """

    def __init__(
        self,
        resolve: Callable[[], Endpoint],
        *,
        timeout: float = transport.READ_TIMEOUT,
        trust_env: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._resolve = resolve
        self._timeout = timeout
        self._tls = tls or transport.own_tls()
        self._settings = transport.settings(trust_env=trust_env, tls=self._tls)
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
        return cls(
            lambda: endpoint,
            timeout=timeout,
            trust_env=not transport.is_loopback(root_url),
            tls=transport.public_tls(),
        )

    async def chat(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> ChatResponse:
        """The model's answer to a text, or to a conversation.

        Args:
            prompt: A text, which becomes one user message, or messages as in OpenAI's chat API.
            timeout: The longest silence in seconds, instead of the client's.
            **options: Further fields of OpenAI's request: ``max_tokens``, ``temperature``, ``tools``, …
        """
        return text_wire.chat_response(await self._fetch(text_wire.chat_request(prompt, options), timeout))

    def stream(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> AsyncTextStream:
        """The answer in pieces, as it is generated; takes what ``chat`` takes.

        A stream that breaks raises ``StreamInterrupted``, which holds the text so far.
        """
        return self._stream(text_wire.chat_request(prompt, options, stream=True), timeout)

    async def complete(
        self, prompt: str, *, timeout: float | None = None, **options: Any
    ) -> CompletionResponse:
        """The text that the model writes after the prompt; needs no chat template.

        Args:
            prompt: The text to go on with.
            timeout: The longest silence in seconds, instead of the client's.
            **options: Further fields of OpenAI's request: ``max_tokens``, ``stop``, …
        """
        return text_wire.completion_response(
            await self._fetch(text_wire.completion_request(prompt, options), timeout)
        )

    def stream_completion(
        self, prompt: str, *, timeout: float | None = None, **options: Any
    ) -> AsyncTextStream:
        """The completion in pieces, as it is generated; takes what ``complete`` takes."""
        return self._stream(text_wire.completion_request(prompt, options, stream=True), timeout)

    async def embed(self, texts: Texts, *, timeout: float | None = None, **options: Any) -> EmbeddingResponse:
        """A vector for each text; ``options`` are further fields, such as ``dimensions``."""
        return pooling_wire.embedding_response(
            await self._fetch(pooling_wire.embedding_request(texts, options), timeout)
        )

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> RerankResponse:
        """The documents by their relevance for the query, at most ``top_n`` of them."""
        documents = list(documents)
        requests = pooling_wire.rerank_requests(query, documents, top_n, options)
        return pooling_wire.rerank_response(await self._fetch_first(requests, timeout), documents)

    async def score(
        self, query: str, texts: Texts, *, timeout: float | None = None, **options: Any
    ) -> ScoreResponse:
        """How well each text fits the query, in the order of the texts."""
        requests = pooling_wire.score_requests(query, texts, options)
        return pooling_wire.score_response(await self._fetch_first(requests, timeout))

    async def classify(
        self, texts: Texts, *, timeout: float | None = None, **options: Any
    ) -> ClassificationResponse:
        """The probabilities of the model's classes for each text."""
        return pooling_wire.classification_response(
            await self._fetch(pooling_wire.classification_request(texts, options), timeout)
        )

    async def pooling(self, texts: Texts, *, timeout: float | None = None, **options: Any) -> PoolingResponse:
        """What the model's pooler makes of each text, such as a vector per token."""
        return pooling_wire.pooling_response(
            await self._fetch(pooling_wire.pooling_request(texts, options), timeout)
        )

    async def transcribe(
        self,
        file: Sound,
        language: str | None = None,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> TranscriptionResponse:
        """What is said in a sound file.

        Args:
            file: Its path, its bytes, or it itself, opened as binary.
            language: As in ISO 639-1, such as ``en``; where it is left out, the model finds out, if it can.
            prompt: Text that comes before, or sets the style.
            timeout: The longest silence in seconds, instead of the client's.
            **options: Further fields of OpenAI's request: ``response_format``, ``temperature``, …
        """
        sound = await asyncio.to_thread(speech_wire.read_sound, file)
        build = speech_wire.transcription_request(sound, language, prompt, options)
        return speech_wire.transcription_response(await self._fetch(build, timeout))

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

    async def _fetch_first(self, builds: Sequence[wire.RequestBuilder], timeout: float | None) -> wire.Reply:
        """The answer of the first of several routes that the other side has."""
        for build in builds:
            reply = await self._fetch(build, timeout)
            if not reply.no_such_route:
                break
        return reply

    def _stream(self, build: wire.RequestBuilder, timeout: float | None) -> AsyncTextStream:
        reader = TextStreamReader()
        return AsyncTextStream(reader, self._chunks(build, timeout, reader))

    async def _chunks(
        self, build: wire.RequestBuilder, timeout: float | None, reader: TextStreamReader
    ) -> AsyncGenerator[TextChunk, None]:
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
            transport.trust(self._tls, endpoint)
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
