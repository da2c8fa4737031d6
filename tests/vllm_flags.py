"""The flags of vLLM 0.32.0 as its parser has them; tests/contract holds the file to the real one."""

import json
from pathlib import Path

from vllm_manager.codec import decode
from vllm_manager.types import EngineFlags

FILE = Path(__file__).parent / "data" / "vllm-0.32-flags.json"


def vllm_0_32() -> EngineFlags:
    """What `engine_flags` gives for vLLM 0.32.0, with a few of its parsers, formats and quantizations."""
    return decode(
        EngineFlags,
        {
            "version": "0.32.0",
            "flags": json.loads(FILE.read_text()),
            "tool_parsers": ["hermes", "llama3_json", "mistral", "qwen3_coder"],
            "reasoning_parsers": ["deepseek_r1", "qwen3"],
            "tool_parser_tokens": {"llama3_json": ["<|python_tag|>"]},
            "reasoning_parser_tokens": {"deepseek_r1": ["<think>", "</think>"]},
            "known_values": {
                "load-format": ["auto", "dummy", "safetensors"],
                "quantization": ["awq", "fp8", "gptq_marlin"],
            },
        },
    )
