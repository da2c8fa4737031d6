"""Environment variables in manifests: ``${NAME}``, ``${NAME:-default}`` and ``{env: NAME}``."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace

from vllm_manager.errors import ManifestFieldError
from vllm_manager.manifest.source import SIZE_LIMIT, FieldPath, Source, dotted
from vllm_manager.manifest.yaml_nodes import Node, plain_value, unusable

_REFERENCE = re.compile(
    r"\$(?P<escaped>\$\{) | \$\{ (?P<name>[A-Za-z_][A-Za-z0-9_]*) (?: :- (?P<default>[^}]*) )? \} | \$\{",
    re.VERBOSE,
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# Mappings whose keys are free (`env:` may well hold a variable called `env`), and the one that `up` resolves.
_NO_REFERENCE = frozenset({(), ("args",), ("env",), ("lora_modules",), ("api_key",)})


class Variables:
    """Puts the values of environment variables into trees.

    A value is put in once: what looks like a variable in it stays as it is. ``problems`` collects what is
    wrong, such as a variable that isn't set; the tree holds the text as written at such places.
    """

    def __init__(self, source: Source, environ: Mapping[str, str]) -> None:
        self.problems: list[ManifestFieldError] = []
        self._source = source
        self._environ = environ
        self._room = SIZE_LIMIT

    def fill(self, node: Node, path: FieldPath = ()) -> Node:
        """The tree with its variables' values. ``path`` is the field within a deployment."""
        if isinstance(node.value, dict):
            if "env" in node.value and node.value.keys() <= {"env", "default"} and path not in _NO_REFERENCE:
                return self._reference(node, node.value, path)
            items = {key: self.fill(item, (*path, key)) for key, item in node.value.items()}
            return replace(node, value=items)
        if isinstance(node.value, tuple):
            return replace(
                node, value=tuple(self.fill(item, (*path, number)) for number, item in enumerate(node.value))
            )
        return self._text(node, node.value, path) if isinstance(node.value, str) else node

    def _reference(self, node: Node, items: Mapping[str, Node], path: FieldPath) -> Node:
        name = items["env"].value
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            hint = "as in {env: NAME}, or {env: NAME, default: value}"
            self._problem(node, (*path, "env"), "is no name of an environment variable", hint)
            return replace(node, value=None, keys={})
        default = items.get("default")
        value = self._environ.get(name)
        if default is not None and not value:
            return self.fill(default, path)
        if value is None:
            self._unset(node, path, name, f"{{env: {name}, default: …}}")
            return replace(node, value=f"${{{name}}}", keys={})
        return self._value(replace(node, keys={}, plain=True), path, value, f"${{{name}}}")

    def _text(self, node: Node, text: str, path: FieldPath) -> Node:
        parts: list[str] = []
        end, concealed = 0, False
        for match in _REFERENCE.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            name, default = match["name"], match["default"]
            value = self._environ.get(name) if name else None
            if match["escaped"]:
                parts.append("${")
            elif not name:
                hint = "write ${NAME} or ${NAME:-default}, and $${ for the text ${ itself"
                self._problem(node, path, "holds a ${ that begins no variable", hint)
                return node
            elif value or (value is not None and default is None):
                parts.append(value)
                concealed = True
            elif default is not None:
                parts.append(default)
            else:
                self._unset(node, path, name, f"${{{name}:-default}}")
                return node
        if not end:
            return node
        return self._value(node, path, "".join([*parts, text[end:]]), text if concealed else None)

    def _value(self, node: Node, path: FieldPath, text: str, written: str | None) -> Node:
        self._room -= len(text)
        subject = "this" if written is None else f"the value of {written}"
        if self._room < 0:
            self._problem(node, path, "with the values of variables, the file is larger than 1 MiB", None)
            return node
        if unusable(text):
            hint = "give the variable another value"
            self._problem(node, path, f"{subject} holds a NUL or bytes that are no UTF-8", hint)
            return node
        value, flaw = plain_value(text) if node.plain else (text, None)
        if flaw is not None:
            self._problem(node, path, f"unquoted, {subject} {flaw[0]}", flaw[1])
        return replace(node, value=value, written=written)

    def _unset(self, node: Node, path: FieldPath, name: str, remedy: str) -> None:
        hint = f"export {name}=… first, or write {remedy}"
        if near := difflib.get_close_matches(name, self._environ, n=1, cutoff=0.75):
            hint = f"did you mean {near[0]}? Otherwise {hint}"
        self._problem(node, path, f"the environment variable {name} is not set", hint)

    def _problem(self, node: Node, path: FieldPath, cause: str, hint: str | None) -> None:
        self.problems.append(
            self._source.error(
                ManifestFieldError, cause, hint=hint, line=node.line, column=node.column, field=dotted(path)
            )
        )
