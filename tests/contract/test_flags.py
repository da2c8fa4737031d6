"""That the flags read from the real vLLM are what they are taken for, and that the fake's agree with them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_engine import make_fake_engine
from vllm_instances import required_engine

from tests.vllm_flags import FILE
from vllm_manager.codec import decode
from vllm_manager.command import arguments
from vllm_manager.engines.introspect import engine_flags
from vllm_manager.flag_check import problems
from vllm_manager.manifest.model import Deployment
from vllm_manager.types import Engine, EngineFlags, Flag, Placement

pytestmark = pytest.mark.vllm

# Runs in the engine: lines of words in, what vLLM's parser makes of them out.
PARSE = """
import dataclasses, json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

def parsed(words, place):
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    try:
        value = parser.parse_args(words)
    except SystemExit:
        return "refused"
    for key in place.split("."):
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return value

answers = [parsed(words, place) for words, place in json.load(sys.stdin)]

def plain(value):
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)

print("ANSWER" + json.dumps(answers, default=plain))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return required_engine()


def flags_of(python: Path, directory: Path) -> EngineFlags:
    said: list[str] = []
    engine = Engine(name="e", executable=str(python.with_name("vllm")))
    flags = engine_flags(engine, directory, report=said.append)
    assert flags is not None, said
    return flags


@pytest.fixture(scope="module")
def real(python: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineFlags:
    return flags_of(python, tmp_path_factory.mktemp("flags"))


def test_they_are_those_that_the_unit_tests_go_by(real: EngineFlags):
    if not real.version.startswith("0.32."):
        pytest.skip(f"the file holds the flags of 0.32, this engine is {real.version}")
    recorded = [decode(Flag, flag) for flag in json.loads(FILE.read_text())]
    assert {flag.name: flag for flag in real.flags} == {flag.name: flag for flag in recorded}


def test_parsers_are_found_with_the_tokens_that_they_insist_on(real: EngineFlags):
    assert {"hermes", "llama3_json", "mistral", "qwen3_coder"} <= set(real.tool_parsers)
    assert {"deepseek_r1", "qwen3"} <= set(real.reasoning_parsers)
    assert real.tool_parser_tokens["llama3_json"] == ("<|python_tag|>",)
    assert real.reasoning_parser_tokens["deepseek_r1"] == ("<think>", "</think>")
    assert "hermes" not in real.tool_parser_tokens


def test_the_values_that_plugins_may_add_to_are_read(real: EngineFlags):
    assert {"auto", "dummy", "safetensors"} <= set(real.known_values["load-format"])
    assert {"awq", "fp8", "gptq"} <= set(real.known_values["quantization"])


def test_the_fakes_flags_are_the_real_ones(real: EngineFlags, tmp_path: Path):
    known = {flag.name: flag for flag in real.flags}
    fake = flags_of(make_fake_engine(tmp_path / "fake"), tmp_path)
    for flag in fake.flags:
        like = known[flag.name]
        assert (flag.kind, flag.negatable, flag.many, flag.repeats, flag.aliases) == (
            like.kind, like.negatable, like.many, like.repeats, like.aliases,
        ), flag.name  # fmt: skip
        assert set(flag.choices) in (set(), set(like.choices)), flag.name
    assert set(fake.tool_parsers) <= set(real.tool_parsers)
    assert set(fake.reasoning_parsers) <= set(real.reasoning_parsers)


CASES: list[tuple[dict[str, Any], str, Any]] = [
    ({"max-num-seqs": 256}, "max_num_seqs", 256),
    ({"max_num_batched_tokens": "16K"}, "max_num_batched_tokens", 16384),
    ({"kv-cache-memory-bytes": 1 << 40}, "kv_cache_memory_bytes", 1 << 40),
    ({"seed": -1}, "seed", -1),
    ({"cpu-offload-gb": 1e-7}, "cpu_offload_gb", 1e-7),
    ({"enforce-eager": True}, "enforce_eager", True),
    ({"enable-prefix-caching": False}, "enable_prefix_caching", False),
    ({"no-enable-prefix-caching": True}, "enable_prefix_caching", False),
    ({"disable-log-stats": True}, "disable_log_stats", True),
    ({"asc": 2}, "api_server_count", 2),
    ({"ep": True}, "enable_expert_parallel", True),
    ({"compilation-config": {"mode": 3}}, "compilation_config.mode", 3),
    ({"cc.mode": 2, "cc.splitting_ops": ["a"]}, "compilation_config.splitting_ops", ["a"]),
    ({"cc.backend": "16K"}, "compilation_config.backend", "16K"),
    ({"cc.debug_dump_path": "3"}, "compilation_config.debug_dump_path", "3"),
    ({"compilation-config.splitting_ops+": ["a", "b"]}, "compilation_config.splitting_ops", ["a", "b"]),
    ({"cudagraph-capture-sizes": [1, 2, 4]}, "cudagraph_capture_sizes", [1, 2, 4]),
    ({"allowed-origins": ["*", "http://x"]}, "allowed_origins", ["*", "http://x"]),
    ({"middleware": ["a.b", "c.d"]}, "middleware", ["a.b", "c.d"]),
    ({"ignore-patterns": ["*.bin", "x y"]}, "ignore_patterns", ["*.bin", "x y"]),
    ({"hf-overrides": {"num_labels": 1}}, "hf_overrides.num_labels", 1),
    ({"hf-overrides.num_labels": 1}, "hf_overrides.num_labels", 1),
    ({"limit-mm-per-prompt": {"image": 2}}, "limit_mm_per_prompt.image", 2),
    ({"override-generation-config": {"temperature": 0.5}}, "override_generation_config.temperature", 0.5),
    ({"speculative-config": {"method": "ngram", "n": -0.5}}, "speculative_config.n", -0.5),
    ({"generation-config": "-dashed"}, "generation_config", "-dashed"),
    ({"generation-config": "-0.5"}, "generation_config", "-0.5"),
    ({"max-lora-rank": 64}, "max_lora_rank", 64),
    ({"moe-backend": "Triton"}, "moe_backend", "triton"),
    ({"load-format": "dummy"}, "load_format", "dummy"),
    ({"ssl-keyfile": "/k", "ssl-certfile": "/c"}, "ssl_certfile", "/c"),
]  # fmt: skip
FIELDS: list[tuple[dict[str, Any], str, Any]] = [
    ({"dtype": "half"}, "dtype", "half"),
    ({"quantization": "fp8"}, "quantization", "fp8"),
    ({"runner": "pooling", "convert": "embed"}, "convert", "embed"),
    ({"revision": "v1"}, "revision", "v1"),
    ({"max_model_len": "auto"}, "max_model_len", -1),
    ({"max_model_len": "16K"}, "max_model_len", 16384),
    ({"served_model_name": ["a", "b"]}, "served_model_name", ["a", "b"]),
    ({"lora_modules": {"a": "/p/q=1", "b": "org/b"}}, "lora_modules", [("a", "/p/q=1"), ("b", "org/b")]),
    ({"chat_template": "{{ '-' }}"}, "chat_template", "{{ '-' }}"),
    ({"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}, "tool_call_parser", "hermes"),
]
WRONG: list[dict[str, Any]] = [
    {"max-num-seq": 1.5},
    {"max-num-seqs": "many"},
    {"max-num-batched-tokens": "auto"},
    {"max-num-batched-tokens": "1.5K"},
    {"max-lora-rank": 48},
    {"kv-cache-dtype": "fp7"},
    {"moe-backend": "tritn"},
    {"compilation-config": "{mode: 3}"},
    {"cudagraph-capture-sizes": "1,2"},
    {"no-disable-log-stats": True},
    {"task": "embed"},
    {"device": "cpu"},
    {"max-num-seqs.x": 3},
    {"ignore-patterns": ["-x"]},
]


def test_what_is_rendered_means_the_same_to_the_real_parser(python: Path, real: EngineFlags):
    cases = [({"args": args}, place, value) for args, place, value in CASES] + FIELDS
    cases += [({"args": args}, "model_tag", "refused") for args in WRONG]
    asked = []
    for fields, place, wanted in cases:
        deployment = Deployment.from_json({"name": "t", "model": "o/t", "gpus": {"count": 0}} | fields)
        assert bool(problems(deployment, real)) == (wanted == "refused"), fields
        # Without the word `serve`, which is a subcommand of the whole program.
        asked.append((arguments(deployment, Placement(), 8000, real)[1:], place))
    done = subprocess.run(
        [python, "-c", PARSE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "VLLM_NO_USAGE_STATS": "1"},
        timeout=100,
    )
    assert "ANSWER" in done.stdout, done.stderr[-2000:]
    answers = json.loads(done.stdout.partition("ANSWER")[2])
    for (fields, place, wanted), answer in zip(cases, answers, strict=True):
        got = [(a["name"], a["path"]) for a in answer] if place == "lora_modules" else answer
        assert got == wanted, (fields, place)
