"""An instance's command and environment as a person may see, copy and paste them."""

import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vllm_manager.redact import MASK, names_a_secret, redact, redact_variable

PER_INSTANCE = frozenset({"TMPDIR", "VLLM_RPC_BASE_PATH", "VLLM_PROCESS_NAME_PREFIX"})
"""Variables that are made for each instance: left out, since they lead into its private directory."""


def masked_command(argv: Sequence[str], secrets: Iterable[str]) -> tuple[str, ...]:
    """The command with the given secrets, and whatever is one by its flag or its looks, masked."""
    known = tuple(secrets)
    words = []
    for before, word in itertools.pairwise(["", *argv]):
        hidden = before.startswith("--") and names_a_secret(before) and not word.startswith("--")
        words.append(MASK if hidden else redact(word, known))
    return tuple(words)


def masked_environment(environment: Mapping[str, str], secrets: Iterable[str]) -> dict[str, str]:
    """The environment by name, without what is made for each instance, its secrets masked."""
    known = tuple(secrets)
    return {
        name: redact_variable(name, environment[name], known)
        for name in sorted(environment)
        if name not in PER_INSTANCE
    }


def shell_lines(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """A command for a shell, a variable and a flag a line."""
    lines = ["env -i", *(f"{name}={shlex.quote(value)}" for name, value in environment.items())]
    lines += [shlex.join(words) for words in _by_flag(argv)]
    first, *others = [f"{line} \\" for line in lines[:-1]] + lines[-1:]
    return [first, *(f"  {line}" for line in others)]


def _by_flag(argv: Sequence[str]) -> Iterator[list[str]]:
    words: list[str] = []
    for word in argv:
        if word.startswith("--") and words:
            yield words
            words = []
        words.append(word)
    yield words
