"""How a deployment is used, by what its model is for. Pure."""

from typing import Final

from vllm_manager.types import Task

_CALLS: Final = {
    Task.CHAT: 'chat("hello")',
    Task.COMPLETION: 'complete("hello")',
    Task.EMBED: 'embed("hello")',
    Task.SCORE: 'rerank("query", ["one", "two"])',
    Task.CLASSIFY: 'classify("hello")',
    Task.POOLING: 'pooling("hello")',
    Task.TRANSCRIPTION: 'transcribe("speech.wav")',
}

TEXTS: Final = (Task.CHAT, Task.COMPLETION)
"""The tasks whose answers are text, which the command `chat` prints."""


def python_call(name: str, task: Task) -> str:
    """A call of the client's main method for that task, with an example of what it takes."""
    return f'registry.client("{name}").{_CALLS[task]}'


def examples(name: str, task: Task | None) -> list[str]:
    """Shell lines that use a deployment; a task that isn't known counts as chat."""
    task = task or Task.CHAT
    chat = [f'vllm-manager chat {name} "hello"'] if task in TEXTS else []
    return [
        *chat,
        f'eval "$(vllm-manager env {name})"   # OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL',
        f"python -c 'from vllm_manager import registry; print({python_call(name, task)})'",
    ]
