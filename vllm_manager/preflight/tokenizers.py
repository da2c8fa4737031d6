"""Whether the chosen parsers can work with the model's tokenizer.

A parser that looks for a token which the tokenizer doesn't have raises, and vLLM makes the parsers only once
the weights are loaded. Said only where it is certain: the tokenizer is on the disk, the token nowhere in it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from vllm_manager.manifest.explain import Problem
from vllm_manager.manifest.model import Deployment
from vllm_manager.preflight.model_files import ModelFiles, read_json
from vllm_manager.types import EngineFlags

_HINT = "this parser is for other models; leave it out, or choose the one for this model"


def problems(deployment: Deployment, files: ModelFiles, flags: EngineFlags) -> Iterator[Problem]:
    """The parsers that wouldn't start with this tokenizer."""
    args = deployment.args
    usual = args.get("tokenizer-mode", "auto") in ("auto", "hf", "slow")
    if (
        files.tokenizer is None
        or not usual
        or args.get("skip-tokenizer-init")
        or deployment.runner == "pooling"
    ):
        return
    wanted = [("reasoning_parser", deployment.reasoning_parser, flags.reasoning_parser_tokens)]
    if deployment.enable_auto_tool_choice:  # vLLM makes no tool parser otherwise
        wanted.insert(0, ("tool_call_parser", deployment.tool_call_parser, flags.tool_parser_tokens))
    for field, name, tokens in wanted:
        needed = tokens.get(name or "", ())
        missing = [token for token in needed if _lacks(files.tokenizer, token)]
        if missing:
            cause = (
                f"{name} needs {' and '.join(missing)} in the tokenizer of {files.tokenizer}, which lacks "
            )
            cause += "it" if len(missing) == 1 else "them"
            yield Problem(path=(field,), cause=cause, hint=_HINT)


def _lacks(directory: Path, token: str) -> bool:
    """Whether the token is certainly not in the vocabulary, added tokens included."""
    try:
        texts = [(directory / "tokenizer.json").read_text(encoding="utf-8")]
    except (OSError, ValueError):
        return False  # another kind of tokenizer
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).exists():
            values = read_json(directory / name)
            if values is None:
                return False
            # A template mentions tokens without adding them.
            kept = {key: value for key, value in values.items() if key != "chat_template"}
            texts.append(json.dumps(kept, ensure_ascii=False))
    spellings = {json.dumps(token)[1:-1], json.dumps(token, ensure_ascii=False)[1:-1]}
    return not any(spelling in text for text in texts for spelling in spellings)
