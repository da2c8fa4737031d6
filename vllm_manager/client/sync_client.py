"""The client for ordinary code; see ``async_client`` for asyncio."""

import ssl
from collections.abc import Callable, Generator, Sequence
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


class TextStream(StreamProgress):
    """The pieces of an answer as they arrive, and what has arrived so far.

    The request is sent when the first piece is asked for. ``close()``, or leaving a ``with`` block, closes
    the connection, at which vLLM ends the generation.
    """

    def __init__(self, reader: TextStreamReader, chunks: Generator[TextChunk, None, None]) -> None:
        super().__init__(reader)
        self._chunks = chunks

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TextChunk:
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
        self._http = httpx.Client(**transport.settings(trust_env=trust_env, tls=self._tls))

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

    def chat(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> ChatResponse:
        """The model's answer to a text, or to a conversation.

        Args:
            prompt: A text, which becomes one user message, or messages as in OpenAI's chat API.
            timeout: The longest silence in seconds, instead of the client's.
            **options: Further fields of OpenAI's request: ``max_tokens``, ``temperature``, ``tools``, …
        """
        return text_wire.chat_response(self._fetch(text_wire.chat_request(prompt, options), timeout))

    def stream(self, prompt: Prompt, *, timeout: float | None = None, **options: Any) -> TextStream:
        """The answer in pieces, as it is generated; takes what ``chat`` takes.

        A stream that breaks raises ``StreamInterrupted``, which holds the text so far.
        """
        return self._stream(text_wire.chat_request(prompt, options, stream=True), timeout)

    def complete(self, prompt: str, *, timeout: float | None = None, **options: Any) -> CompletionResponse:
        """The text that the model writes after the prompt; needs no chat template.

        Args:
            prompt: The text to go on with.
            timeout: The longest silence in seconds, instead of the client's.
            **options: Further fields of OpenAI's request: ``max_tokens``, ``stop``, …
        """
        return text_wire.completion_response(
            self._fetch(text_wire.completion_request(prompt, options), timeout)
        )

    def stream_completion(self, prompt: str, *, timeout: float | None = None, **options: Any) -> TextStream:
        """The completion in pieces, as it is generated; takes what ``complete`` takes."""
        return self._stream(text_wire.completion_request(prompt, options, stream=True), timeout)

    def embed(self, texts: Texts, *, timeout: float | None = None, **options: Any) -> EmbeddingResponse:
        """A vector for each text; ``options`` are further fields, such as ``dimensions``."""
        return pooling_wire.embedding_response(
            self._fetch(pooling_wire.embedding_request(texts, options), timeout)
        )

    def rerank(
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
        return pooling_wire.rerank_response(self._fetch_first(requests, timeout), documents)

    def score(
        self, query: str, texts: Texts, *, timeout: float | None = None, **options: Any
    ) -> ScoreResponse:
        """How well each text fits the query, in the order of the texts."""
        requests = pooling_wire.score_requests(query, texts, options)
        return pooling_wire.score_response(self._fetch_first(requests, timeout))

    def classify(
        self, texts: Texts, *, timeout: float | None = None, **options: Any
    ) -> ClassificationResponse:
        """The probabilities of the model's classes for each text."""
        return pooling_wire.classification_response(
            self._fetch(pooling_wire.classification_request(texts, options), timeout)
        )

    def pooling(self, texts: Texts, *, timeout: float | None = None, **options: Any) -> PoolingResponse:
        """What the model's pooler makes of each text, such as a vector per token."""
        return pooling_wire.pooling_response(
            self._fetch(pooling_wire.pooling_request(texts, options), timeout)
        )

    def transcribe(
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
        sound = speech_wire.read_sound(file)
        build = speech_wire.transcription_request(sound, language, prompt, options)
        return speech_wire.transcription_response(self._fetch(build, timeout))

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

    def _fetch_first(self, builds: Sequence[wire.RequestBuilder], timeout: float | None) -> wire.Reply:
        """The answer of the first of several routes that the other side has."""
        for build in builds:
            reply = self._fetch(build, timeout)
            if not reply.no_such_route:
                break
        return reply

    def _stream(self, build: wire.RequestBuilder, timeout: float | None) -> TextStream:
        reader = TextStreamReader()
        return TextStream(reader, self._chunks(build, timeout, reader))

    def _chunks(
        self, build: wire.RequestBuilder, timeout: float | None, reader: TextStreamReader
    ) -> Generator[TextChunk, None, None]:
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
            transport.trust(self._tls, endpoint)
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
