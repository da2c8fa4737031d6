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
    ("value", "expected"), [("org/tokenizer", "org/tokenizer"), ("./t", "{}/t"), ("/abs", "/abs")]
)
def test_a_tokenizer_is_a_path_where_it_looks_like_one(args, tmp_path, value, expected):
    assert args(tokenizer=value)["tokenizer"] == expected.format(tmp_path)


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
