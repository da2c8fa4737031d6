"""Where a deployment's model and its tokenizer lie on this machine, if they do; nothing is fetched."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_manager.manifest.model import Deployment
from vllm_manager.weights.cache import commit_of, default_cache_dir, snapshot
from vllm_manager.weights.wanted import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What is on the disk.

    Attributes:
        model: The directory with config.json, or None.
        tokenizer: The directory with tokenizer.json, or None.
        cache_dir: The hub's cache, where adapters are looked for too.
    """

    model: Path | None = None
    tokenizer: Path | None = None
    cache_dir: str = ""

    def adapter(self, place: str) -> Path | None:
        """The directory of a LoRA adapter, by its path or its id, or None."""
        return directory(place, None, self.cache_dir)


def find(deployment: Deployment, environment: Mapping[str, str]) -> ModelFiles:
    """The directories of a deployment's model and tokenizer."""
    cache_dir = default_cache_dir({**environment, **deployment.env})
    args = deployment.args
    model = directory(deployment.model, deployment.revision, cache_dir)
    revision = _text(args.get("tokenizer-revision"))
    if isinstance(name := args.get("tokenizer"), str):
        tokenizer = directory(name, revision, cache_dir)
    elif revision is not None:
        tokenizer = directory(deployment.model, revision, cache_dir)
    else:
        tokenizer = model
    return ModelFiles(model=model, tokenizer=tokenizer, cache_dir=cache_dir)


def directory(name: str, revision: str | None, cache_dir: str) -> Path | None:
    """A local directory, or the hub's snapshot that the revision meant last; None where there is none."""
    if name.startswith("/"):
        found: Path | None = Path(name)
    elif "://" in name or ":" in name:
        return None
    else:
        need = Need(repository=name, revision=revision or "main", cache_dir=cache_dir)
        commit = commit_of(need)
        found = snapshot(need, commit) if commit else None
    return found if found is not None and found.is_dir() else None


def read_json(path: Path) -> Mapping[str, Any] | None:
    """The object in a file, or None where it can't be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
