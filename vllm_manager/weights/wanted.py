"""Which files of a repository vLLM reads. Pure.

The choice is vLLM's own (0.32), so that its start finds nothing left to download:

- the weights as in ``_prepare_weights`` (vllm/model_executor/model_loader/default_loader.py) and
  ``download_weights_from_hf`` (weight_utils.py beside it): the shards that the index of the safetensors
  names, else all files of the first kind that the top of the repository has;
- everything else as in ``get_non_weight_snapshot_path`` (vllm/transformers_utils/repo_utils.py): the files
  that match none of its patterns of weights and media, wherever they lie;
- a LoRA adapter whole, as in ``get_adapter_absolute_path`` (vllm/lora/utils.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

SAFETENSORS_INDEX = "model.safetensors.index.json"

# _WEIGHT_FILE_PATTERNS in vLLM's transformers_utils/repo_utils.py (0.32).
_NOT_PLAIN = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx"),
    *("*.onnx_data", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp", "*.mp3", "*.mp4", "*.wav", "*.flac"),
    *("*.parquet", "*.arrow", "*.ipynb", "*.zip", "*.tar*"),
)
_HF = ("*.safetensors", "*.bin", "*.pt")
_MISTRAL = ("consolidated*.safetensors",)
_BY_FORMAT = {
    "hf": _HF,
    "mistral": _MISTRAL,
    "pt": ("*.pt",),
    "npcache": ("*.bin", "*.pt"),
    "safetensors": ("*.safetensors",),
    "fastsafetensors": ("*.safetensors",),
    "instanttensor": ("*.safetensors",),
    "runai_streamer": ("*.safetensors",),
    "runai_streamer_sharded": ("*.safetensors",),
    "sharded_state": ("*.safetensors",),
}
# Their weights are random, or come from somewhere else than the repository.
_WITHOUT_WEIGHTS = frozenset({"dummy", "tensorizer", "ipc_cache"})


class Part(StrEnum):
    """How much of a repository is needed."""

    MODEL = "model"  # the weights and everything plain
    WEIGHTS = "weights"  # the weights and all JSON: what vLLM puts into its --download-dir
    PLAIN = "plain"  # everything but weights and media: configuration, tokenizer, code
    ALL = "all"  # every file


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Files of one repository that an engine will read.

    Attributes:
        repository: Its id, such as ``meta-llama/Llama-3.1-8B-Instruct``.
        cache_dir: The hub cache that they belong into, absolute.
        revision: A branch, tag or commit.
        part: Which of its files.
        load_format: vLLM's ``--load-format``.
        quant: Of a GGUF model that is named ``repository:quant``, else None.
        ignore: vLLM's ``--ignore-patterns``.
    """

    repository: str
    cache_dir: str
    revision: str = "main"
    part: Part = Part.MODEL
    load_format: str = "auto"
    quant: str | None = None
    ignore: tuple[str, ...] = ("original/**/*",)

    @property
    def weights(self) -> bool:
        """Whether weights are among them."""
        return self.part in (Part.MODEL, Part.WEIGHTS) and self.load_format not in _WITHOUT_WEIGHTS


def index_file(paths: Iterable[str], need: Need) -> str | None:
    """The file that tells which safetensors are needed, where the repository has one and vLLM reads it."""
    if not need.weights or need.quant or "*.safetensors" not in patterns(paths, need):
        return None
    return SAFETENSORS_INDEX if SAFETENSORS_INDEX in paths else None


def patterns(paths: Iterable[str], need: Need) -> tuple[str, ...]:
    """The kinds of weights that vLLM looks for, the best first."""
    if need.quant:  # as vLLM's GGUF loader, which is a plugin in 0.32
        return tuple(f"*{before}{need.quant}{after}.gguf" for before in "-." for after in ("", "-*"))
    consolidated = any(fnmatchcase(PurePosixPath(path).name, _MISTRAL[0]) for path in paths)
    return _BY_FORMAT.get(need.load_format, _MISTRAL if consolidated else _HF)


def weights(paths: Sequence[str], need: Need, shards: Iterable[str] = ()) -> tuple[str, ...]:
    """The files with weights; empty where the repository has none that vLLM would load.

    Args:
        paths: All files of the repository.
        need: What is needed of it.
        shards: The files that ``index_file`` names, where there is one.
    """
    if not need.weights:
        return ()
    if named := frozenset(shards):
        return tuple(path for path in paths if path in named)
    wanted = patterns(paths, need)
    kept = [path for path in paths if not any(fnmatchcase(path, pattern) for pattern in need.ignore)]
    if not need.quant:
        # The first kind at the top of the repository; its like further below is fetched with it.
        top = (p for p in wanted if any("/" not in path and fnmatchcase(path, p) for path in kept))
        wanted = tuple(top)[:1] or wanted
    return tuple(path for path in kept if any(fnmatchcase(path, pattern) for pattern in wanted))


def wanted(paths: Sequence[str], need: Need, shards: Iterable[str] = ()) -> tuple[str, ...]:
    """The files to fetch, the small kinds first; arguments as for ``weights``."""
    if need.part is Part.ALL:
        return tuple(paths)
    if need.part is Part.WEIGHTS:
        first = [path for path in paths if path.endswith(".json")]
    else:
        first = [path for path in paths if not any(fnmatchcase(path, pattern) for pattern in _NOT_PLAIN)]
    return tuple(dict.fromkeys((*first, *weights(paths, need, shards))))
