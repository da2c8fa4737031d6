"""One flag of `vllm serve`: found by any of its names, and written as the words of a command line. Pure.

How vLLM reads them is in its utils/argparse_utils.py (FlexibleArgumentParser.parse_args, 0.32).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from vllm_manager.types import EngineFlags, Flag

_SUFFIXED = re.compile(r"\d+(\.\d+)?[kKmMgGtT]?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """A flag as somebody spelled it.

    Attributes:
        flag: What the engine has.
        negated: Whether it was written with ``no-`` in front.
        keys: What follows the first dot, as in ``compilation-config.mode``; empty where there is none.
    """

    flag: Flag
    negated: bool = False
    keys: str = ""


class FlagIndex:
    """An engine's flags by all their names."""

    def __init__(self, flags: EngineFlags) -> None:
        self._flags = {name: flag for flag in flags.flags for name in (*flag.aliases, flag.name)}

    @property
    def names(self) -> list[str]:
        """All names, aliases included."""
        return list(self._flags)

    def find(self, name: str) -> Spelled | None:
        """The flag with that name; dashes and underscores are the same before the first dot."""
        head, _, keys = name.partition(".")
        head = head.replace("_", "-")
        if flag := self._flags.get(head):
            return Spelled(flag=flag, keys=keys)
        flag = self._flags.get(head.removeprefix("no-"))
        if flag is not None and flag.negatable and not keys:
            return Spelled(flag=flag, negated=True)
        return None


def words(name: str, value: Any, spelled: Spelled | None = None) -> Iterator[str]:
    """The words that give a flag its value; none for null.

    Args:
        name: As in the manifest.
        value: As in the manifest.
        spelled: What the engine has under that name; None writes it as most flags are.
    """
    option = f"--{_canonical(name, spelled)}"
    flag = spelled.flag if spelled else None
    if value is None:  # left to vLLM's default
        return
    if "." in option:
        yield from _joined(option, _keyed(option, value))
    elif isinstance(value, bool):
        yield from _boolean(option, value, spelled)
    elif flag is not None and flag.kind == "json" and not isinstance(value, str):
        yield from _joined(option, json.dumps(value))
    elif not isinstance(value, list | tuple):
        yield from _joined(option, as_text(value))
    elif flag is not None and flag.repeats:
        for item in value:
            yield from _joined(option, as_text(item))
    elif flag is not None and not flag.many:
        yield from _joined(option, json.dumps(value))
    else:
        yield option
        yield from map(as_text, value)


def as_text(value: Any) -> str:
    """The value as one word: JSON for mappings and lists, no exponents, booleans in lower case."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    return json.dumps(value)


def _canonical(name: str, spelled: Spelled | None) -> str:
    head, dot, keys = name.partition(".")
    head = spelled.flag.name if spelled else head.replace("_", "-")
    return head + dot + keys


def _boolean(option: str, value: bool, spelled: Spelled | None) -> Iterator[str]:
    if spelled is not None and spelled.negated:
        value = not value
    if value:
        yield option
    elif spelled is None or spelled.flag.negatable:
        # Nearly all of vLLM's booleans are BooleanOptionalAction: each has a --no- twin.
        yield f"--no-{option.removeprefix('--')}"


def _joined(option: str, text: str) -> Iterator[str]:
    # A word that begins with a dash would be taken for an option, and -0.5 even for a dotted one.
    if text.startswith("-"):
        yield f"{option}={text}"
    else:
        yield from (option, text)


def _keyed(option: str, value: Any) -> str:
    # vLLM splits the value of `--x.y+` at commas; any other is read as JSON, as 16K or else as text.
    if option.endswith("+") and isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(as_text, value))
    if (
        isinstance(value, str)
        and not option.endswith("+")
        and (_is_json(value) or _SUFFIXED.fullmatch(value))
    ):
        return json.dumps(value)
    return as_text(value)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
