"""Several deployments in one file: YAML documents, and ``deployments:`` with ``defaults:``."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace

from vllm_manager.errors import ManifestError, ManifestFieldError, ManifestUnreadable
from vllm_manager.manifest.document import Document
from vllm_manager.manifest.flags import normal
from vllm_manager.manifest.source import Source
from vllm_manager.manifest.variables import Variables
from vllm_manager.manifest.yaml_nodes import SIZE_LIMIT, Node

# Where both have such a field, a deployment and its defaults are merged key by key; a null takes the default
# back, of one key or of the whole field.
MERGED = frozenset(
    {"args", "env", "gpus", "engine", "readiness", "liveness", "restart", "stop", "lora_modules"}
)

# Fields that no two deployments can share.
OWN = ("name", "port")

_HINT = "a manifest starts with `name:` and `model:`, or with `deployments:`"


class Deployments:
    """Finds the deployments of a file's YAML documents. ``problems`` collects what stands in the way."""

    def __init__(self, source: Source, variables: Variables) -> None:
        self.problems: list[ManifestError] = []
        self._source = source
        self._variables = variables
        self._size = 0

    def of(self, tree: Node) -> Iterator[Document]:
        """The deployments of one YAML document, with their variables' values and their defaults."""
        items = tree.value
        if not isinstance(items, dict):
            what = "a list" if isinstance(items, tuple) else "a single value"
            cause = f"holds {what} where the fields of a deployment are expected"
            self._problem((tree.line, tree.column), cause, _HINT, kind=ManifestUnreadable)
        elif items.keys() & {"deployments", "defaults"}:
            yield from self._listed(tree, items)
        elif (key := _misspelt(items)) is not None:
            self._problem(tree.keys[key], "unknown field", "did you mean `deployments`?", field=key)
        else:
            yield Document(source=self._source, root=self._variables.fill(tree))

    def _listed(self, tree: Node, items: dict[str, Node]) -> Iterator[Document]:
        for key in items.keys() - {"deployments", "defaults"}:
            hint = "write it below `defaults:`, or in each deployment"
            self._problem(tree.keys[key], "can't stand beside `deployments:`", hint, field=key)
        defaults = self._defaults(items.get("defaults"))
        entries = items.get("deployments")
        if entries is None:
            hint = "list them below `deployments:`, or write the fields of the one at the top level"
            self._problem(tree.keys["defaults"], "there are no deployments for it", hint, field="defaults")
        elif not isinstance(entries.value, tuple) or not entries.value:
            cause = "is empty" if entries.value == () else "expected a list of deployments"
            self._problem((entries.line, entries.column), cause, "as in `- name: …`", field="deployments")
        else:
            shared = frozenset(_places(defaults))
            for entry in entries.value:
                filled = self._variables.fill(entry)
                if not isinstance(filled.value, dict):
                    cause = "expected the fields of a deployment"
                    place = (entry.line, entry.column)
                    self._problem(place, cause, "as in `- name: …`", field="deployments")
                    continue
                self._size += entry.size + defaults.size
                if self._size > SIZE_LIMIT:
                    cause = f"with their defaults, the deployments hold more than {SIZE_LIMIT:,} values"
                    self._problem((entry.line, entry.column), cause, None, field="deployments")
                    return
                yield Document(source=self._source, root=_merge(defaults, filled), shared=shared)

    def _defaults(self, node: Node | None) -> Node:
        nothing = Node(value={}, line=0, column=0)
        if node is None:
            return nothing
        if not isinstance(node.value, dict):
            self._problem(
                (node.line, node.column), "expected a mapping", "as in `api_key: generate`", "defaults"
            )
            return nothing
        for name in OWN:
            if name in node.value:
                cause, hint = "can't be a default", "each deployment needs its own"
                self._problem(node.keys[name], cause, hint, f"defaults.{name}")
        fields = {name: item for name, item in node.value.items() if name not in OWN}
        known = len(self._variables.problems)
        filled = self._variables.fill(replace(node, value=fields))
        self._variables.problems[known:] = [
            replace(problem, field=f"defaults.{problem.field}")
            for problem in self._variables.problems[known:]
        ]
        return filled

    def _problem(
        self,
        place: tuple[int, int],
        cause: str,
        hint: str | None,
        field: str | None = None,
        kind: type[ManifestError] = ManifestFieldError,
    ) -> None:
        line, column = place
        self.problems.append(
            self._source.error(kind, cause, hint=hint, line=line, column=column, field=field)
        )


def _merge(defaults: Node, own: Node) -> Node:
    fields = _fields(own)
    shared = _fields(defaults)
    for key in fields.keys() & shared.keys() & MERGED:
        if fields[key].value is None:
            del fields[key], shared[key]
        elif isinstance(fields[key].value, dict) and isinstance(shared[key].value, dict):
            fields[key] = _joined(shared[key], fields[key], normal if key == "args" else str)
    return replace(own, value=shared | fields, keys={**defaults.keys, **own.keys})


def _joined(defaults: Node, own: Node, spelling: Callable[[str], str]) -> Node:
    # The mapping stands where the deployment's own does, and every value where it is written.
    shared, fields = _fields(defaults), _fields(own)
    defaulted, taken = {spelling(key) for key in shared}, {spelling(key) for key in fields}
    kept = {key: item for key, item in shared.items() if spelling(key) not in taken}
    said = {
        key: item for key, item in fields.items() if item.value is not None or spelling(key) not in defaulted
    }
    return replace(own, value=kept | said, keys={**defaults.keys, **own.keys})


def _fields(node: Node) -> dict[str, Node]:
    return dict(node.value) if isinstance(node.value, dict) else {}


def _misspelt(items: dict[str, Node]) -> str | None:
    if items.keys() & {"name", "model"}:
        return None
    near = difflib.get_close_matches("deployments", items, n=1, cutoff=0.8)
    return near[0] if near else None


def _places(node: Node) -> Iterator[tuple[int, int]]:
    yield node.line, node.column
    yield from node.keys.values()
    items = node.value if isinstance(node.value, tuple) else _fields(node).values()
    for item in items:
        yield from _places(item)
