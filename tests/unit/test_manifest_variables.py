"""Environment variables in manifests: where they are read, as what, and that errors don't show them."""

import pytest

from vllm_manager.errors import ManifestConflictError, ManifestError, ManifestErrors, ManifestFieldError
from vllm_manager.manifest.load import load_manifest, load_manifests
from vllm_manager.manifest.report import render
from vllm_manager.manifest.secrets import resolve_key

BASE = "name: tiny\nmodel: owner/repo\n"


@pytest.fixture
def load(tmp_path):
    def load(text, **environ):
        path = tmp_path / "m.yaml"
        path.write_text(BASE + text)
        (loaded,) = load_manifest(path, environ)
        return loaded

    return load


@pytest.fixture
def refused(load):
    def refused(text, kind=ManifestError, **environ):
        with pytest.raises(kind) as caught:
            load(text, **environ)
        return caught.value

    return refused


# --- what they stand for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("${A}", {"A": "5"}, 5),
        ('"${A}"', {"A": "5"}, "5"),
        ("${A}", {"A": "0.5"}, 0.5),
        ("${A}", {"A": "true"}, True),
        ("${A}", {"A": "null"}, None),
        ("${A}", {"A": ""}, None),
        ('"${A}"', {"A": ""}, ""),
        ("x-${A}-${B}", {"A": "1", "B": "2"}, "x-1-2"),
        ("${A}${B}", {"A": "1", "B": "2"}, 12),
        ("${A:-7}", {}, 7),
        ("${A:-7}", {"A": ""}, 7),
        ("${A:-7}", {"A": "8"}, 8),
        ("${A:-}", {}, None),
        ("${A:-a b:c}", {}, "a b:c"),
        ("$A $$ $(A) {A}", {"A": "1"}, "$A $$ $(A) {A}"),
        ('"$${A}"', {"A": "1"}, "${A}"),
        ("$${ ${A} }", {"A": "1"}, "${ 1 }"),
        ("${A}", {"A": "${B} $${C} {env: B}", "B": "1"}, "${B} $${C} {env: B}"),
        ("${A}", {"A": "[1, 2]"}, "[1, 2]"),
        ("|\n    {{ x }} $${ y }\n", {}, "{{ x }} ${ y }\n"),
        ("{env: A}", {"A": "5"}, 5),
        ("{env: A}", {"A": "x y"}, "x y"),
        ("{env: A, default: 7}", {}, 7),
        ("{env: A, default: '7'}", {"A": ""}, "7"),
        ("{env: A, default: 7}", {"A": "8"}, 8),
        ("{default: '${B}', env: A}", {"B": "9"}, "9"),
        ("[1, {env: A}, '${A}']", {"A": "5"}, [1, 5, "5"]),
        ("{x: {env: A}, env: B}", {"A": "5"}, {"x": 5, "env": "B"}),
        ("{'${A}': 1}", {"A": "5"}, {"${A}": 1}),
    ],
)
def test_what_a_value_stands_for(load, text, environ, expected):
    value = load(f"args:\n  a1: {text}", **environ).deployment.args["a1"]
    assert value == expected
    assert type(value) is type(expected)


def test_every_kind_of_field_takes_them(load):
    deployment = load(
        "port: ${PORT}\n"
        "served_model_name: ['${A}', b]\n"
        "gpus: {memory: {env: MEMORY}}\n"
        "enable_auto_tool_choice: ${TOOLS}\n"
        "tool_call_parser: ${PARSER:-hermes}\n"
        "env: {X: '${A}'}\n"
        "readiness: {timeout: {env: T, default: 5m}}\n"
        "max_model_len: ${LENGTH}\n"
        "lora_modules: {env: '${A}/r'}\n",
        PORT="8000",
        A="a",
        MEMORY="30GiB",
        TOOLS="true",
        LENGTH="16K",
    ).deployment
    assert (deployment.port, deployment.served_model_name) == (8000, ("a", "b"))
    assert deployment.gpus.memory == 30 * 2**30
    assert (deployment.enable_auto_tool_choice, deployment.tool_call_parser) == (True, "hermes")
    assert (deployment.env, deployment.readiness.timeout) == ({"X": "a"}, 300)
    assert (deployment.max_model_len, deployment.lora_modules) == (16384, {"env": "a/r"})


def test_whole_mappings_are_none_and_env_is_a_name_in_them(load):
    deployment = load(
        "env: {env: production}\nargs: {env: x}\nlora_modules: {env: o/r}", production="!"
    ).deployment
    assert (deployment.env, deployment.args) == ({"env": "production"}, {"env": "x"})
    assert deployment.lora_modules == {"env": "o/r"}


def test_a_section_may_come_from_one(load):
    assert load("gpus: {env: GPUS}", GPUS="none").deployment.request.count == 0


def test_the_key_keeps_its_reference(load):
    loaded = load("api_key: {env: KEY}", KEY="now")
    assert loaded.deployment.api_key.env == "KEY"
    assert resolve_key(loaded, {"KEY": "later"}) == "later"


def test_a_key_may_be_a_variable_like_any_text(load):
    loaded = load("api_key: ${KEY}", KEY="s3cret")
    assert resolve_key(loaded, {}) == "s3cret"
    assert "s3cret" not in repr(loaded) + str(loaded.deployment.to_json())


def test_a_path_from_a_variable_is_relative_to_the_manifest(load, tmp_path):
    assert load("engine: {python: '${VE}/bin'}", VE="ve").deployment.engine.python == str(tmp_path / "ve/bin")


def test_defaults_and_deployments_take_them(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("defaults: {model: '${M}'}\ndeployments:\n  - name: a-${N}\n  - {name: {env: N}}\n")
    loaded = load_manifest(path, {"M": "o/r", "N": "x"})
    assert [(each.deployment.name, each.deployment.model) for each in loaded] == [
        ("a-x", "o/r"),
        ("x", "o/r"),
    ]


# --- what is wrong with them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column"), [("${PROT}", 7), ("{env: PROT}", 7), ("'${PROT}'", 7), ("8${PROT}0", 7)]
)
def test_a_variable_that_is_not_set(refused, text, column):
    error = refused(f"port: {text}", ManifestFieldError, PORT="80", HOME="/")
    assert (error.field, error.line, error.column) == ("port", 3, column)
    assert error.cause == "the environment variable PROT is not set"
    assert error.hint.startswith("did you mean PORT? Otherwise export PROT=… first")
    assert "PROT:-default" in error.hint or "{env: PROT, default: …}" in error.hint


def test_a_variable_that_is_not_set_in_the_defaults_is_told_once(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        "defaults:\n  dtype: ${D}\ndeployments:\n- {name: a, model: o/r}\n- {name: b, model: o/r}\n"
    )
    with pytest.raises(ManifestFieldError) as caught:
        load_manifest(path, {})
    assert (caught.value.line, caught.value.column) == (2, 10)


def test_all_that_is_wrong_is_told_at_once(refused):
    error = refused("port: ${A}\nhost: 0.0.0.0\ndtype: ${B}\nargs: {x1: '${'}\n", ManifestErrors)
    assert [inner.field for inner in error.errors] == ["port", "host", "dtype", "args.x1"]


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A B}", "${A:-x", "a${A", "${A-x}", "${{ A }}"])
def test_what_begins_no_variable(refused, text):
    error = refused(f"dtype: '{text}'", ManifestFieldError, A="1")
    assert (error.field, error.line, error.column) == ("dtype", 3, 8)
    assert "$${" in error.hint


@pytest.mark.parametrize("name", ["1A", "5", "''", "A B", "[A]"])
def test_what_is_no_name_of_a_variable(refused, name):
    error = refused(f"dtype: {{env: {name}}}", ManifestFieldError)
    assert (error.field, error.line, error.column) == ("dtype.env", 3, 8)


@pytest.mark.parametrize(("value", "cause"), [("no", "boolean"), ("0123456", "octal"), ("1:30", "base 60")])
def test_a_value_that_yaml_would_change_is_an_error(refused, value, cause):
    error = refused("dtype: ${A}", ManifestFieldError, A=value)
    assert cause in error.cause
    assert "the value of ${A}" in error.cause
    assert "quote it" in error.hint


@pytest.mark.parametrize("value", ["a\0b", "a\udcffb"])
def test_a_value_that_nothing_can_hold(refused, value):
    assert "NUL or bytes" in refused("dtype: '${A}'", ManifestFieldError, A=value).cause


def test_values_cannot_pile_up(refused):
    text = "args: {x1: '" + "${A}" * 50 + "'}"
    assert "1 MiB" in refused(text, ManifestFieldError, A="x" * 100_000).cause


# --- errors don't show them ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "cause"),
    [
        ("port: ${V}", "s3cret", "expected a whole number, got the value of ${V}"),
        ("port: {env: V}", "s3cret", "expected a whole number, got the value of ${V}"),
        ("port: 1${V}", "70000", "must be at most 65535, got the value of 1${V}"),
        ("port: ${V}", "true", "expected a whole number, got the value of ${V}"),
        ("gpu_memory_utilization: ${V}", "0", "must be more than 0.0, got the value of ${V}"),
        ("dtype: ${V}", "31415", "expected text, got the value of ${V}"),
        ("replicas: ${V}", "", "expected a whole number, got nothing from ${V}"),
        ("host: ${V}", "10.9.8.7", "the value of ${V} can be reached from outside"),
        ("host: ${V}", "s3cret/", "the value of ${V} is no address"),
        ("restart: {policy: '${V}'}", "s3cret", "got the value of ${V}"),
        ("readiness: {stall: '${V}'}", "s3cret", "expected a duration, got the value of ${V}"),
        ("gpus: {memory: '${V}'}", "31415B", "the value of ${V} is no memory"),
        ("gpus: {memory: '${V}'}", "314159265TiB", "the value of ${V} is no memory"),
        ("gpus: {memory: {env: V}}", "31415", "the value of ${V} is no memory"),
        ("gpus: {count: {env: V}}", "31415", "the value of ${V}"),
        ("max_model_len: ${V}", "31415T", "the value of ${V} is no possible number"),
        ("aliases: ${V}", "s3cret x", "the value of ${V} can't be a model's name"),
        ("aliases: [a, '${V}']", "s3cret x", "the value of ${V} can't be a model's name"),
        ("engine: {version: '${V}'}", "s3cret", "the value of ${V} is no version"),
        ("chat_template: ${V}", "s3cret/x", "there is no such file: the value of ${V}"),
        ("chat_template: ./${V}", "s3cret/../x", "there is no such file: the value of ./${V}"),
        ("lora_modules: {a: './${V}'}", "s3cret", "there is no such directory: the value of ./${V}"),
        ("args: {tokenizer: './${V}'}", "s3cret", "there is no such directory: the value of ./${V}"),
        ("lora_modules: {a: '${V}'}", "s3cret s3cret " * 20, "the value of ${V} is no Hugging Face id"),
        ("env: {A: '${V}', B: {env: V}}", "31415", "expected text, got a number"),
    ],
)
def test_a_value_from_a_variable_is_not_quoted(refused, text, value, cause):
    error = refused(text, ManifestFieldError, V=value)
    assert cause in error.cause
    shown = render(error)
    assert not any(secret in shown for secret in ("s3cret", "31415", "31,415", "70000", "10.9.8.7"))


def test_a_mapping_in_a_variable_is_no_mapping(refused):
    error = refused("gpus: {env: V}", V="{count: 1}")
    assert error.cause == "expected none or a mapping, got the value of ${V}"
    assert error.hint == "write none, or a mapping with fields such as count and memory"


def test_a_hint_names_the_variable_instead(refused, tmp_path):
    assert refused("dtype: ${V}", V="31415").hint == 'quote it: "${V}"'
    (tmp_path / "s3cret" / "x").mkdir(parents=True)
    error = refused("lora_modules: {a: '${V}'}", V="s3cret/x")
    assert error.hint == "write ./${V} for the directory, or rename it"


def test_a_default_is_quoted_like_anything_in_the_file(refused):
    assert refused("port: ${V:-eighty}").cause == 'expected a whole number, got "eighty"'


def test_a_value_is_hidden_in_errors_that_are_found_later(load):
    loaded = load("args: {max_num_seqs: '${V}'}", V="s3cret")
    error = loaded.error(("args", "max-num-seqs"), 'expected a number, got "s3cret"', "not s3cret")
    assert error.cause == "expected a number, got the value of ${V}"
    assert error.hint == "not ${V}"
    key = load("api_key: {file: '${V}'}", V="s3cret")
    with pytest.raises(ManifestFieldError) as caught:
        resolve_key(key, {})
    assert "s3cret" not in render(caught.value)


def test_a_bad_key_from_a_variable_is_not_shown(refused):
    assert "s3cret" not in render(refused("api_key: ${V}", V="s3cret x"))


def test_a_name_from_a_variable_is_not_shown_in_a_conflict(tmp_path):
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    for path in (one, two):
        path.write_text("name: ${V}\nmodel: o/r\n")
    with pytest.raises(ManifestConflictError) as caught:
        load_manifests([one, two], {"V": "s3cret"})
    assert caught.value.cause == f"the name the value of ${{V}} is taken by {one}:1"
