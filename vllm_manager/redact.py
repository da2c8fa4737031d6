"""Takes secrets out of text that is shown or written."""

import re
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from vllm_manager.errors import ManagerError

MASK = "***"

# Shapes of well-known secrets, for text whose secrets we don't know (older vLLM versions log them).
_SHAPES = re.compile(
    r"""(?xi)
    (?P<keep>
        bearer \s+
        | (?:api[_-]?key|hf[_-]?token|authorization) ['"]? \s* [:=] \s* \[? ['"]? (?:bearer\s+)?
    )
    (?!none\b|null\b|\*\*\*) [A-Za-z0-9._~+/=-]{6,}
    | \b hf_[A-Za-z0-9]{20,} \b
    | \b sk-[A-Za-z0-9_-]{12,} \b
    """
)


# A password in the address of a proxy or an index.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]*@")

# At the end of a word: tokenizer and max-num-batched-tokens are none.
_SECRET_NAME = re.compile(r"(?i)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)(?![a-z])")


def names_a_secret(name: str) -> bool:
    """Whether a variable or an option of that name holds a secret."""
    return _SECRET_NAME.search(name) is not None


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with the given secrets, and whatever looks like a key or a token, replaced by ``***``."""
    for secret in secrets:
        if len(secret) >= 4:  # a shorter one would blot out ordinary words, and protects nothing
            text = text.replace(secret, MASK)
    return _SHAPES.sub(lambda match: (match["keep"] or "") + MASK, text)


def redact_variable(name: str, value: str, secrets: Iterable[str] = ()) -> str:
    """The value of a variable or an option, masked where it is or holds a secret."""
    if names_a_secret(name) and value:
        return MASK
    return _CREDENTIALS.sub(f"{MASK}@", redact(value, secrets))


def redact_error(error: ManagerError, secrets: Iterable[str] = ()) -> ManagerError:
    """The error with every text in it redacted."""
    known = tuple(secrets)

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return redact(value, known)
        return tuple(clean(item) for item in value) if isinstance(value, tuple | list) else value

    return replace(error, **{f.name: clean(getattr(error, f.name)) for f in fields(error)})
