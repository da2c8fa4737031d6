"""Turns pydantic's validation errors into problems that people can act on."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

# Fields whose values may be secrets: never quoted.
_SECRET_FIELDS = frozenset({"api_key", "env"})

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "tuple_type": "a list",
    "union_tag_not_found": "text or a mapping",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}

_UNQUOTED = re.compile(r"true|false|-?\d{1,15}(?:\.\d{1,15})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with one field.

    Attributes:
        path: Keys and indices, outermost first.
        cause: Without the field's name.
        at_key: Whether the key is to blame, rather than its value.
    """

    path: tuple[str | int, ...]
    cause: str
    hint: str | None = None
    at_key: bool = False


def complaint(
    cause: str, hint: str | None = None, *, at: tuple[str | int, ...] = (), at_key: bool = False
) -> PydanticCustomError:
    """What our own validators raise.

    Args:
        cause: One line, without the field's name; no secret.
        hint: What would help.
        at: The place below the validated field, if it isn't the field itself.
        at_key: Whether the key is to blame.
    """
    context = {"cause": cause, "hint": hint, "at": at, "at_key": at_key}
    return PydanticCustomError("complaint", "{cause}", context)


def problems(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> list[Problem]:
    """The problems of ``data``, which ``model`` refused."""
    return [_problem(details, model, data) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, model: type[BaseModel], data: Mapping[str, Any]) -> Problem:
    kind, context = details["type"], details.get("ctx", {})
    path = _path(details["loc"], data, absent=kind in ("missing", "complaint"))
    at_key = "[key]" in details["loc"]
    if kind == "complaint":
        return Problem(
            path=path + tuple(context["at"]),
            cause=context["cause"],
            hint=context["hint"],
            at_key=at_key or context["at_key"],
        )
    if kind == "missing":
        return Problem(path=path, cause="is missing", hint=_purpose(path, model))
    if kind == "extra_forbidden":
        cause, hint = _unknown(path, model)
        return Problem(path=path, cause=cause, hint=hint, at_key=True)
    value = details["input"]
    shown = _kind(value) if path[:1] and path[0] in _SECRET_FIELDS else describe(value)
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        return Problem(path=path, cause=f"expected {expected}, got {shown}", hint=_retype(kind, value, shown))
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return Problem(path=path, cause=f"must be {words} {context[name]}, got {shown}")
    if kind == "literal_error":
        return Problem(path=path, cause=f"must be {context['expected']}, got {shown}", hint=None)
    return Problem(path=path, cause=details["msg"])


def describe(value: Any) -> str:
    """The value, short, as a person would name it."""
    if value is None or (isinstance(value, (Mapping, Sequence)) and not isinstance(value, str)):
        return _kind(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:56] + ' …"'


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _retype(kind: str, value: Any, shown: str) -> str | None:
    if value is None:
        return "give it a value, or leave the field out"
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return f'quote it: "{shown}"' if shown == describe(value) else "quote it"
    if isinstance(value, str) and kind in ("int_type", "float_type", "bool_type"):
        return "write it without quotes" if _UNQUOTED.fullmatch(value) else None
    return None


def _path(loc: tuple[str | int, ...], data: Any, *, absent: bool) -> tuple[str | int, ...]:
    # pydantic's locations also name union tags and "[key]", which aren't in the data; the last part may be
    # a field that isn't there, because it is missing or its default doesn't go with the rest.
    path: list[str | int] = []
    for number, part in enumerate(loc, start=1):
        in_mapping = isinstance(data, Mapping) and part in data
        if in_mapping or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
        elif not (absent and number == len(loc) and isinstance(part, str) and part != "[key]"):
            continue
        path.append(part)
    return tuple(path)


def _below(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    field = model.model_fields.get(name)
    return [] if field is None else list(_models(field.annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _owners(path: tuple[str | int, ...], model: type[BaseModel]) -> list[type[BaseModel]]:
    owners = [model]
    for part in path[:-1]:
        owners = [inner for owner in owners for inner in _below(owner, str(part))]
    return owners


def _purpose(path: tuple[str | int, ...], model: type[BaseModel]) -> str | None:
    for owner in _owners(path, model):
        if (field := owner.model_fields.get(str(path[-1]))) and field.description:
            return f"add `{path[-1]}:`, {field.description[0].lower()}{field.description[1:]}"
    return None


def _unknown(path: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str, str]:
    name = str(path[-1]).replace("-", "_").lower()
    known = [field for owner in _owners(path, model) for field in owner.model_fields]
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.7):
        return "unknown field", f"did you mean `{near[0]}`?"
    if len(path) == 1:
        for parent in model.model_fields:
            if any(name in inner.model_fields for inner in _below(model, parent)):
                return "unknown field", f"it belongs under `{parent}:`"
        return "unknown field", "a flag of vLLM that isn't a field goes under `args:`"
    return "unknown field", f"the fields here are {', '.join(known)}"
