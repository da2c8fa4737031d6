"""What a model is for: which tasks a started one may have, and what each task offers to clients."""

from collections.abc import Iterable
from typing import Final

from vllm_manager.types import Task

# By vLLM's own names (vllm/tasks.py, 0.32), in the order of precedence. Its log can't tell more: whether a
# model has a chat template, or scores pairs, only its answers show.
_CANDIDATES: Final = {
    "generate": (Task.CHAT, Task.COMPLETION),
    "transcription": (Task.TRANSCRIPTION,),
    "embed": (Task.EMBED,),
    "classify": (Task.SCORE, Task.CLASSIFY),
    "token_embed": (Task.POOLING,),
    "token_classify": (Task.POOLING,),
    "plugin": (Task.POOLING,),
}

_OPERATIONS: Final = {
    Task.CHAT: ("chat", "stream", "complete", "stream_completion"),
    Task.COMPLETION: ("complete", "stream_completion"),
    Task.EMBED: ("embed", "rerank", "score", "pooling"),
    Task.SCORE: ("rerank", "score", "classify", "pooling"),
    Task.CLASSIFY: ("classify", "pooling"),
    Task.POOLING: ("pooling",),
    Task.TRANSCRIPTION: ("transcribe",),
}

# What only some models of a task can do: those that hear, and those whose token vectors are for comparing.
_OF_SOME: Final = {
    Task.CHAT: ("transcribe",),
    Task.COMPLETION: ("transcribe",),
    Task.POOLING: ("rerank", "score"),
}


def candidates(supported: Iterable[str]) -> tuple[Task, ...]:
    """The tasks that a model may have; it has the first whose smallest request it answers.

    vLLM runs a model either as generating or as pooling. What generates and transcribes is for chat; what
    gives a vector per text and one per token is for embedding. One label makes a classifier a scorer.

    Args:
        supported: As vLLM logs them under ``Supported tasks``; without any known one, all tasks are possible.
    """
    names = set(supported)
    known = [tasks for name, tasks in _CANDIDATES.items() if name in names] or _CANDIDATES.values()
    return tuple(dict.fromkeys(task for tasks in known for task in tasks))


def operations(task: Task) -> tuple[str, ...]:
    """The client's methods that every model of this task answers (vLLM 0.32), the main one first."""
    return _OPERATIONS[task]


def may_offer(task: Task, operation: str) -> bool:
    """Whether some model of this task answers that method; a particular one may still refuse it."""
    return operation in _OPERATIONS[task] or operation in _OF_SOME.get(task, ())
