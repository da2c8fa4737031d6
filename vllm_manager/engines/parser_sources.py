"""What a vLLM's tool and reasoning parsers are called, and what they need of a tokenizer.

Read out of their sources, since importing them takes 8 s. vLLM itself checks a parser against the tokenizer
only once the weights are loaded (vllm/parser/parser_manager.py, validate_parser_tokenizer).
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Where versions of vLLM keep them, the newest first.
_TOOL_PARSERS = ("tool_parsers", "entrypoints/openai/tool_parsers")
_REASONING_PARSERS = ("reasoning",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsers:
    """The parsers of one kind.

    Attributes:
        names: Sorted.
        tokens: The tokens that a parser must find in the tokenizer, by its name; only where the source tells.
    """

    names: tuple[str, ...]
    tokens: Mapping[str, tuple[str, ...]]


def tool_parsers(package: Path) -> Parsers | None:
    """The tool parsers of the vLLM whose package that is, or None where they can't be read."""
    return _parsers(package, _TOOL_PARSERS)


def reasoning_parsers(package: Path) -> Parsers | None:
    """The reasoning parsers of the vLLM whose package that is, or None where they can't be read."""
    return _parsers(package, _REASONING_PARSERS)


def _parsers(package: Path, places: tuple[str, ...]) -> Parsers | None:
    for place in places:
        tree = _tree(package / place / "__init__.py")
        registered = (
            next((found for node in tree.body if (found := _registered(node))), None) if tree else None
        )
        if registered:
            sources = _Sources(package)
            needs = {
                name: sources.needs(package / place / f"{module}.py", owner)
                for name, (module, owner) in registered.items()
            }
            tokens = {name: needed for name, needed in sorted(needs.items()) if needed}
            return Parsers(names=tuple(sorted(registered)), tokens=tokens)
    return None


def _registered(node: ast.stmt) -> dict[str, tuple[str, str]] | None:
    # _TOOL_PARSERS_TO_REGISTER = {"llama3_json": ("llama_tool_parser", "Llama3JsonToolParser"), …}
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return None
    if not node.targets[0].id.endswith("_PARSERS_TO_REGISTER"):
        return None
    try:
        return {
            str(name): (str(module), str(owner))
            for name, (module, owner) in ast.literal_eval(node.value).items()
        }
    except (ValueError, TypeError, AttributeError):
        return None


def _tree(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


class _Sources:
    """The modules below a package, each parsed once."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._trees: dict[Path, ast.Module | None] = {}

    def needs(self, path: Path, owner: str) -> tuple[str, ...]:
        """The tokens without which that class raises when it is made; none where that can't be told."""
        line = list(self._ancestry(path, owner))
        found: list[str] = []
        for tree, cls in line:
            init = _method(cls, "__init__")
            if init is None:
                continue
            looked_up: dict[str, ast.expr] = {}
            for statement in init.body:
                if isinstance(statement, ast.Assign) and (token := _vocabulary_key(statement.value)):
                    looked_up |= {ast.unparse(target): token for target in statement.targets}
                elif isinstance(statement, ast.If) and any(isinstance(s, ast.Raise) for s in statement.body):
                    for missing in _any_is_none(statement.test):
                        if (token := looked_up.get(missing)) is not None:
                            found += _constant(token, tree, [ancestor for _, ancestor in line])
            if not any("super().__init__" in ast.unparse(statement) for statement in init.body):
                break
        return tuple(dict.fromkeys(found))

    def _ancestry(self, path: Path, owner: str) -> Iterator[tuple[ast.Module, ast.ClassDef]]:
        # Along the first base classes that are vLLM's own; a name that isn't found ends it.
        for _ in range(8):
            if path not in self._trees:
                self._trees[path] = _tree(path)
            tree = self._trees[path]
            if tree is None:
                return
            cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner), None)
            if cls is not None:
                yield tree, cls
                if not cls.bases or not isinstance(cls.bases[0], ast.Name):
                    return
                owner = cls.bases[0].id
                if any(isinstance(n, ast.ClassDef) and n.name == owner for n in tree.body):
                    continue
            place = next((n for n in tree.body if isinstance(n, ast.ImportFrom) and _imports(n, owner)), None)
            if place is None or place.module is None or not (place.level or place.module.startswith("vllm.")):
                return
            parts = place.module.split(".")
            base = path.parents[place.level - 1] if place.level else self._package.parent
            path = base.joinpath(*parts).with_suffix(".py")
            if not path.exists():
                path = path.with_suffix("") / "__init__.py"


def _imports(node: ast.ImportFrom, name: str) -> bool:
    return any(alias.name == name and alias.asname in (None, name) for alias in node.names)


def _method(cls: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _vocabulary_key(value: ast.expr) -> ast.expr | None:
    # self.vocab.get(TOKEN)
    if (
        isinstance(value, ast.Call)
        and len(value.args) == 1
        and isinstance(value.func, ast.Attribute)
        and value.func.attr == "get"
        and ast.unparse(value.func.value) in ("self.vocab", "vocab")
    ):
        return value.args[0]
    return None


def _any_is_none(test: ast.expr) -> Iterator[str]:
    # `a is None or b is None`: each of them is enough.
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        for part in test.values:
            yield from _any_is_none(part)
    elif (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Is)
        and ast.unparse(test.comparators[0]) == "None"
    ):
        yield ast.unparse(test.left)


def _constant(value: ast.expr, tree: ast.Module, line: list[ast.ClassDef]) -> Iterator[str]:
    """The text that an expression stands for, if it is the same for every tokenizer."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.Name):
        yield from _assigned(tree.body, value.id)
    elif isinstance(value, ast.Attribute) and ast.unparse(value.value) == "self":
        for cls in line:  # the most derived first
            init = _method(cls, "__init__")
            getter = _method(cls, value.attr)
            found = [
                *_assigned(init.body if init else [], f"self.{value.attr}"),
                *_assigned(cls.body, value.attr),
            ]
            if (
                getter is not None
                and isinstance(last := getter.body[-1], ast.Return)
                and last.value is not None
            ):
                found += _constant(last.value, tree, [])
            if found or getter is not None:
                yield from found
                return


def _assigned(body: list[ast.stmt], name: str) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        if any(ast.unparse(target) == name for target in targets) and isinstance(
            statement.value, ast.Constant
        ):
            yield str(statement.value.value)
