"""One deployment's tree, and errors that point into the file that it comes from."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_manager.errors import ManifestFieldError
from vllm_manager.manifest.explain import describe
from vllm_manager.manifest.local_files import absolute
from vllm_manager.manifest.source import FieldPath, Source, dotted
from vllm_manager.manifest.yaml_nodes import Node

_SHORT = 4  # characters; a shorter value is found in ordinary words


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a file says of one deployment.

    Attributes:
        source: The file's text.
        root: A mapping: the deployment's fields and those of its ``defaults:``, each with its own place.
        shared: The places (line, column) that belong to ``defaults:``.
    """

    source: Source
    root: Node
    shared: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)

    def data(self) -> dict[str, Any]:
        """The fields as dicts, lists and scalars."""
        data: dict[str, Any] = _data(self.root)
        return data

    def error(
        self, path: FieldPath, cause: str, hint: str | None = None, *, at_key: bool = False
    ) -> ManifestFieldError:
        """An error at that field's value (or key), or at the innermost mapping that is there.

        A value that came from an environment variable isn't quoted, whatever ``cause`` and ``hint`` say.
        """
        node, line, column = self._find(path, at_key=at_key)
        base = Path(self.source.path).absolute().parent
        name = f"defaults.{dotted(path)}" if (line, column) in self.shared else dotted(path)
        return self.source.error(
            ManifestFieldError,
            _concealed(cause, node, base, instead="the value of {}"),
            hint=None if hint is None else _concealed(hint, node, base, instead="{}"),
            line=line,
            column=column,
            field=name,
        )

    def _find(self, path: FieldPath, *, at_key: bool) -> tuple[Node, int, int]:
        node, line, column = self.root, self.root.line, self.root.column
        for depth, part in enumerate(path, start=1):
            if isinstance(node.value, dict) and part in node.value:
                place_of_key = node.keys[str(part)]
                node = node.value[str(part)]
                line, column = place_of_key if at_key and depth == len(path) else (node.line, node.column)
            elif isinstance(node.value, tuple) and isinstance(part, int) and 0 <= part < len(node.value):
                node = node.value[part]
                line, column = node.line, node.column
            else:
                break
        return node, line, column


def _data(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _data(item) for key, item in node.value.items()}
    if isinstance(node.value, tuple):
        return [_data(item) for item in node.value]
    return node.value


def _concealed(text: str, node: Node, base: Path, *, instead: str) -> str:
    # The text of an error at ``node``, with ``instead`` for a value that came from a variable; {} in it is
    # what the file says there.
    value = node.value
    if node.written is None or isinstance(value, (dict, tuple)):
        return text
    if value is None:
        return text.replace("got nothing", f"got nothing from {node.written}")
    forms = {describe(value), str(value), json.dumps(value)}
    if isinstance(value, str):
        forms.add(absolute(value, base))
    elif not isinstance(value, bool):
        forms.add(f"{value:,}")
    found = False
    for form in sorted(forms - {""}, key=len, reverse=True):
        short = len(form) < _SHORT
        whole = rf"(?<!\w){re.escape(form)}(?!\w)" if short or not isinstance(value, str) else re.escape(form)
        matches = list(re.finditer(whole, text))
        if short:  # not in quotes, it is the last of its kind: "must be more than 0, got 0"
            matches = [] if found else matches[-1:]
        for match in reversed(matches):
            text = text[: match.start()] + instead.format(node.written) + text[match.end() :]
        found = found or bool(matches)
    return text
