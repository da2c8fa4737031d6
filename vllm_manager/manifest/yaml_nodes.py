"""YAML as a tree of nodes that know their line and column, without YAML's surprises.

PyYAML accepts what a manifest must not mean by accident: duplicate keys (the last wins), ``no`` as false,
``1:30`` as 90, ``0777`` as 511. Here plain scalars are read as YAML 1.2's core schema has them, and what
YAML 1.1 would read in another way is an error. The trees are built from PyYAML's events, so that depth and
size are bounded before anything is built.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from vllm_manager.errors import ManifestSyntaxError
from vllm_manager.manifest.source import Source

DEPTH_LIMIT = 32
SIZE_LIMIT = 10_000  # nodes of a file, with aliases counted as what they stand for

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Scalar = str | int | float | bool | None

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_SURPRISES = (
    (re.compile(r"(?i:yes|no|on|off)"), "is a boolean for some YAML readers and text for others"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"), "is a base 60 number in YAML 1.1"),
    (re.compile(r"[-+]?0[0-9_]+"), "has a leading zero, which means octal in YAML 1.1"),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+"), "is a number in another base than 10"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"), "has underscores or zeros too many"),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"), "is no number that a manifest could mean"),
)
_DIGITS_LIMIT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value of the document.

    Attributes:
        value: A scalar, a tuple of nodes, or a dict of nodes.
        line: 1-based, as is ``column``.
        keys: For a mapping: where each key is written, as (line, column).
        size: How many nodes it consists of.
        height: How many levels it has.
        plain: Whether it is a scalar without quotes.
        written: The text in the file, where an environment variable's value has taken its place.
    """

    value: "Scalar | tuple[Node, ...] | dict[str, Node]" = field(repr=False)
    line: int
    column: int
    keys: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    size: int = 1
    height: int = 1
    plain: bool = False
    written: str | None = None


def read(source: Source) -> tuple[list[Node], list[ManifestSyntaxError]]:
    """The trees of a file's YAML documents, empty ones left out, and what is wrong with the YAML.

    A document that is too deep, or uses tags or merges, has a problem instead of a tree; so has all that
    follows a place that is no YAML. Smaller problems leave text in the tree.
    """
    reader = _Reader(source)
    trees: list[Node] = []
    try:
        for tree in reader.documents():
            if tree.value is not None:
                trees.append(tree)
    except yaml.MarkedYAMLError as error:
        reader.problems.append(_syntax_error(source, error))
    except (yaml.YAMLError, RecursionError):
        reader.problems.append(ManifestSyntaxError(cause="isn't YAML", path=source.path))
    finally:
        reader.close()
    return trees, reader.problems


def plain_value(text: str) -> tuple[Scalar, tuple[str, str] | None]:
    """What an unquoted scalar means, and what is wrong with it (what it is, and the remedy), if anything."""
    if text in _WORDS:
        return _WORDS[text], None
    if _INTEGER.fullmatch(text) and len(text) <= _DIGITS_LIMIT:
        return int(text), None
    if _FLOAT.fullmatch(text) and len(text) <= _DIGITS_LIMIT and abs(float(text)) < float("inf"):
        return float(text), None
    if _INTEGER.fullmatch(text) or _FLOAT.fullmatch(text):
        return text, ("is a number too large or too exact", "quote it if it is meant as text")
    for pattern, what in _SURPRISES:
        if pattern.fullmatch(text):
            remedy = "write true or false, or quote it" if what.startswith("is a boolean") else "quote it"
            return text, (what, f"{remedy} if it is meant as text")
    return text, None


def unusable(text: str) -> bool:
    """Whether no file name, argument or variable could hold it: it has a NUL or half a surrogate pair."""
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _syntax_error(source: Source, error: yaml.MarkedYAMLError) -> ManifestSyntaxError:
    problem = str(error.problem or error.context or "isn't YAML")
    hint = None
    mark = error.problem_mark or error.context_mark
    if mark is not None and "\t" in source.line(mark.line + 1)[: mark.column + 1]:
        hint = "indent with spaces; YAML allows no tabs there"
    elif mark is not None and source.line(mark.line + 1)[max(mark.column - 1, 0) :].startswith("${"):
        hint = "inside { } and [ ], write {env: NAME} instead of ${NAME}, or quote it"
    elif "mapping values are not allowed" in problem:
        hint = 'check the indentation, and quote text that contains ": "'
    elif "cannot start any token" in problem:
        hint = "quote text that starts with a special character"
    if mark is None:
        return ManifestSyntaxError(cause=problem, hint=hint, path=source.path)
    return source.error(ManifestSyntaxError, problem, hint=hint, line=mark.line + 1, column=mark.column + 1)


class _Reader:
    """Builds the tree by recursive descent over PyYAML's events; DEPTH_LIMIT bounds the recursion."""

    def __init__(self, source: Source) -> None:
        self.problems: list[ManifestSyntaxError] = []
        self._source = source
        self._events: Iterator[Event] = yaml.parse(source.text, Loader=LOADER)
        self._anchors: dict[str, Node] = {}
        self._size = 0

    def close(self) -> None:
        # PyYAML's generator frees its parser when closed.
        getattr(self._events, "close", lambda: None)()

    def documents(self) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                self._anchors.clear()
                try:
                    yield self._node(next(self._events), 1)
                except ManifestSyntaxError as problem:
                    self.problems.append(problem)
                    if self._size > SIZE_LIMIT or not self._skip():
                        return

    def _skip(self) -> bool:
        # To the document's end, unless that is far down: PyYAML's time is quadratic in the depth.
        depth = 0
        with suppress(yaml.YAMLError):  # the document has its problem already
            for event in self._events:
                if isinstance(event, DocumentEndEvent):
                    return True
                depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
                if depth > DEPTH_LIMIT:
                    break
        return False

    def _node(self, event: Event, depth: int) -> Node:
        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        if not isinstance(event, (ScalarEvent, CollectionStartEvent)):  # pragma: no cover - PyYAML's grammar
            self._fail(event, "isn't YAML")
        if event.tag is not None:
            self._fail(event, "YAML tags (`!…`) aren't supported here", "to force text, quote the value")
        self._check(event, depth, 1)
        if isinstance(event, ScalarEvent):
            line, column = _place(event)
            node = Node(value=self._scalar(event), line=line, column=column, plain=event.implicit[0])
        elif isinstance(event, MappingStartEvent):
            node = self._mapping(event, depth)
        else:
            node = self._sequence(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: AliasEvent, depth: int) -> Node:
        # An anchor is known once its node is complete, so that no node can contain itself.
        target = self._anchors.get(event.anchor or "")
        if target is None:
            self._fail(event, "an alias of no earlier anchor", "quote text that starts with *")
        self._check(event, depth + target.height - 1, target.size)
        line, column = _place(event)
        return replace(target, line=line, column=column)

    def _sequence(self, event: Event, depth: int) -> Node:
        items = []
        while not isinstance(inner := next(self._events), SequenceEndEvent):
            items.append(self._node(inner, depth + 1))
        return _collection(event, tuple(items), items, {})

    def _mapping(self, event: Event, depth: int) -> Node:
        items: dict[str, Node] = {}
        keys: dict[str, tuple[int, int]] = {}
        while not isinstance(inner := next(self._events), MappingEndEvent):
            key = self._key(inner)
            node = self._node(next(self._events), depth + 1)
            if key in items:
                self._problem(inner, f"duplicate key; the first is in line {keys[key][0]}", "remove one")
                continue
            items[key], keys[key] = node, _place(inner)
        return _collection(event, items, list(items.values()), keys)

    def _key(self, event: Event) -> str:
        if not isinstance(event, ScalarEvent) or event.tag is not None:
            self._fail(event, "a key must be plain text", "quote a value that starts with {, [, *, & or !")
        if event.value == "<<" and event.implicit[0]:
            self._fail(event, "YAML merge keys (`<<`) aren't supported", "write the fields out")
        self._text(event)
        return str(event.value)

    def _scalar(self, event: ScalarEvent) -> Scalar:
        text = self._text(event)
        if not event.implicit[0]:  # quoted, or a block
            return text
        value, flaw = plain_value(text)
        if flaw is not None:
            self._problem(event, f"unquoted, this {flaw[0]}", flaw[1])
        return value

    def _text(self, event: ScalarEvent) -> str:
        text = str(event.value)
        if unusable(text):  # from an escape such as "\0" or "\ud800"
            self._fail(event, "holds a NUL or half a surrogate pair", "remove the escape")
        return text

    def _check(self, event: Event, depth: int, size: int) -> None:
        self._size += size
        if depth > DEPTH_LIMIT:
            self._fail(event, f"nested deeper than {DEPTH_LIMIT} levels", "check brackets and indentation")
        if self._size > SIZE_LIMIT:
            self._fail(event, f"more than {SIZE_LIMIT:,} values (aliases counted in full)")

    def _problem(self, event: Event, cause: str, hint: str) -> None:
        line, column = _place(event)
        self.problems.append(
            self._source.error(ManifestSyntaxError, cause, hint=hint, line=line, column=column)
        )

    def _fail(self, event: Event, cause: str, hint: str | None = None) -> NoReturn:
        line, column = _place(event)
        raise self._source.error(ManifestSyntaxError, cause, hint=hint, line=line, column=column)


def _place(event: Event) -> tuple[int, int]:
    mark: Any = event.start_mark  # the stubs allow None, for hand-made events
    return (mark.line + 1, mark.column + 1)


def _collection(
    event: Event,
    value: tuple[Node, ...] | dict[str, Node],
    children: Sequence[Node],
    keys: Mapping[str, tuple[int, int]],
) -> Node:
    line, column = _place(event)
    return Node(
        value=value,
        line=line,
        column=column,
        keys=keys,
        size=1 + sum(child.size for child in children),
        height=1 + max((child.height for child in children), default=0),
    )
