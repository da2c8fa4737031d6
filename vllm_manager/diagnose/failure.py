"""Finds the line of a log that names the error.

vLLM's last line is mostly a wrapper ("Engine core initialization failed. See root cause above."), and its
processes print into one log: the root cause is the last exception of a worker, else of the engine core, else
of whoever printed a traceback without a tag.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# "(Worker_TP0 pid=12) ERROR 11-20 12:27:56 [gpu_worker.py:286] message"
_LINE: Final = re.compile(
    r"(?:\((?P<process>[^()]+) pid=\d+\) )?"
    r"(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./]+:\d+\] )?"
    r"(?P<message>.*)"
)
_UVICORN: Final = re.compile(r"(?:INFO|WARNING|DEBUG): ")
_EXCEPTION: Final = re.compile(
    r"(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\w*(?::|$)|vllm[\w ]*: error: "
)
_WRAPPER: Final = re.compile(
    r"WorkerProc initialization failed due to an exception in a background process"
    r"|Engine core initialization failed\. See root cause above"
    r"|EngineDeadError: |RuntimeError: Executor failed\."
)
_PYDANTIC: Final = re.compile(r"\d+ validation errors? for ")
_PYDANTIC_END: Final = re.compile(r" \[type=.*")
_MESSAGE_LIMIT: Final = 4096  # dumps of scheduler state fill lines of megabytes
_BLOCK_LIMIT: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a log says about a failure.

    Attributes:
        exception: The line that names the error, without vLLM's prefix; None where there is none.
        wrapped: Whether ``exception`` only says that another one exists.
        block: The exception with the lines that continue it.
        errors: All errors and untagged lines, tracebacks included.
        everything: All messages.
    """

    exception: str | None
    wrapped: bool
    block: str
    errors: str
    everything: str


@dataclass(frozen=True, slots=True)
class _Line:
    rank: int | None  # 0 worker, 1 engine core, 2 the rest; None can't be part of an error
    message: str


def find(lines: Sequence[str]) -> Failure:
    """Find what failed.

    Args:
        lines: The end of the log.
    """
    parsed = [_parse(line) for line in lines]
    at = _root(parsed)
    block = _block(parsed, at) if at is not None else []
    return Failure(
        exception=_name(block) if block else None,
        wrapped=bool(block) and _WRAPPER.search(block[0]) is not None,
        block="\n".join(block),
        errors="\n".join(line.message for line in parsed if line.rank is not None),
        everything="\n".join(line.message for line in parsed),
    )


def _parse(line: str) -> _Line:
    found = _LINE.match(line.rstrip("\r\n").rpartition("\r")[2][:_MESSAGE_LIMIT])
    process, level, message = found.groups() if found else (None, None, line)
    if level not in (None, "ERROR", "CRITICAL") or (level is None and _UVICORN.match(message)):
        return _Line(None, message)
    if process is not None and process.startswith(("Worker", "VllmWorker")):
        return _Line(0, message)
    return _Line(1 if process is not None and process.startswith("EngineCore") else 2, message)


def _root(parsed: Sequence[_Line]) -> int | None:
    """The index of the exception to believe; a wrapper only where there is nothing else."""
    best: tuple[bool, int] | None = None
    index = None
    for position in range(len(parsed) - 1, -1, -1):
        line = parsed[position]
        if line.rank is None or not _EXCEPTION.match(line.message):
            continue
        key = (_WRAPPER.search(line.message) is not None, line.rank)
        if best is None or key < best:
            best, index = key, position
        if best == (False, 0):
            break
    return index


def _block(parsed: Sequence[_Line], at: int) -> list[str]:
    """The exception's line and what continues it: up to the next exception, traceback or other process."""
    block = [parsed[at].message]
    for line in parsed[at + 1 : at + _BLOCK_LIMIT]:
        if line.rank != parsed[at].rank or line.message.startswith("Traceback "):
            break
        if _EXCEPTION.match(line.message):
            break
        block.append(line.message)
    return block


def _name(block: Sequence[str]) -> str:
    """The line that says most: pydantic's own first line names only the class that it checked."""
    first = block[0].strip()
    if not _PYDANTIC.search(first) or len(block) < 2:
        return first
    detail = block[1] if block[1].startswith(" ") or len(block) == 2 else f"{block[1]}: {block[2].strip()}"
    return _PYDANTIC_END.sub("", detail).strip()
