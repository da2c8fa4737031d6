"""What a recognised cause is: a pattern in the log, and what to tell about it."""

import re
from dataclasses import dataclass
from string import Template


@dataclass(frozen=True, slots=True)
class Cause:
    """One known reason for a start, or a running engine, to fail.

    Attributes:
        code: A slug; several rows may share it where vLLM has several texts for one thing.
        pattern: Searched in messages without vLLM's prefix, one per line (so ``^`` and ``$`` are a line's).
        cause: A template of ``pattern``'s named groups (``$name``), for people.
        hint: Likewise: what would help, in terms of the manifest.
        permanent: Whether the same start would fail the same way again.
    """

    code: str
    pattern: re.Pattern[str]
    cause: str
    hint: str
    permanent: bool

    def tell(self, found: re.Match[str]) -> tuple[str, str]:
        """The cause and the hint with the values that vLLM named."""
        values = {name: (value or "").strip() for name, value in found.groupdict().items()}
        return Template(self.cause).substitute(values), Template(self.hint).substitute(values)


def permanent(code: str, pattern: str, cause: str, hint: str) -> Cause:
    """A cause that only a change removes: of the manifest, the engine, the model's files."""
    return Cause(code, re.compile(pattern, re.MULTILINE), cause, hint, permanent=True)


def passing(code: str, pattern: str, cause: str, hint: str) -> Cause:
    """A cause that may be gone at the next start."""
    return Cause(code, re.compile(pattern, re.MULTILINE), cause, hint, permanent=False)
