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

_RELATIVE = "the path is relative to the manifest"
_OR_AN_ID = f"{_RELATIVE}; a Hugging Face id has no ./ at its start"

# Flags under `args` whose value is a path, and those where a path is one of several things. The files of TLS
# and of parsers are looked at before a start (``preflight``); vLLM makes the download directory.
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
_DIRECTORIES = frozenset({"allowed-local-media-path", "generation-config"})


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
                cause=f"there is no such file: {data['chat_template']}",
                hint=f"{_RELATIVE}; a template in place contains {{",
            )
    modules = data.get("lora_modules")
    if isinstance(modules, dict):
        yield from _resolve_adapters(modules, base)
    if isinstance(args := data.get("args"), dict):
        yield from _resolve_flags(args, base)
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


def _resolve_flags(args: dict[str, Any], base: Path) -> Iterator[Problem]:
    for name, value in args.items():
        flag, field = normal(name), ("args", name)
        if flag == "speculative-config" and isinstance(value, dict):
            yield from _resolve_draft(value, "model", (*field, "model"), base)
        elif flag == "speculative-config.model":
            yield from _resolve_draft(args, name, field, base)
        elif not isinstance(value, str) or not value.strip():
            continue
        elif flag in _PATHS or (flag in _PATHS_OR_NAMES and value.startswith(_LOCAL)):
            args[name] = absolute(value, base)
            yield from _flag_problem(flag, field, args[name])
        elif flag in _PATHS_OR_NAMES and "/" in value and os.path.isdir(base / value):
            yield _ambiguous(field, value)


def _resolve_draft(owner: dict[str, Any], key: str, field: tuple[str, ...], base: Path) -> Iterator[Problem]:
    model = owner.get(key)
    if isinstance(model, str) and model.startswith(_LOCAL):
        owner[key] = absolute(model, base)
        yield from _directory_problem(field, owner[key], _CONFIGS, "model")


def _flag_problem(flag: str, field: tuple[str, ...], path: str) -> Iterator[Problem]:
    if flag == "hf-config-path":
        yield from _directory_problem(field, path, _CONFIGS, "model")
    elif flag == "tokenizer" and not os.path.exists(path):
        yield Problem(path=field, cause=f"there is no such directory: {path}", hint=_OR_AN_ID)
    elif flag in _DIRECTORIES and not os.path.isdir(path):
        yield Problem(path=field, cause=f"there is no such directory: {path}", hint=_RELATIVE)
    elif flag == "log-config-file" and not os.path.isfile(path):
        yield Problem(path=field, cause=f"there is no such file: {path}", hint=_RELATIVE)


def _ambiguous(field: tuple[str, ...], place: str) -> Problem:
    return Problem(
        path=field,
        cause="is a directory beside this file as well as a possible Hugging Face id",
        hint=f"write ./{place} for the directory, or rename it",
    )


def _directory_problem(
    field: tuple[str, ...], path: str, configs: tuple[str, ...], what: str
) -> Iterator[Problem]:
    try:
        mode = os.stat(path).st_mode
        found = [name for name in configs if os.path.exists(os.path.join(path, name))]
    except FileNotFoundError:
        yield Problem(path=field, cause=f"there is no such directory: {path}", hint=_OR_AN_ID)
    except OSError as error:
        yield Problem(path=field, cause=f"{path} can't be read: {error.strerror}", hint=_OR_AN_ID)
    else:
        if not stat.S_ISDIR(mode):
            yield Problem(path=field, cause=f"{path} isn't a directory", hint=f"name the {what}'s directory")
        elif not found:
            yield Problem(
                path=field,
                cause=f"{path} has no {configs[0]}, so it is no {what} that vLLM could load",
                hint=f"name the directory that holds the {what}'s {configs[0]} and its weights",
            )
