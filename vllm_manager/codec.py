"""Dataclasses to JSON values and back, by their annotations.

Reading is strict about what it needs and lenient about what it doesn't know: a field that is missing and
has no default, or has another type, is a ValueError; an unknown one is ignored, so that an older version
can read what a newer one wrote.
"""

import functools
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeVar, cast

T = TypeVar("T")


def encode(value: Any) -> Any:
    """The value as JSON-ready lists, dicts, strings, numbers, booleans and None."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [encode(item) for item in value]
    return value


def decode(cls: type[T], data: Any) -> T:
    """The dataclass that ``encode`` wrote.

    Raises:
        ValueError: ``data`` doesn't describe a ``cls``; names the field.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{cls.__name__}: expected an object, got {type(data).__name__}")
    values: dict[str, Any] = {}
    hints = _hints(cast("Any", cls))
    for f in fields(cast("Any", cls)):
        if f.name in data:
            values[f.name] = _convert(hints[f.name], data[f.name], f"{cls.__name__}.{f.name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{cls.__name__}.{f.name}: missing")
    return cls(**values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, data: Any, where: str) -> Any:
    if hint is Any:
        return data
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _convert(inner, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where}: expected a list")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_convert(arguments[0], item, where) for item in data)
        if len(data) != len(arguments):
            raise ValueError(f"{where}: expected {len(arguments)} values")
        return tuple(_convert(a, item, where) for a, item in zip(arguments, data, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ValueError(f"{where}: expected an object")
        return {str(key): _convert(arguments[1], item, where) for key, item in data.items()}
    if is_dataclass(hint):
        return decode(cast("Any", hint), data)
    if issubclass(hint, Enum):
        return hint(data)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if type(data) is not hint:
        raise ValueError(f"{where}: expected {hint.__name__}, got {type(data).__name__}")
    return data
