"""What a model's answer is to the caller."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, which becomes one user message, or messages as OpenAI's chat API has them."""


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
class ChatChunk:
    """A piece of a streamed answer; ``str()`` of it is its text.

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
