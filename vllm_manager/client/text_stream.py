"""Reads a stream of text: bytes of server-sent events in, chunks and the end of the stream out. No I/O."""

import json
from collections.abc import Iterator

from vllm_manager.client.failures import describe, fault_in
from vllm_manager.client.text_wire import text_chunk
from vllm_manager.client.values import TextChunk, Usage
from vllm_manager.client.wire import secrets_of, usage_of
from vllm_manager.errors import StreamInterrupted
from vllm_manager.types import Endpoint


class EventDecoder:
    """Cuts a byte stream into the data of its server-sent events.

    Lines end at LF or CRLF only, unlike in ``str.splitlines()``: JSON text may hold U+2028 or U+0085.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of the events that are complete with these bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                event, self._data = b"\n".join(self._data), []
                yield event


class TextStreamReader:
    """What has arrived of one stream.

    Attributes:
        usage: Tokens, after the end.
        finish_reason: After the end.
        complete: Whether the end was seen: ``[DONE]``, or a finish reason where the usage is cut off.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.complete = False
        self._events = EventDecoder()
        self._text: list[str] = []
        self._reasoning: list[str] = []

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    def feed(self, data: bytes, endpoint: Endpoint) -> Iterator[TextChunk]:
        """The chunks that these bytes complete.

        Raises:
            StreamInterrupted: The stream reports an error, or isn't one.
        """
        for event in self._events.feed(data):
            if event == b"[DONE]":
                self.complete = True
            else:
                yield from self._event(event, endpoint)

    def end(self, endpoint: Endpoint, reason: str = "the connection was closed") -> None:
        """Says that no more bytes come.

        Raises:
            StreamInterrupted: The stream isn't complete.
        """
        if not self.complete:
            raise self._interrupted(f"the stream broke before its end: {reason}", endpoint)

    def _event(self, event: bytes, endpoint: Endpoint) -> Iterator[TextChunk]:
        try:
            payload = json.loads(event)
            fault = fault_in(payload)
            chunk = None if fault else text_chunk(payload)
            usage = None if fault else usage_of(payload)
        except (AttributeError, TypeError, ValueError):
            raise self._interrupted("the stream holds what is no event of such a stream", endpoint) from None
        if fault:
            raise self._interrupted(fault.message, endpoint)
        self.usage = usage or self.usage
        if chunk is None:
            return
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        if chunk.finish_reason == "abort":  # what vLLM sends to open streams when it is stopped
            raise self._interrupted("the other side ended the generation (abort)", endpoint)
        if chunk.finish_reason:
            self.finish_reason, self.complete = chunk.finish_reason, True
        yield chunk

    def _interrupted(self, message: str, endpoint: Endpoint) -> StreamInterrupted:
        name = endpoint.deployment or None
        return StreamInterrupted(
            cause=describe(message, name, secrets_of(endpoint)),
            hint=f"`vllm-manager ps` shows whether {name} still runs" if name else None,
            deployment=name,
            status=200,
            partial=self.text,
        )


class StreamProgress:
    """What a stream object tells of its stream, while it runs and after it."""

    def __init__(self, reader: TextStreamReader) -> None:
        self._reader = reader

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._reader.text

    @property
    def reasoning(self) -> str:
        """The reasoning so far, where a reasoning parser takes it out of the text."""
        return self._reader.reasoning

    @property
    def usage(self) -> Usage | None:
        """The tokens; None before the end."""
        return self._reader.usage

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length`` or ``tool_calls``; None before the end."""
        return self._reader.finish_reason
