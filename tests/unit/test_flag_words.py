"""That what is rendered parses back, with parsers built from the engine's description of its flags."""

import argparse
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vllm_flags import vllm_0_32
from vllm_manager.flag_check import problems
from vllm_manager.flag_words import FlagIndex, words
from vllm_manager.manifest.model import Deployment

FLAGS = vllm_0_32()
INDEX = FlagIndex(FLAGS)


def rendered(name, value, index=INDEX):
    return list(words(name, value, index.find(name) if index else None))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max-num-seqs", 256, ["--max-num-seqs", "256"]),
        ("max_num_seqs", 256, ["--max-num-seqs", "256"]),
        ("asc", 2, ["--api-server-count", "2"]),
        ("seed", -1, ["--seed=-1"]),
        ("cpu-offload-gb", 1e-7, ["--cpu-offload-gb", "0.0000001"]),
        ("cpu-offload-gb", 1e22, ["--cpu-offload-gb", "10000000000000000000000"]),
        ("cpu-offload-gb", -0.5, ["--cpu-offload-gb=-0.5"]),
        ("enforce-eager", True, ["--enforce-eager"]),
        ("enforce-eager", False, ["--no-enforce-eager"]),
        ("no-enforce-eager", True, ["--no-enforce-eager"]),
        ("no-enforce-eager", False, ["--enforce-eager"]),
        ("disable-log-stats", True, ["--disable-log-stats"]),
        ("disable-log-stats", False, []),
        ("load-format", None, []),
        ("cudagraph-capture-sizes", [1, 2], ["--cudagraph-capture-sizes", "1", "2"]),
        ("cudagraph-capture-sizes", 8, ["--cudagraph-capture-sizes", "8"]),
        ("middleware", ["a", "b"], ["--middleware", "a", "--middleware", "b"]),
        ("allowed-origins", ["*"], ["--allowed-origins", '["*"]']),
        ("allowed-origins", '["*"]', ["--allowed-origins", '["*"]']),
        ("cc", {"mode": 3, "on": True}, ["--compilation-config", '{"mode": 3, "on": true}']),
        ("cc.mode", 3, ["--compilation-config.mode", "3"]),
        ("cc.pass_config.x", True, ["--compilation-config.pass_config.x", "true"]),
        ("cc.backend", "eager", ["--compilation-config.backend", "eager"]),
        ("cc.backend", "16K", ["--compilation-config.backend", '"16K"']),
        ("cc.backend", "3", ["--compilation-config.backend", '"3"']),
        ("cc.sizes+", [1, 2], ["--compilation-config.sizes+", "1,2"]),
        ("cc.sizes", [1, 2], ["--compilation-config.sizes", "[1, 2]"]),
        ("hf-overrides", {"num_labels": 1}, ["--hf-overrides", '{"num_labels": 1}']),
    ],
)
def test_a_flag_is_written_as_its_engine_reads_it(name, value, expected):
    assert rendered(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("x_y", True, ["--x-y"]),
        ("x", False, ["--no-x"]),
        ("x", [1, "a", {"k": 1}], ["--x", "1", "a", '{"k": 1}']),
        ("x", {"k": 1}, ["--x", '{"k": 1}']),
        ("x.y", True, ["--x.y", "true"]),
        ("x", "-v", ["--x=-v"]),
    ],
)
def test_without_the_engines_flags_most_are_written_right(name, value, expected):
    assert rendered(name, value, index=None) == expected


def parser_of(flag):
    """An argparse parser with that flag, as vLLM would make it."""
    types = {"int": int, "float": float, "json": json.loads, "tokens": int}
    parser = argparse.ArgumentParser(allow_abbrev=False)
    option = f"--{flag.name}"
    if flag.kind == "bool" and flag.negatable:
        parser.add_argument(option, dest="x", action=argparse.BooleanOptionalAction)
    elif flag.kind == "bool":
        parser.add_argument(option, dest="x", action="store_true", default=None)
    elif flag.repeats:
        parser.add_argument(option, dest="x", action="append")
    else:
        nargs = "+" if flag.many else None
        choices = [types.get(flag.kind, str)(choice) for choice in flag.choices] or None
        parser.add_argument(option, dest="x", nargs=nargs, type=types.get(flag.kind, str), choices=choices)
    return parser


# Lists can't hold what looks like a flag, which flag_check says.
_text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1)
_word = _text.filter(lambda text: not text.startswith("-"))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)


def values_of(flag):
    if flag.kind == "bool":
        return st.booleans() if flag.negatable else st.just(True)
    if flag.kind == "json":
        return st.dictionaries(_text, _json, max_size=3) | st.lists(_json, max_size=3)
    if flag.choices:
        one = st.sampled_from([int(c) if flag.kind == "int" else c for c in flag.choices])
    else:
        one = {
            "int": st.integers(min_value=0 if flag.many else None),
            "float": st.floats(allow_nan=False, allow_infinity=False),
            "tokens": st.integers(min_value=0),
            "str": _word if flag.many else _text,
        }[flag.kind]
    return st.lists(one, min_size=1, max_size=4) if flag.many or flag.repeats else one


SAMPLE = [f for f in FLAGS.flags if f.kind in ("bool", "int", "float", "str", "json", "tokens")][::7]
SAMPLE += [f for f in FLAGS.flags if f.repeats or f.many or f.kind == "float"]


@given(data=st.data())
def test_what_is_written_parses_back_to_the_same_value(data):
    flag = data.draw(st.sampled_from(SAMPLE))
    value = data.draw(values_of(flag))
    parsed = parser_of(flag).parse_args(rendered(flag.name, value)).x
    assert parsed == value
    assert not isinstance(parsed, float) or math.copysign(1, parsed) == math.copysign(1, value)


@given(data=st.data())
def test_what_is_written_passes_the_check(data):
    names = {flag.name: flag for flag in SAMPLE if flag.name in _passed()}
    flag = names[data.draw(st.sampled_from(sorted(names)))]
    value = data.draw(values_of(flag))
    deployment = Deployment.from_json({"name": "t", "model": "o/t", "args": {flag.name: value}})
    assert problems(deployment, FLAGS) == []


def _passed():
    from vllm_manager.manifest.flags import refusal

    return {flag.name for flag in FLAGS.flags if refusal(flag.name) is None}
