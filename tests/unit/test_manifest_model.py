"""Deployments as values: JSON, fingerprints, keys, and the schema."""

import json
import os

import pytest

from vllm_manager.errors import ManifestError, ManifestErrors, ManifestFieldError
from vllm_manager.manifest.load import load_manifest
from vllm_manager.manifest.model import Deployment
from vllm_manager.manifest.report import render
from vllm_manager.manifest.secrets import resolve_key


@pytest.fixture
def load(tmp_path):
    def load(text, *, head="name: a\nmodel: o/r\n"):
        path = tmp_path / "m.yaml"
        path.write_text(head + text)
        (loaded,) = load_manifest(path, {})
        return loaded

    return load


# --- JSON and comparing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpus: none\nmax_model_len: auto",
        "gpus: {memory: 30GiB, indices: [1, 0], name: '*A100*'}\napi_key: {env: KEY}",
        "args: {a1: [1, {b: null}], c1: 1.5}\nenv: {A: b}\nserved_model_name: [x, y]",
        "api_key: {file: key}\nengine: {python: ve}\nrestart: {policy: never}\naliases: z",
    ],
)
def test_a_deployment_survives_json(load, text):
    deployment = load(text).deployment
    again = Deployment.from_json(json.loads(json.dumps(deployment.to_json())))
    assert again == deployment
    assert again.fingerprint == deployment.fingerprint


def test_foreign_json_is_a_manifest_error():
    with pytest.raises(ManifestFieldError) as caught:
        Deployment.from_json({"name": "a", "model": "o/r", "port": "x"})
    assert caught.value.field == "port"
    with pytest.raises(ManifestErrors):
        Deployment.from_json({})


def test_the_fingerprint_does_not_depend_on_the_order_of_fields(load):
    one = load("port: 80\nargs: {a1: 1, b1: 2}\nenv: {A: x, B: y}").deployment
    two = load("env: {B: y, A: x}\nargs: {b1: 2, a1: 1}\nport: 80").deployment
    assert one.fingerprint == two.fingerprint
    assert len(one.fingerprint) == 16


def test_the_fingerprint_ignores_spelling_and_defaults(load):
    assert load("args: {max_num_seqs: 1}\ngpus: {count: 1}\nmax_model_len: 16K").deployment.fingerprint == (
        load("args: {max-num-seqs: 1}\nhost: 127.0.0.1\nmax_model_len: 16384").deployment.fingerprint
    )


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("port: 81", "port"),
        ("api_key: generate", "api_key"),
        ("gpus: none", "gpus"),
        ("args: {a1: 1}", "args"),
        ("env: {A: x}", "env"),
        ('engine: {version: "0.32.0"}', "engine"),
        ("aliases: b", "aliases"),
        ("max_model_len: 5", "max_model_len"),
        ("revision: main", "revision"),
        ("runner: pooling", "runner"),
        ("convert: embed", "convert"),
        ("dtype: float16", "dtype"),
        ("quantization: fp8", "quantization"),
        ("lora_modules: {sql: owner/adapter}", "lora_modules"),
        ("engine: {launcher: docker, image: a/b}", "engine"),
        ("replicas: 2", "replicas"),
    ],
)
def test_what_decides_how_it_runs_changes_the_fingerprint(load, text, field):
    plain, changed = load("").deployment, load(text).deployment
    assert plain.fingerprint != changed.fingerprint
    assert plain.changes(changed) == (field,)


@pytest.mark.parametrize(
    "text",
    [
        "readiness: {timeout: 5m}",
        "restart: {policy: never}",
        "liveness: {enabled: false}",
        "stop: {drain: 0}",
    ],
)
def test_what_decides_how_it_is_watched_does_not(load, text):
    plain, changed = load("").deployment, load(text).deployment
    assert plain.fingerprint == changed.fingerprint
    assert plain.changes(changed) == (text.split(":")[0],)


# --- keys ---------------------------------------------------------------------------------------------------


def test_no_key_and_a_generated_one_have_no_value_yet(load):
    assert resolve_key(load(""), {}) is None
    assert resolve_key(load("api_key: null"), {}) is None
    assert resolve_key(load("api_key: generate"), {}) is None


def test_a_literal_key_stays_out_of_the_deployment(load):
    loaded = load("api_key: s3cret-Key")
    assert resolve_key(loaded, {}) == "s3cret-Key"
    assert loaded.deployment.api_key == "given"
    assert "s3cret" not in repr(loaded) + str(loaded.deployment.to_json())


def test_a_key_from_the_environment(load):
    loaded = load("api_key: {env: MY_KEY}")
    assert resolve_key(loaded, {"MY_KEY": "k"}) == "k"


@pytest.mark.parametrize(
    ("environ", "cause"),
    [
        ({}, "MY_KEY is not set"),
        ({"MY_KEY": ""}, "MY_KEY is empty"),
        ({"MY_KEY": "s3cret x"}, "holds spaces"),
        ({"MY_KEY": "s3cret\n"}, "line breaks"),
        ({"MY_KEY": "s3crät"}, "can't be sent"),
        ({"MY_KEY": "s3cret" * 1000}, "longer"),
    ],
)
def test_a_bad_key_from_the_environment_is_located(load, environ, cause):
    with pytest.raises(ManifestFieldError) as caught:
        resolve_key(load("api_key: {env: MY_KEY}"), environ)
    error = caught.value
    assert (error.field, error.line) == ("api_key.env", 3)
    assert cause in error.cause
    assert "s3cr" not in render(error)


def test_a_key_from_a_file_loses_its_line_end(load, tmp_path):
    (tmp_path / "key").write_bytes(b"from-file\r\n")
    assert resolve_key(load("api_key: {file: key}"), {}) == "from-file"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "can't be read"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"a b", "spaces"),
        (b"\xff", "can't be sent"),
    ],
)
def test_a_bad_key_file_is_located(load, tmp_path, content, cause):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ManifestFieldError, match=cause) as caught:
        resolve_key(load("api_key: {file: key}"), {})
    assert (caught.value.field, caught.value.line) == ("api_key.file", 3)


def test_a_key_file_that_is_a_directory_or_a_fifo(load, tmp_path):
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("dir", "fifo"):
        with pytest.raises(ManifestFieldError, match=r"regular file|directory"):
            resolve_key(load(f"api_key: {{file: {name}}}"), {})


@pytest.mark.parametrize(
    "key", ["'s3cret x'", "''", "s3crét", "'s3cret '", "none", "|\n  s3cret\n  x", "\n  s3cret x"]
)
def test_a_bad_literal_key_is_refused_and_not_shown(load, key):
    with pytest.raises(ManifestFieldError) as caught:
        load(f"api_key: {key}")
    assert caught.value.field == "api_key"
    assert "s3cr" not in render(caught.value) + str(caught.value.payload())


@pytest.mark.parametrize(
    "text", ["api_key: 0123123", "api_key: 123123", "api_key: [123123]", "env: {K: 123123}"]
)
def test_values_that_may_be_secret_are_not_described(load, text):
    with pytest.raises(ManifestError) as caught:
        load(text)
    assert "123123" not in str(caught.value.cause) + str(caught.value.hint)


def test_exposing_without_a_key_must_be_said(load):
    assert load("host: 0.0.0.0\nexpose_without_key: true").deployment.host == "0.0.0.0"
    assert load("host: 0.0.0.0\napi_key: generate").deployment.host == "0.0.0.0"
    assert load("host: ::1").deployment.host == "::1"
