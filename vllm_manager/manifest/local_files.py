"""The files that a manifest names: made absolute, relative to it, and looked at."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_manager.manifest.explain import Problem

# Hugging Face's and Mistral's formats.
_CONFIGS = ("config.json", "params.json")


def resolve(data: dict[str, Any], base: Path) -> Iterator[Problem]:
    """Make the paths in a manifest's data absolute, in place; yield what is wrong with them.

    Args:
        data: As read from the YAML; values of other types than they should have are left alone.
        base: The manifest's directory.
    """
    model = data.get("model")
    if isinstance(model, str) and model.startswith((".", "/", "~")):
        data["model"] = absolute(model, base)
        yield from _model_problem(data["model"])
    elif isinstance(model, str) and "/" in model and os.path.isdir(base / model):
        yield Problem(
            path=("model",),
            cause="is a directory beside this file as well as a possible Hugging Face id",
            hint=f"write ./{model} for the directory, or rename it",
        )
    template = data.get("chat_template")
    if isinstance(template, str) and template.strip() and "{" not in template:
        data["chat_template"] = absolute(template, base)
        if not os.path.isfile(data["chat_template"]):
            yield Problem(
                path=("chat_template",),
                cause=f"there is no file {data['chat_template']}",
                hint="the path is relative to the manifest; a template in place contains {",
            )
    for owner, name in (("engine", "python"), ("api_key", "file")):
        section = data.get(owner)
        if isinstance(section, dict) and isinstance(section.get(name), str) and section[name].strip():
            section[name] = absolute(section[name], base)


def absolute(path: str, base: Path) -> str:
    """The path from ``base``, with ``~`` expanded; links are kept, since an environment's python is one."""
    return os.path.normpath(base / os.path.expanduser(path))


def _model_problem(path: str) -> Iterator[Problem]:
    field = ("model",)
    hint = "the path is relative to the manifest; a Hugging Face id has no ./ at its start"
    try:
        mode = os.stat(path).st_mode
        found = [name for name in _CONFIGS if os.path.exists(os.path.join(path, name))]
    except FileNotFoundError:
        yield Problem(path=field, cause=f"there is no directory {path}", hint=hint)
    except OSError as error:
        yield Problem(path=field, cause=f"{path} can't be read: {error.strerror}", hint=hint)
    else:
        if not stat.S_ISDIR(mode):
            yield Problem(path=field, cause=f"{path} isn't a directory", hint="name the model's directory")
        elif not found:
            yield Problem(
                path=field,
                cause=f"{path} has no config.json, so it is no model that vLLM could load",
                hint="name the directory that holds the model's config.json and its weights",
            )
