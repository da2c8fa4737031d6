"""Flags under `args`, whatever the engine: what goes together, and whose values are paths."""

import json

import pytest

from vllm_manager.errors import ManifestError
from vllm_manager.manifest.load import load_manifest


@pytest.fixture
def args(tmp_path):
    """The deployment's args for these in a manifest."""

    def load(**given):
        path = tmp_path / "m.yaml"
        path.write_text(json.dumps({"name": "m", "model": "org/m", "args": given}, indent=1))
        [loaded] = load_manifest(path, {})
        return loaded.deployment.args

    return load


@pytest.mark.parametrize("name", ["ssl-keyfile", "ssl-certfile", "tool-parser-plugin", "download-dir"])
def test_a_path_is_relative_to_the_manifest(args, tmp_path, name):
    both = {"ssl-keyfile": "k", "ssl-certfile": "c"} if name.startswith("ssl") else {}
    assert args(**(both | {name: "some/file"}))[name] == str(tmp_path / "some/file")
    underscored = {key.replace("-", "_"): value for key, value in (both | {name: "x"}).items()}
    assert args(**underscored)[name] == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("value", "expected"), [("org/tokenizer", "org/tokenizer"), ("./t", "{}/t"), ("/etc", "/etc")]
)
def test_a_tokenizer_is_a_path_where_it_looks_like_one(args, tmp_path, value, expected):
    (tmp_path / "t").mkdir()
    assert args(tokenizer=value)["tokenizer"] == expected.format(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("tokenizer", "./gone", "there is no such directory: {}/gone"),
        ("hf-config-path", "./gone", "there is no such directory: {}/gone"),
        ("hf_config_path", "./empty", "{}/empty has no config.json"),
        ("generation-config", "./gone", "there is no such directory: {}/gone"),
        ("generation-config", "./file", "there is no such directory: {}/file"),
        ("allowed-local-media-path", "gone", "there is no such directory: {}/gone"),
        ("log-config-file", "gone.json", "there is no such file: {}/gone.json"),
        ("speculative-config.model", "./gone", "there is no such directory: {}/gone"),
        ("tokenizer", "org/local", "is a directory beside this file as well"),
    ],
)
def test_a_missing_file_is_located(args, tmp_path, name, value, cause):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "org" / "local").mkdir(parents=True)
    with pytest.raises(ManifestError) as error:
        args(**{name: value})
    assert error.value.field == f"args.{name}"
    assert cause.format(tmp_path) in error.value.cause
    assert error.value.hint


def test_the_hint_for_a_missing_tokenizer_says_where_it_was_looked_for(args):
    with pytest.raises(ManifestError) as error:
        args(tokenizer="./gone")
    assert error.value.hint == (
        "the path is relative to the manifest; a Hugging Face id has no ./ at its start"
    )


def test_files_that_are_there_and_names_are_fine(args, tmp_path):
    (tmp_path / "log.json").write_text("{}")
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text("{}")
    given = {"log-config-file": "log.json", "generation-config": "vllm", "hf-config-path": "./draft"}
    loaded = args(**given, **{"speculative-config": {"model": "./draft", "num_speculative_tokens": 2}})
    assert loaded["log-config-file"] == str(tmp_path / "log.json")
    assert loaded["generation-config"] == "vllm"
    assert loaded["speculative-config"]["model"] == loaded["hf-config-path"] == str(tmp_path / "draft")
    assert args(**{"speculative-config": {"model": "o/r"}})["speculative-config"] == {"model": "o/r"}


def test_a_missing_draft_model_is_located_in_its_mapping(args):
    with pytest.raises(ManifestError) as error:
        args(**{"speculative-config": {"model": "./gone"}})
    assert error.value.field == "args.speculative-config.model"


def test_a_key_and_a_certificate_come_together(args):
    with pytest.raises(ManifestError) as error:
        args(**{"ssl-keyfile": "k"})
    assert (error.value.field, error.value.cause) == ("args.ssl-keyfile", "needs ssl-certfile")
    with pytest.raises(ManifestError) as error:
        args(ssl_certfile="c")
    assert (error.value.field, error.value.cause) == ("args.ssl_certfile", "needs ssl-keyfile")


@pytest.mark.parametrize("name", ["ssl-ca-certs", "ssl-cert-reqs"])
def test_client_certificates_are_refused(args, name):
    with pytest.raises(ManifestError, match="can't be set here") as error:
        args(**{name: "x"})
    assert "api_key" in error.value.hint


def test_other_tls_flags_are_passed_on(args):
    given = {"ssl-keyfile": "/k", "ssl-certfile": "/c", "ssl-ciphers": "HIGH", "enable-ssl-refresh": True}
    assert args(**given) == given
