"""The files that a manifest names: made absolute, relative to it, and looked at."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_manager.manifest.explain import Problem
from vllm_manager.manifest.flags import normal

# Hugging Face's and Mistral's formats.
_CONFIGS = ("config.json", "params.json")
# PEFT's; vLLM reads no other.
_ADAPTER = ("adapter_config.json",)

_LOCAL = (".", "/", "~")

# Flags under `args` whose value is a path, and those where a path is one of several things.
_PATHS = frozenset(
    {
        "allowed-local-media-path",
        "download-dir",
        "log-config-file",
        "reasoning-parser-plugin",
        "ssl-certfile",
        "ssl-keyfile",
        "tool-parser-plugin",
    }
)
_PATHS_OR_NAMES = frozenset({"generation-config", "hf-config-path", "tokenizer"})


def resolve(data: dict[str, Any], base: Path) -> Iterator[Problem]:
    """Make the paths in a manifest's data absolute, in place; yield what is wrong with them.

    Args:
        data: As read from the YAML; values of other types than they should have are left alone.
        base: The manifest's directory.
    """
    model = data.get("model")
    if isinstance(model, str) and model.startswith(_LOCAL):
        data["model"] = absolute(model, base)
        yield from _directory_problem(("model",), data["model"], _CONFIGS, "model")
    elif isinstance(model, str) and "/" in model and os.path.isdir(base / model):
        yield _ambiguous(("model",), model)
    template = data.get("chat_template")
    if isinstance(template, str) and template.strip() and "{" not in template:
        data["chat_template"] = absolute(template, base)
        if not os.path.isfile(data["chat_template"]):
            yield Problem(
                path=("chat_template",),
                cause=f"there is no file {data['chat_template']}",
                hint="the path is relative to the manifest; a template in place contains {",
            )
    modules = data.get("lora_modules")
    if isinstance(modules, dict):
        yield from _resolve_adapters(modules, base)
    if isinstance(args := data.get("args"), dict):
        _resolve_flags(args, base)
    for owner, name in (("engine", "python"), ("api_key", "file")):
        section = data.get(owner)
        if isinstance(section, dict) and isinstance(section.get(name), str) and section[name].strip():
            section[name] = absolute(section[name], base)


def absolute(path: str, base: Path) -> str:
    """The path from ``base``, with ``~`` expanded; links are kept, since an environment's python is one."""
    return os.path.normpath(base / os.path.expanduser(path))


def _resolve_adapters(modules: dict[str, Any], base: Path) -> Iterator[Problem]:
    for name, place in modules.items():
        field = ("lora_modules", name)
        if isinstance(place, str) and place.startswith(_LOCAL):
            modules[name] = absolute(place, base)
            yield from _directory_problem(field, modules[name], _ADAPTER, "adapter")
        elif isinstance(place, str) and "/" in place and os.path.isdir(base / place):
            yield _ambiguous(field, place)


def _resolve_flags(args: dict[str, Any], base: Path) -> None:
    for name, value in args.items():
        if not isinstance(value, str) or not value.strip():
            continue
        flag = normal(name)
        if flag in _PATHS or (flag in _PATHS_OR_NAMES and value.startswith(_LOCAL)):
            args[name] = absolute(value, base)


def _ambiguous(field: tuple[str, ...], place: str) -> Problem:
    return Problem(
        path=field,
        cause="is a directory beside this file as well as a possible Hugging Face id",
        hint=f"write ./{place} for the directory, or rename it",
    )


def _directory_problem(
    field: tuple[str, ...], path: str, configs: tuple[str, ...], what: str
) -> Iterator[Problem]:
    hint = "the path is relative to the manifest; a Hugging Face id has no ./ at its start"
    try:
        mode = os.stat(path).st_mode
        found = [name for name in configs if os.path.exists(os.path.join(path, name))]
    except FileNotFoundError:
        yield Problem(path=field, cause=f"there is no directory {path}", hint=hint)
    except OSError as error:
        yield Problem(path=field, cause=f"{path} can't be read: {error.strerror}", hint=hint)
    else:
        if not stat.S_ISDIR(mode):
            yield Problem(path=field, cause=f"{path} isn't a directory", hint=f"name the {what}'s directory")
        elif not found:
            yield Problem(
                path=field,
                cause=f"{path} has no {configs[0]}, so it is no {what} that vLLM could load",
                hint=f"name the directory that holds the {what}'s {configs[0]} and its weights",
            )
