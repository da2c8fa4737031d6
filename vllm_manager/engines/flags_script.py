"""Prints, as one line of JSON, what an engine's `vllm serve` understands.

Runs in the engine's own interpreter (Python 3.8 or later), not in the manager; the standard library and that
vLLM are all it uses. It takes about 8 s, nearly all of them for vLLM's imports.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from typing import Any

# Where versions of vLLM keep them, the newest first.
_PARSERS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
_PARSER_CLASSES = ("vllm.utils.argparse_utils", "vllm.utils")
_KINDS = {
    "int": "int",
    "float": "float",
    "str": "str",
    "loads": "json",
    "parse_dataclass": "json",
    "human_readable_int": "tokens",
    "human_readable_int_or_auto": "tokens-or-auto",
}


def first(modules: tuple[str, ...], name: str) -> Any:
    """The first attribute of that name in any of the modules."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):  # something that the module needs is missing
                raise
        except AttributeError:
            pass
    raise ImportError(f"this vLLM has no {name} in {' or '.join(modules)}")


def settle_platform() -> None:
    """Let a build for GPUs stand in a machine without one.

    Some defaults of the parser hold a device, which can't be inferred there (config/device.py); the parser is
    the same whatever it is.
    """
    try:
        platforms = importlib.import_module("vllm.platforms")
    except ModuleNotFoundError:
        return
    if not getattr(platforms.current_platform, "device_type", ""):
        platforms._current_platform = importlib.import_module("vllm.platforms.cpu").CpuPlatform()  # type: ignore[attr-defined]


def kind_of(action: Any) -> str:
    """What a value of that option is; ``other`` where it can't be told."""
    if action.nargs == 0:
        return "bool" if type(action.const) is bool or is_negatable(action) else "other"
    if action.nargs == "?":
        return "other"
    convert = action.type
    while getattr(convert, "__name__", "") in ("_optional_type", "_parse_type"):
        convert = next(cell.cell_contents for cell in convert.__closure__ if callable(cell.cell_contents))
    return _KINDS.get(getattr(convert, "__name__", "str" if convert is None else ""), "other")


def is_negatable(action: Any) -> bool:
    """Whether each of its names has a ``--no-`` twin."""
    return type(action).__name__ == "BooleanOptionalAction"


def described(action: Any) -> dict[str, Any] | None:
    """One option, or None for what isn't one."""
    options = list(action.option_strings)
    if is_negatable(action):
        options = [option for option in options if not option.startswith("--no-")]
    if not options or type(action).__name__ == "_HelpAction":
        return None
    names = [option.lstrip("-").replace("_", "-") for option in options]
    name = next((n for n in names if f"--{n}" in options), names[0])
    return {
        "name": name,
        "aliases": sorted(set(names) - {name}),
        "kind": kind_of(action),
        "negatable": is_negatable(action),
        "many": action.nargs in ("+", "*") or (isinstance(action.nargs, int) and action.nargs > 1),
        "repeats": type(action).__name__ == "_AppendAction",
        "choices": [str(choice) for choice in action.choices or () if choice is not None],
    }


def witnesses(*modules: str) -> list[str]:
    """Files and directories that change when the environment does."""
    package = importlib.import_module("vllm")
    paths = [str(importlib.metadata.distribution("vllm").locate_file(""))]
    for kind in ("tool_parsers", "reasoning"):
        directory = os.path.join(next(iter(package.__path__)), kind)
        paths += [directory, os.path.join(directory, "__init__.py")]
    paths += [getattr(sys.modules.get(module), "__file__", None) or "" for module in modules]
    return sorted({os.path.abspath(path) for path in paths if path and os.path.exists(path)})


def main() -> None:
    """Print the answer; vLLM's own words on stdout go to stderr."""
    answer = os.dup(1)
    os.dup2(2, 1)
    settle_platform()
    make = first(_PARSERS, "make_arg_parser")
    parser = make(first(_PARSER_CLASSES, "FlexibleArgumentParser")(prog="vllm serve"))
    package = importlib.import_module("vllm")
    result = {
        "version": importlib.metadata.version("vllm"),
        "package": os.path.abspath(next(iter(package.__path__))),
        "flags": [flag for flag in map(described, parser._actions) if flag],
        "witnesses": witnesses("vllm", make.__module__, "vllm.engine.arg_utils"),
    }
    with os.fdopen(answer, "w", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
        file.flush()
        # Whatever vLLM's imports started (threads, exit handlers) isn't waited for.
        os._exit(0)


if __name__ == "__main__":
    main()
