from dataclasses import replace

import pytest

from tests.vllm_flags import vllm_0_32
from vllm_manager.flag_check import problems
from vllm_manager.manifest.model import Deployment

FLAGS = vllm_0_32()


def deployment(**fields):
    return Deployment.from_json({"name": "tiny", "model": "org/tiny", "gpus": {"count": 0}} | fields)


def found(flags=FLAGS, **fields):
    return problems(deployment(**fields), flags)


def only(**fields):
    [problem] = found(**fields)
    return problem


@pytest.mark.parametrize(
    "args",
    [
        {"max-num-seqs": 256},
        {"max-num-seqs": "256"},
        {"max_num_seqs": 256},
        {"max-num-batched-tokens": "16K"},
        {"max-num-batched-tokens": "25.6k"},
        {"kv-cache-memory-bytes": 1073741824},
        {"enforce-eager": True},
        {"enable-prefix-caching": False},
        {"no-enable-prefix-caching": True},
        {"disable-log-stats": True},
        {"cpu-offload-gb": 4},
        {"cpu-offload-gb": 0.5},
        {"seed": -1},
        {"kv-cache-dtype": "fp8"},
        {"load-format": "dummy"},
        {"load-format": "Dummy"},
        {"load-format": "my_loader"},
        {"moe-backend": "Deep-Gemm"},
        {"compilation-config": {"mode": 3}},
        {"compilation-config": '{"mode": 3}'},
        {"kv-transfer-config": '{"cpu_bytes_to_use": 80m}'},
        {"compilation-config.mode": 3, "compilation-config.cudagraph_mode": "NONE"},
        {"cc.mode": 3},
        {"hf-overrides": {"num_labels": 1}},
        {"hf-overrides.num_labels": 1},
        {"allowed-origins": ["*"]},
        {"allowed-origins": '["*"]'},
        {"cudagraph-capture-sizes": [1, 2, 4]},
        {"cudagraph-capture-sizes": 8},
        {"ignore-patterns": ["*.bin", "*.pt"]},
        {"middleware": ["a.b", "c.d"]},
        {"max-lora-rank": 64},
        {"asc": 2, "dpb": "mp"},
        {"fingerprint-value": 12},
        {"ssl-keyfile": "/k", "ssl-certfile": "/c", "enable-ssl-refresh": True},
    ],
)
def test_what_vllm_takes_passes(args):
    assert found(args=args) == []


@pytest.mark.parametrize(
    ("args", "cause", "hint"),
    [
        ({"max-num-seq": 1}, "vLLM 0.32.0 has no flag --max-num-seq", "did you mean max-num-seqs?"),
        ({"max_num_sequences": 1}, "has no flag --max-num-sequences", "did you mean max-num-seqs?"),
        ({"enable-prefix-cach": True}, "no flag --enable-prefix-cach", "did you mean enable-prefix-caching?"),
        ({"frobnicate": 1}, "no flag --frobnicate", "vllm serve --help=all"),
        ({"task": "embed"}, "no flag --task", "runner: pooling"),
        ({"disable-log-requests": True}, "no flag", "enable-log-requests: true"),
        ({"swap-space": 4}, "no flag", "remove it"),
        ({"device": "cpu"}, "no flag", "gpus: none"),
        ({"guided-decoding-backend": "xgrammar"}, "no flag", "structured-outputs-config.backend"),
        ({"no-disable-log-stats": True}, "can't negate --disable-log-stats", "off unless it is set"),
        ({"no-max-num-seqs": True}, "has no --no-max-num-seqs", "--max-num-seqs takes a value"),
    ],
)
def test_an_unknown_flag_is_named_with_a_way_out(args, cause, hint):
    problem = only(args=args)
    assert problem.path == ("args", next(iter(args)).replace("_", "-"))
    assert problem.at_key
    assert cause in problem.cause
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("args", "cause", "hint"),
    [
        ({"max-num-seqs": "many"}, 'expected a whole number, got "many"', None),
        ({"max-num-seqs": 1.5}, "expected a whole number, got 1.5", None),
        ({"max-num-seqs": 256.0}, "expected a whole number, got 256.0", "write 256"),
        ({"max-num-seqs": "1e3"}, "expected a whole number", "write 1000"),
        ({"max-num-seqs": True}, "expected a whole number, got true", None),
        ({"max-num-seqs": [1, 2]}, "takes one value, got a list", "write one value"),
        ({"max-num-seqs": {"a": 1}}, "expected a whole number, got a mapping", None),
        ({"max-num-seqs": None}, "has no value", "remove it"),
        ({"cpu-offload-gb": "lots"}, 'expected a number, got "lots"', None),
        ({"cpu-offload-gb": "nan"}, "expected a number", None),
        ({"max-num-batched-tokens": "16X"}, "such as 8192 or 16K", None),
        ({"max-num-batched-tokens": "1.5K"}, "such as 8192 or 16K", None),
        ({"max-num-batched-tokens": "auto"}, "such as 8192 or 16K", None),
        ({"enforce-eager": "true"}, 'expected true or false, got "true"', "without quotes"),
        ({"enforce-eager": 1}, "expected true or false, got 1", None),
        ({"disable-log-stats": False}, "can't be negated", "off unless it is set"),
        ({"no-enable-prefix-caching": False}, "negates twice", "enable-prefix-caching: true"),
        ({"load-format": True}, "expected text, got true", 'quote it: "true"'),
        ({"load-format": {"a": 1}}, "expected text, got a mapping", None),
        ({"load-format": ["a"]}, "takes one value, got a list", None),
        ({"kv-cache-dtype": "fp7"}, 'can\'t be "fp7"', "did you mean fp8?"),
        ({"max-lora-rank": 48}, "can't be 48", "there is 1, 8, 16, 32, 64, 128, 256, 320, 512"),
        ({"moe-backend": "tritn"}, 'can\'t be "tritn"', "did you mean triton?"),
        ({"compilation-config": "{mode: 3}"}, "is no JSON", "write it as a mapping"),
        ({"compilation-config": 3}, "expected a mapping or a list, got 3", None),
        ({"compilation-config.mode": None}, "has no value", None),
        ({"max-num-seqs.x": 3}, "takes one value, no keys", "write `max-num-seqs:`"),
        ({"cudagraph-capture-sizes": "1,2,4"}, "expected a whole number", "write a list: [1, 2, 4]"),
        ({"cudagraph-capture-sizes": [1, "x"]}, 'expected a whole number, got "x"', None),
        ({"cudagraph-capture-sizes": []}, "is an empty list", None),
        ({"cudagraph-capture-sizes": [1, None]}, "has no value", None),
        ({"ignore-patterns": ["-x"]}, "would be taken for a flag", None),
    ],
)
def test_a_value_that_vllm_would_refuse_is_named(args, cause, hint):
    problem = only(args=args)
    assert problem.path == ("args", next(iter(args)))
    assert cause in problem.cause
    assert hint in (problem.hint or "") if hint else True


@pytest.mark.parametrize("alias", ["tp", "pp", "dp"])
def test_a_fields_alias_is_refused_by_the_manifest_already(alias):
    with pytest.raises(Exception, match="has a field of its own"):
        deployment(args={alias: 2})


@pytest.mark.parametrize(
    ("alias", "flag", "hint"),
    [
        ("dpn", "data-parallel-rank", "this machine alone"),
        ("pcp", "prefill-context-parallel-size", "how many GPUs"),
    ],
)
def test_an_alias_that_only_the_engine_knows_counts_as_the_flag(alias, flag, hint):
    problem = only(args={alias: 2})
    assert f"is vLLM's --{flag}" in problem.cause
    assert hint in problem.hint
    assert problem.at_key


@pytest.mark.parametrize(
    "args",
    [
        {"asc": 2, "api-server-count": 2},
        {"enable-prefix-caching": True, "no-enable-prefix-caching": True},
        {"compilation-config": {"mode": 3}, "compilation-config.mode": 2},
        {"compilation-config.mode": 2, "compilation-config": {"mode": 3}},
        {"compilation-config.mode": 2, "cc.mode": 3},
    ],
)
def test_one_flag_set_twice_is_refused_since_vllm_takes_the_last(args):
    problem = only(args=args)
    first, second = args
    assert problem.path == ("args", second)
    assert problem.cause == f"sets the same flag as {first}"


@pytest.mark.parametrize(
    ("fields", "cause", "hint"),
    [
        ({"dtype": "float17"}, 'can\'t be "float17"', "did you mean float1"),
        ({"tool_call_parser": "herms"}, 'has no tool parser "herms"', "did you mean hermes?"),
        ({"tool_call_parser": "zzz"}, "has no tool parser", "there is hermes, llama3_json"),
        ({"reasoning_parser": "qwen"}, 'has no reasoning parser "qwen"', "did you mean qwen3?"),
    ],
)
def test_fields_are_checked_too(fields, cause, hint):
    problem = only(**fields)
    assert problem.path == tuple(fields)
    assert cause in problem.cause
    assert hint in problem.hint


def test_a_plugin_may_bring_any_parser():
    fields = {"tool_call_parser": "mine", "reasoning_parser": "mine"}
    assert len(found(**fields)) == 2
    plugins = {"tool-parser-plugin": "/p.py", "reasoning-parser-plugin": "/p.py"}
    assert found(**fields, args=plugins) == []


def test_parsers_that_could_not_be_read_are_not_checked():
    unknown = replace(FLAGS, tool_parsers=None, reasoning_parsers=None)
    assert found(unknown, tool_call_parser="x", reasoning_parser="y") == []


def test_a_field_whose_flag_the_engine_lacks_is_named():
    older = replace(FLAGS, flags=tuple(flag for flag in FLAGS.flags if flag.name != "convert"))
    [problem] = found(older, convert="embed")
    assert problem.path == ("convert",)
    assert problem.cause == "vLLM 0.32.0 has no --convert"
    assert found(older) == []


def test_max_model_len_takes_auto_only_where_the_engine_does():
    plain = replace(
        FLAGS, flags=tuple(replace(f, kind="int") if f.name == "max-model-len" else f for f in FLAGS.flags)
    )
    assert found(max_model_len="auto") == []
    assert "expected a whole number" in found(plain, max_model_len="auto")[0].cause


def test_every_problem_is_found_in_one_pass():
    assert len(found(dtype="x", args={"max-num-seqs": "a", "nope": 1, "kv-cache-dtype": "b"})) == 4


@pytest.mark.parametrize(
    ("fields", "path", "cause", "hint"),
    [
        ({"args": {"load-format": "dumy"}}, ("args", "load-format"), 'no load-format "dumy"', "dummy"),
        ({"args": {"load_format": "Safetensor"}}, ("args", "load-format"), '"Safetensor"', "safetensors"),
        ({"quantization": "gptq_marlim"}, ("quantization",), "no quantization", "gptq_marlin"),
        ({"quantization": "AWQ"}, ("quantization",), 'no quantization "AWQ"', "awq"),
    ],
)
def test_a_value_that_is_nearly_one_of_vllms_own_is_a_typo(fields, path, cause, hint):
    problem = only(**fields)
    assert problem.path == path
    assert cause in problem.cause
    assert problem.hint == f"did you mean {hint}?"


def test_a_value_that_a_plugin_may_bring_passes():
    assert found(quantization="my_fp8", args={"load-format": "s3"}) == []
    assert found(replace(FLAGS, known_values={}), args={"load-format": "dumy"}) == []


def test_numbers_to_choose_from_are_listed():
    problem = only(args={"max-lora-rank": 17})
    assert problem.hint.startswith("there is 1, 8, 16, 32")
    assert "did you mean" not in problem.hint
