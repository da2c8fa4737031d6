"""The values that a vLLM has of itself for flags whose parser takes any text, since plugins may add values.

Read out of its sources, since importing them takes 8 s.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

# Where vLLM 0.30 to 0.32 lists them, as ``NAME = Literal["a", "b"]``.
_PLACES = {
    "load-format": ("model_executor/model_loader/__init__.py", "LoadFormats"),
    "quantization": ("model_executor/layers/quantization/__init__.py", "QuantizationMethods"),
}


def known_values(package: Path) -> Mapping[str, tuple[str, ...]]:
    """The values by the flag's name, for the vLLM whose package that is; only flags that could be read."""
    found = {flag: _literal(package / path, name) for flag, (path, name) in _PLACES.items()}
    return {flag: values for flag, values in found.items() if values}


def _literal(path: Path, name: str) -> tuple[str, ...]:
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return ()
    for node in body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == name
            and isinstance(node.value, ast.Subscript)
            and ast.unparse(node.value.value) == "Literal"
        ):
            listed = node.value.slice
            values = listed.elts if isinstance(listed, ast.Tuple) else [listed]
            return tuple(str(value.value) for value in values if isinstance(value, ast.Constant))
    return ()
