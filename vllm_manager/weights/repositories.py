"""Which repositories of the Hugging Face hub a deployment needs. Pure."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vllm_manager.manifest.model import Deployment
from vllm_manager.weights.cache import default_cache_dir, expanded
from vllm_manager.weights.wanted import Need, Part

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def needs(deployment: Deployment, environment: Mapping[str, str]) -> tuple[Need, ...]:
    """What must be on the disk before the deployment's engine starts, each once.

    Args:
        deployment: Whose model, tokenizer, LoRA adapters and draft model are looked at; local paths and
            URLs need nothing.
        environment: What ``command.inherited`` kept; the deployment's ``env`` wins over it.
    """
    environment = {**environment, **deployment.env}
    if environment.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        return ()  # another hub, which vLLM itself asks
    return tuple(dict.fromkeys(_needs(deployment, environment)))


def need_of(name: str, environment: Mapping[str, str]) -> Need:
    """What a model's name on the command line stands for: ``id``, ``id:quant`` or either with ``@revision``.

    Raises:
        ValueError: It is none of them.
    """
    name, _, revision = name.partition("@")
    repository, quant = _split(name)
    if repository is None:
        raise ValueError(f"{name!r} is no name of a repository")
    cache = default_cache_dir(environment)
    return Need(repository=repository, quant=quant, revision=revision or "main", cache_dir=cache)


def _needs(deployment: Deployment, environment: Mapping[str, str]) -> Iterator[Need]:
    args = {name.replace("_", "-"): value for name, value in deployment.args.items()}
    cache = default_cache_dir(environment)
    load_format = str(args.get("load-format") or "auto").lower()
    ignore = args.get("ignore-patterns")
    options: dict[str, Any] = {"load_format": load_format}
    if ignore is not None:
        options["ignore"] = tuple(map(str, ignore)) if isinstance(ignore, list) else (str(ignore),)

    def model(name: Any, revision: Any) -> Iterator[Need]:
        repository, quant = _split(name)
        if repository is None:
            return
        where: dict[str, Any] = {"repository": repository, "revision": str(revision or "main")}
        directory = args.get("download-dir")
        if directory is None:
            yield Need(**where, cache_dir=cache, quant=quant, **options)
            return
        # vLLM puts weights there, and all else into the hub's own cache.
        yield Need(**where, cache_dir=cache, part=Part.PLAIN)
        path = expanded(str(directory), environment)
        need = Need(**where, cache_dir=path, part=Part.WEIGHTS, quant=quant, **options)
        # A path in a container, or below the instance's private directory, is out of our sight.
        if need.weights and path.startswith("/") and deployment.engine.launcher == "process":
            yield need

    yield from model(deployment.model, deployment.revision)
    for flag, revision in (("tokenizer", "tokenizer-revision"), ("hf-config-path", "")):
        repository, _ = _split(args.get(flag))
        if repository is not None:
            wanted_revision = str(args.get(revision) or "main")
            yield Need(repository=repository, revision=wanted_revision, cache_dir=cache, part=Part.PLAIN)
    draft = _mapping(args.get("speculative-config"))
    yield from model(draft.get("model"), draft.get("revision"))
    for place in deployment.lora_modules.values():
        repository, _ = _split(place)
        if repository is not None:
            yield Need(repository=repository, cache_dir=cache, part=Part.ALL)


def _mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _split(name: Any) -> tuple[str | None, str | None]:
    # `ngram` and its like are methods of speculation, which vLLM takes for models too; no repository has
    # such a name without an owner.
    if not isinstance(name, str) or name in ("ngram", "[ngram]", "ngram_gpu", "suffix"):
        return None, None
    repository, _, quant = name.partition(":")
    if not _ID.fullmatch(repository) or "//" in quant:
        return None, None
    return repository, quant or None
