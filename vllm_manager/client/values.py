"""What a model's answer is to the caller."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, BinaryIO

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, which becomes one user message, or messages as OpenAI's chat API has them."""

Texts = str | Sequence[str]
"""A text, or several."""

Sound = str | PathLike[str] | bytes | BinaryIO
"""A sound file: its path, its content, or it itself, opened as binary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResponse:
    """A whole answer; ``str()`` of it is its text.

    Attributes:
        text: Of the first choice; empty where the model only thought or called tools.
        reasoning: What a reasoning parser took out of the text, or None.
        tool_calls: As vLLM sends them: ``{"id", "type", "function": {"name", "arguments"}}``.
        finish_reason: ``stop``, ``length`` (``max_tokens`` or the context ran out) or ``tool_calls``.
        usage: None where it wasn't sent.
        model: The served name that answered.
        raw: The whole response, such as for further choices and log probabilities.
    """

    text: str
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """A piece of a streamed answer or completion; ``str()`` of it is its text.

    Attributes:
        text: May be empty, where the piece holds something else.
        reasoning: What a reasoning parser took out of the text.
        tool_calls: Fragments as vLLM sends them, told apart by their ``index``.
        finish_reason: On the last piece only.
        raw: The whole event.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionResponse:
    """A whole completion; ``str()`` of it is its text.

    Attributes:
        text: What the model wrote after the prompt.
        finish_reason: ``stop`` or ``length`` (``max_tokens`` or the context ran out).
        usage: None where it wasn't sent.
        model: The served name that answered.
        raw: The whole response.
    """

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResponse:
    """A vector for each text.

    Attributes:
        vectors: In the order of the texts.
        usage: None where it wasn't sent.
        model: The served name that answered.
        raw: The whole response.
    """

    vectors: tuple[Sequence[float], ...] = field(repr=False)
    usage: Usage | None = None
    model: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResult:
    """One document.

    Attributes:
        index: Its place among the documents that were sent.
        score: Its relevance; higher is more. Its range depends on the model.
        document: Its text.
    """

    index: int
    score: float
    document: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankResponse:
    """Documents by relevance.

    Attributes:
        results: The most relevant first; ``top_n`` of them where that was asked for.
        usage: None where it wasn't sent.
        model: The served name that answered.
        raw: The whole response.
    """

    results: tuple[RerankResult, ...]
    usage: Usage | None = None
    model: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreResponse:
    """How well each text fits the query.

    Attributes:
        scores: In the order of the texts. Their range depends on the model.
        usage: None where it wasn't sent.
        model: The served name that answered.
        raw: The whole response.
    """

    scores: tuple[float, ...]
    usage: Usage | None = None
    model: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The classes of one text.

    Attributes:
        label: The likeliest class, as the model's configuration names it, or None where it doesn't.
        probabilities: Of each class.
    """

    label: str | None
    probabilities: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationResponse:
    """The classes of each text.

    Attributes:
        results: In the order of the texts.
        usage: None where it wasn't sent.
        model: The served name that answered.
        raw: The whole response.
    """

    results: tuple[Classification, ...]
    usage: Usage | None = None
    model: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingResponse:
    """What the model's pooler makes of each text.

    Attributes:
        data: In the order of the texts: a list of numbers each, or one such list per token.
        usage: None where it wasn't sent.
        model: The served name that answered.
        raw: The whole response.
    """

    data: tuple[list[Any], ...] = field(repr=False)
    usage: Usage | None = None
    model: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionResponse:
    """What is said in a sound file; ``str()`` of it is the text.

    Attributes:
        text: May be empty.
        language: With ``response_format="verbose_json"`` only.
        seconds: Length of the sound, rounded up unless it is ``verbose_json``.
        raw: The whole response, such as for segments.
    """

    text: str
    language: str | None = None
    seconds: float | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.text
