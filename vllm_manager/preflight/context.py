"""Whether the model has room for the context that a deployment asks for.

vLLM derives a model's limit from its config.json (config/model.py, _get_and_verify_max_len, 0.32) with many
special cases. Said only where none applies: a text model whose max_position_embeddings is the limit.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_manager.manifest.explain import Problem
from vllm_manager.manifest.model import Deployment
from vllm_manager.preflight.model_files import ModelFiles, read_json

_LONGER = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
# What may make another limit of it: flags, by their names' beginnings, and keys of config.json.
_OVERRIDES = ("hf-overrides", "hf-config-path", "config-format", "model-class-overrides")
_SPECIAL = frozenset({"auto_map", "model_max_length", "rope_scaling", "text_config"})
# Since transformers 5, rope_parameters holds what is in every model, and rope_scaling's keys with it.
_PLAIN_ROPE = frozenset({"rope_theta", "rope_type", "partial_rotary_factor"})


def problems(deployment: Deployment, environment: Mapping[str, str], files: ModelFiles) -> Iterator[Problem]:
    """Why the context is certainly too long."""
    asked = deployment.max_model_len
    limit = _limit(files)
    overridden = deployment.runner == "pooling" or any(
        name.startswith(_OVERRIDES) for name in deployment.args
    )
    if not isinstance(asked, int) or limit is None or asked <= limit or overridden:
        return
    if {**environment, **deployment.env}.get(_LONGER, "0").strip().lower() in ("1", "true"):
        return
    yield Problem(
        path=("max_model_len",),
        cause=f"is {asked}, and the model's longest context is {limit}",
        hint=f"write `max_model_len: {limit}` or less; where the model is known to take more, "
        f'`env: {{{_LONGER}: "1"}}`',
    )


def _limit(files: ModelFiles) -> int | None:
    config = read_json(files.model / "config.json") if files.model else None
    if files.model is None or config is None or (files.model / "params.json").exists():
        return None
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return None
    if not all(str(name).endswith("ForCausalLM") for name in architectures):
        return None
    if any(config.get(key) for key in _SPECIAL) or not _is_plain(config.get("rope_parameters")):
        return None
    if any(files.model.glob("sentence_*_config.json")):
        return None
    limit = config.get("max_position_embeddings")
    return limit if isinstance(limit, int) and limit > 0 else None


def _is_plain(rope: Any) -> bool:
    if rope is None:
        return True
    return (
        isinstance(rope, dict) and rope.keys() <= _PLAIN_ROPE and rope.get("rope_type") in (None, "default")
    )
