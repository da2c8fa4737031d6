"""Tells from the end of vLLM's log why it ended, and what would help.

The tables of recognised causes are in ``arguments``, ``model``, ``memory``, ``machine`` and ``running``;
``failure`` finds the line of the log that names the error. The texts are those of vLLM 0.32.0.
"""

import re
import signal
from collections.abc import Sequence
from typing import Final

from vllm_manager.diagnose.arguments import ARGUMENTS
from vllm_manager.diagnose.cause import Cause
from vllm_manager.diagnose.failure import Failure, find
from vllm_manager.diagnose.machine import MACHINE
from vllm_manager.diagnose.memory import MEMORY, OUT_OF_MEMORY
from vllm_manager.diagnose.model import MODEL
from vllm_manager.diagnose.running import CRASHED_HINT, KILLED, OUT_OF_RAM, RUNNING
from vllm_manager.types import Diagnosis

__all__ = ["CAUSES", "diagnose"]

_PRECISE: Final = (*ARGUMENTS, *MODEL, *MEMORY, *MACHINE)
CAUSES: Final[tuple[Cause, ...]] = (*_PRECISE, *OUT_OF_MEMORY, *RUNNING)
"""Every recognised cause, in the order in which they are tried."""

_LINES: Final = 4000
_TAIL: Final = 15
_CAUSE_LIMIT: Final = 400
_CRASHES: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def diagnose(lines: Sequence[str], *, exit_status: int | None = None) -> Diagnosis:
    """Say why vLLM ended.

    Args:
        lines: Its log, or the end of it; the last 4,000 lines are looked at. What is quoted from them may
            hold secrets: the caller redacts.
        exit_status: As ``Popen.returncode`` (negative for a signal) or as a container's (128 + signal); None
            where it isn't known. It counts only where the log is silent: vLLM exits 0 when its engine dies.
    """
    lines = lines[-_LINES:]
    tail = tuple(line.rstrip() for line in lines if line.strip())[-_TAIL:]
    failure = find(lines)
    if (recognised := _recognise(failure)) is not None:
        cause, found = recognised
        words, hint = cause.tell(found)
        exception = failure.exception
        if exception is None or failure.wrapped:
            exception = _line_of(found)
        return Diagnosis(
            cause=words, code=cause.code, hint=hint, permanent=cause.permanent, exception=exception, tail=tail
        )
    if failure.exception is not None:
        words = failure.exception.removeprefix("Value error, ")
        if len(words) > _CAUSE_LIMIT:
            words = words[:_CAUSE_LIMIT] + "…"
        return Diagnosis(cause=words, exception=failure.exception, tail=tail)
    return _from_status(exit_status, tail)


def _recognise(failure: Failure) -> tuple[Cause, re.Match[str]] | None:
    """The first cause that the exception, else the rest of the errors, names."""
    named = failure.exception is not None and not failure.wrapped
    searches = [
        (_PRECISE, failure.block),
        (_PRECISE, failure.errors),
        (OUT_OF_MEMORY, failure.block),
        (OUT_OF_MEMORY, failure.errors),
        # An exception of its own says more than that the engine died of it.
        (RUNNING, failure.block if named else failure.errors),
    ]
    if failure.exception is None:
        searches.append((RUNNING, failure.everything))
    for causes, text in searches:
        for cause in causes:
            if found := cause.pattern.search(text):
                return cause, found
    return None


def _line_of(found: re.Match[str]) -> str:
    start = found.string.rfind("\n", 0, found.start()) + 1
    return found.string[start:].partition("\n")[0].strip()


def _from_status(status: int | None, tail: tuple[str, ...]) -> Diagnosis:
    number = -status if status is not None and status < 0 else (status or 0) - 128
    if number == signal.SIGKILL:
        return Diagnosis(cause=KILLED, code="killed", hint=OUT_OF_RAM, tail=tail)
    if number in _CRASHES:
        cause = f"vLLM crashed ({signal.Signals(number).name})"
        return Diagnosis(cause=cause, code="crashed", hint=CRASHED_HINT, tail=tail)
    shown = "unknown" if status is None else str(status)
    return Diagnosis(cause=f"vLLM ended without an error message (exit status {shown})", tail=tail)
