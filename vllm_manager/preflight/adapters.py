"""The LoRA adapters of a deployment, which vLLM opens only after the weights (lora/, 0.32)."""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_manager.manifest.explain import Problem
from vllm_manager.manifest.model import Deployment
from vllm_manager.preflight.model_files import ModelFiles, read_json
from vllm_manager.types import EngineFlags

# vLLM's default (config/lora.py).
_MAX_RANK = 16
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_HEADER_LIMIT = 64 << 20  # bytes; a header names some thousand tensors
# Their input is the model's hidden state, so that is their width.
_ATTENTION = re.compile(r"\.layers\.\d+\.self_attn\.[qkv]_proj\.lora_A\.weight")
_OTHER_PARTS = re.compile(r"vision|visual|audio|encoder")


def problems(deployment: Deployment, files: ModelFiles, flags: EngineFlags | None) -> Iterator[Problem]:
    """Why vLLM would refuse them."""
    if not deployment.lora_modules:
        return
    args = deployment.args
    for name, off in (("enable-lora", False), ("no-enable-lora", True)):
        if args.get(name) is off:
            cause, hint = "turns LoRA off, and lora_modules needs it", "remove it"
            yield Problem(path=("args", name), cause=cause, hint=hint, at_key=True)
    given = args.get("max-lora-rank")
    limit = int(str(given)) if re.fullmatch(r"\d+", str(given)) else _MAX_RANK
    for name, place in deployment.lora_modules.items():
        path = files.adapter(place)
        config = read_json(path / "adapter_config.json") if path else None
        if path is None or config is None:
            continue
        for cause, advice in _of_adapter(path, config, limit, files.model, flags):
            yield Problem(path=("lora_modules", name), cause=cause, hint=advice)


def _of_adapter(
    path: Path, config: Mapping[str, Any], limit: int, model: Path | None, flags: EngineFlags | None
) -> Iterator[tuple[str, str | None]]:
    rank, sizes = _rank(config), _sizes(flags)
    if rank > limit:
        fitting = next((size for size in sizes if size >= rank), None if sizes else rank)
        hint = (
            f"write `max-lora-rank: {fitting}` under `args:`" if fitting else f"vLLM serves up to {sizes[-1]}"
        )
        yield f"has rank {rank}, and --max-lora-rank is {limit}", hint
    if not any((path / name).is_file() for name in _WEIGHTS):
        yield f"{path} holds no {_WEIGHTS[0]}", "name the directory with the adapter's weights"
        return
    width, hidden = _width(path / _WEIGHTS[0]), _hidden_size(model)
    if width is not None and hidden is not None and width != hidden:
        base = config.get("base_model_name_or_path") or "another model"
        yield (
            f"was made for {base}, {width} values wide; this model has {hidden}",
            "use an adapter of this model",
        )


def _rank(config: Mapping[str, Any]) -> int:
    # PEFTHelper: the largest of r and of the patterns for single layers.
    patterns = config.get("rank_pattern")
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, Mapping) else ())]
    return max((rank for rank in ranks if isinstance(rank, int)), default=0)


def _sizes(flags: EngineFlags | None) -> list[int]:
    choices = (flag.choices for flag in flags.flags if flag.name == "max-lora-rank") if flags else ()
    return sorted(int(choice) for some in choices for choice in some if choice.isdigit())


def _hidden_size(model: Path | None) -> int | None:
    config = read_json(model / "config.json") if model else None
    size = config.get("hidden_size") if config else None
    return size if isinstance(size, int) else None


def _width(weights: Path) -> int | None:
    """The width of the model that an adapter was made for, where its tensors tell."""
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= _HEADER_LIMIT else {}
        widths = {
            entry["shape"][1]
            for name, entry in header.items()
            if _ATTENTION.search(name) and not _OTHER_PARTS.search(name)
        }
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        struct.error,
        RecursionError,
    ):
        return None
    return widths.pop() if len(widths) == 1 else None
