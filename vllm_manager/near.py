"""Did you mean …? One place for all names that people type."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like it, or None where none is."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def near_names(name: str, known: Iterable[str]) -> str:
    """A hint: the likely name, or all there are."""
    names = sorted(known)
    if match := nearest(name, names):
        return f"did you mean {match}?"
    return f"there is {', '.join(names)}" if names else "nothing is up; `vllm-manager up FILE` starts one"
