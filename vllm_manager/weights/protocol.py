"""What the worker is asked, and what it says: a JSON object a line."""

from dataclasses import dataclass

from vllm_manager.weights.cache import Fetched
from vllm_manager.weights.wanted import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The one line on the worker's stdin, which then stays open for as long as somebody wants the result."""

    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The last line of a download that succeeded; before it come ``Download`` lines."""

    fetched: tuple[Fetched, ...]
