"""What the model of the fake vLLM is for, as vLLM 0.32 decides it from flags and configuration."""

import argparse
import json
import os
import re
from typing import Any

# vllm/config/model.py, get_pooling_task
PRIORITY = ("embed&token_classify", "embed", "classify", "token_embed", "token_classify", "plugin")
DIMENSIONS = 64
# transformers' default
LABELS = 2


class Model:
    """The tasks of one model.

    Attributes:
        supported: As vLLM logs them.
        pooling: The one that its pooler does, or None where it generates or transcribes.
        labels: How many classes it tells apart.
        has_template: Whether it can chat.
    """

    def __init__(self, args: argparse.Namespace, config: dict[str, Any]) -> None:
        config = config | _object(args.hf_overrides)
        architecture = (config.get("architectures") or ["LlamaForCausalLM"])[0]
        self.labels = config.get("num_labels") or len(config.get("id2label") or ()) or LABELS
        self.supported = _supported(args, architecture)
        wanted = _object(args.pooler_config).get("task")
        found = [task for task in PRIORITY if task in self.supported]
        self.pooling: str | None = wanted or (found[0] if found else None)
        self.has_template = bool(args.chat_template) or _has_template(args.tokenizer or args.model)

    @property
    def scores(self) -> bool:
        """Whether it has the routes for score and rerank (vllm/entrypoints/pooling/utils.py)."""
        return self.pooling in ("embed", "token_embed") or (self.pooling == "classify" and self.labels == 1)

    def vector(self) -> list[float]:
        """An embedding of length 1."""
        return [DIMENSIONS**-0.5] * DIMENSIONS

    def probabilities(self) -> list[float]:
        """Of each class; of a single one as a sigmoid has it."""
        return [0.5] if self.labels == 1 else [1 / self.labels] * self.labels

    def pooled(self, tokens: int) -> list[Any]:
        """What /pooling tells of a text of so many tokens."""
        row = self.vector() if self.pooling in ("embed", "token_embed") else self.probabilities()
        return [row] * tokens if str(self.pooling).startswith("token_") else row

    def score(self, query: str, text: str) -> float:
        """The share of the query's words that the text has."""
        words = set(re.findall(r"\w+", query.lower()))
        return len(words & set(re.findall(r"\w+", text.lower()))) / max(1, len(words))


def _supported(args: argparse.Namespace, architecture: str) -> list[str]:
    if architecture.startswith("Whisper"):
        return ["transcription"]
    if architecture.endswith("ForTokenClassification"):
        return ["token_classify"]
    pools = architecture.endswith(("ForSequenceClassification", "Model"))
    if args.runner != "pooling" and not (pools and args.runner == "auto"):
        return ["generate"]
    if args.convert == "classify" or architecture.endswith("ForSequenceClassification"):
        return ["token_classify", "classify"]
    return ["token_embed", "embed"]


def _has_template(tokenizer: str) -> bool:
    if not tokenizer.startswith("/"):
        return True
    if os.path.exists(os.path.join(tokenizer, "chat_template.jinja")):
        return True
    try:
        with open(os.path.join(tokenizer, "tokenizer_config.json"), encoding="utf-8") as file:
            return bool(json.load(file).get("chat_template"))
    except FileNotFoundError:
        return True


def _object(value: Any) -> dict[str, Any]:
    """A JSON flag's value; nothing where it isn't given, or only in part (dotted)."""
    return value if isinstance(value, dict) else {}
