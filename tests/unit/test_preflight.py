"""The checks that vLLM makes only after loading the weights."""

import json
import os
import struct
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tests.vllm_flags import vllm_0_32
from vllm_manager import preflight as package
from vllm_manager.errors import EngineMissing
from vllm_manager.manifest.load import load_manifest
from vllm_manager.preflight import adapters, context, model_files, plugins, preflight, ssl_files, tokenizers
from vllm_manager.types import Engine

TINY = Path(__file__).parents[2] / "manifests" / "models" / "tiny"
FLAGS = vllm_0_32()
COMMIT = "c" * 40


@pytest.fixture
def manifest(tmp_path):
    """Loads a manifest with these fields; paths in it are relative to tmp_path."""

    def load(**fields):
        path = tmp_path / "m.yaml"
        path.write_text(json.dumps({"name": "tiny", "model": str(TINY), "gpus": "none"} | fields, indent=1))
        [loaded] = load_manifest(path, {})
        return loaded

    return load


# --- TLS -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """What is said of two of these files: keys and certificates one and two, and the first key encrypted."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    for name in ("one", "two"):
        issued = authority.issue_cert("box.example")
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.crt")
    key = serialization.load_pem_private_key((directory / "one.key").read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (directory / "encrypted.key").write_bytes(encrypted)

    def said(key="one.key", certificate="one.crt", **more):
        files = {"ssl-keyfile": str(directory / key), "ssl-certfile": str(directory / certificate)}
        return [(problem.path[1], problem.cause) for problem in ssl_files.problems(files | more)]

    return said


def test_a_key_with_its_certificate_is_fine(tls):
    assert tls() == []
    assert tls(**{"ssl-ciphers": "ECDHE+AESGCM"}) == []
    assert list(ssl_files.problems({})) == []


@pytest.mark.parametrize(
    ("key", "certificate", "field", "cause"),
    [
        ("none.key", "one.crt", "ssl-keyfile", "there is no such file"),
        ("one.key", "none.crt", "ssl-certfile", "there is no such file"),
        ("two.key", "one.crt", "ssl-keyfile", "isn't the key of the certificate"),
        ("encrypted.key", "one.crt", "ssl-keyfile", "is encrypted"),
        ("one.crt", "one.key", "ssl-certfile", "OpenSSL can't use it"),
        ("one.crt", "one.crt", "ssl-keyfile", "OpenSSL can't use it"),
        (".", "one.crt", "ssl-keyfile", "can't be read"),  # Python opens no directory
    ],
)
def test_files_that_uvicorn_could_not_use(tls, key, certificate, field, cause):
    [(found, said)] = tls(key, certificate)
    assert found == field
    assert cause in said


def test_a_fifo_does_not_block(tls, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    [(field, cause)] = tls(tmp_path / "fifo")
    assert field == "ssl-keyfile"
    assert "is no regular file" in cause


def test_ciphers_that_openssl_does_not_know(tls):
    assert tls(**{"ssl-ciphers": "NOPE"}) == [("ssl-ciphers", "selects no cipher")]


# --- adapters ------------------------------------------------------------------------------------------


def adapter(directory: Path, *, rank=8, weights=True, width=64, **config):
    directory.mkdir(parents=True)
    values = {"r": rank, "lora_alpha": 8, "base_model_name_or_path": "org/base"} | config
    (directory / "adapter_config.json").write_text(json.dumps(values))
    if weights:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        header = json.dumps({name: {"dtype": "F32", "shape": [rank, width], "data_offsets": [0, 0]}}).encode()
        (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return directory


def of_adapters(loaded, environment=None, flags=FLAGS):
    files = model_files.find(loaded.deployment, environment or {"HOME": "/nowhere"})
    return [(p.path[-1], p.cause, p.hint) for p in adapters.problems(loaded.deployment, files, flags)]


def test_an_adapter_that_fits(manifest, tmp_path):
    adapter(tmp_path / "a")
    assert of_adapters(manifest(lora_modules={"a": "./a"})) == []


@pytest.mark.parametrize(
    ("made", "cause", "hint"),
    [
        ({"rank": 24}, "has rank 24, and --max-lora-rank is 16", "`max-lora-rank: 32`"),
        ({"rank_pattern": {"x": 128}}, "has rank 128", "`max-lora-rank: 128`"),
        ({"rank": 600}, "has rank 600", "serves up to 512"),
        ({"weights": False}, "holds no adapter_model.safetensors", "weights"),
        ({"width": 4096}, "was made for org/base, 4096 values wide; this model has 64", "of this model"),
    ],
)
def test_an_adapter_that_vllm_would_refuse(manifest, tmp_path, made, cause, hint):
    adapter(tmp_path / "a", **made)
    [(name, said, advice)] = of_adapters(manifest(lora_modules={"a": "./a"}))
    assert name == "a"
    assert cause in said
    assert hint in advice


def test_a_higher_rank_that_is_allowed(manifest, tmp_path):
    adapter(tmp_path / "a", rank=64)
    assert of_adapters(manifest(lora_modules={"a": "./a"}, args={"max-lora-rank": 64})) == []


def test_another_width_is_not_said_where_the_files_do_not_tell(manifest, tmp_path):
    adapter(tmp_path / "a", weights=False)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\xff" * 8 + b"garbage")
    assert of_adapters(manifest(lora_modules={"a": "./a"})) == []


@pytest.mark.parametrize("args", [{"enable-lora": False}, {"no-enable-lora": True}])
def test_adapters_with_lora_turned_off(manifest, tmp_path, args):
    adapter(tmp_path / "a")
    [(name, cause, _)] = of_adapters(manifest(lora_modules={"a": "./a"}, args=args))
    assert name == next(iter(args))
    assert "lora_modules needs it" in cause


def test_an_adapter_in_the_hubs_cache_is_looked_at_and_one_that_is_not_there_is_not(manifest, tmp_path):
    repository = tmp_path / "hub" / "models--org--a"
    adapter(repository / "snapshots" / COMMIT, rank=32)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    loaded = manifest(lora_modules={"a": "org/a", "b": "org/b"})
    [(name, cause, _)] = of_adapters(loaded, {"HF_HUB_CACHE": str(tmp_path / "hub")})
    assert name == "a"
    assert "rank 32" in cause


# --- parsers and the tokenizer -------------------------------------------------------------------------


def of_tokenizer(loaded, environment=None):
    files = model_files.find(loaded.deployment, environment or {"HOME": "/nowhere"})
    return [(p.path[0], p.cause) for p in tokenizers.problems(loaded.deployment, files, FLAGS)]


def model(directory: Path, tokens=(), config=None):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    added = [{"id": number, "content": token} for number, token in enumerate(tokens)]
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": {}}}))
    (directory / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return directory


PYTHON_TAG = {"tool_call_parser": "llama3_json", "enable_auto_tool_choice": True}


def test_the_bundled_model_has_what_its_parser_needs(manifest):
    assert of_tokenizer(manifest(**PYTHON_TAG)) == []


def test_a_parser_whose_token_is_missing(manifest, tmp_path):
    model(tmp_path / "m", ["<think>"], {"chat_template": "<|python_tag|></think>"})
    found = of_tokenizer(manifest(model="./m", reasoning_parser="deepseek_r1", **PYTHON_TAG))
    where = tmp_path / "m"
    assert found == [
        ("tool_call_parser", f"llama3_json needs <|python_tag|> in the tokenizer of {where}, which lacks it"),
        ("reasoning_parser", f"deepseek_r1 needs </think> in the tokenizer of {where}, which lacks it"),
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"additional_special_tokens": ["<|python_tag|>"]},
        {"added_tokens_decoder": {"5": {"content": "<|python_tag|>"}}},
    ],
)
def test_a_token_may_be_added_by_the_tokenizers_configuration(manifest, tmp_path, config):
    model(tmp_path / "m", config=config)
    assert of_tokenizer(manifest(model="./m", **PYTHON_TAG)) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_call_parser": "llama3_json"},  # without auto tool choice vLLM makes no tool parser
        PYTHON_TAG | {"args": {"tokenizer-mode": "mistral"}},
        PYTHON_TAG | {"args": {"skip-tokenizer-init": True}},
        PYTHON_TAG | {"args": {"tokenizer": "org/other"}},
        PYTHON_TAG | {"args": {"tokenizer-revision": "x"}, "model": "org/m"},
        PYTHON_TAG | {"runner": "pooling"},
        PYTHON_TAG | {"tool_call_parser": "hermes"},
        PYTHON_TAG | {"model": "org/m"},
    ],
)
def test_nothing_is_said_where_it_is_not_certain(manifest, tmp_path, fields):
    model(tmp_path / "m")
    assert of_tokenizer(manifest(**{"model": "./m"} | fields)) == []


def test_another_kind_of_tokenizer_is_not_judged(manifest, tmp_path):
    (model(tmp_path / "m") / "tokenizer.json").unlink()
    assert of_tokenizer(manifest(model="./m", **PYTHON_TAG)) == []


def test_a_model_of_the_hub_is_judged_by_its_snapshot(manifest, tmp_path):
    repository = tmp_path / "hub" / "models--org--m"
    model(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    cache = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    assert of_tokenizer(manifest(model="org/m", revision="v1", **PYTHON_TAG), cache)
    assert of_tokenizer(manifest(model="org/m", **PYTHON_TAG), cache) == []


# --- context -------------------------------------------------------------------------------------------

PLAIN = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
LONG = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"


@pytest.fixture
def of_context(manifest, tmp_path):
    """What is said of a context of 4096 tokens for a model with this config.json."""

    def said(config=PLAIN, environment=None, others=(), **fields):
        (tmp_path / "m").mkdir(exist_ok=True)
        for name in others:
            (tmp_path / "m" / name).write_text("{}")
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        loaded = manifest(**({"model": "./m", "max_model_len": "4K"} | fields))
        environment = {"HOME": "/nowhere"} | (environment or {})
        files = model_files.find(loaded.deployment, environment)
        return list(context.problems(loaded.deployment, environment, files))

    return said


def test_a_context_longer_than_the_models_is_refused(of_context):
    [problem] = of_context()
    assert problem.path == ("max_model_len",)
    assert problem.cause == "is 4096, and the model's longest context is 2048"
    assert "`max_model_len: 2048`" in problem.hint
    rope = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
    assert of_context(PLAIN | rope | {"rope_scaling": None})
    assert of_context(env={LONG: "0"})


@pytest.mark.parametrize("length", [2048, 16, "auto", None])
def test_a_context_that_fits_is_fine(of_context, length):
    assert of_context(max_model_len=length) == []


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        {"model_max_length": 131072},
        {"auto_map": {"AutoConfig": "x.Y"}},
        {"architectures": ["LlavaForConditionalGeneration"]},
        {"architectures": []},
        {"max_position_embeddings": None},
        {"text_config": {"max_position_embeddings": 8192}},
    ],
    ids=lambda config: next(iter(config)),
)
def test_no_limit_is_claimed_where_it_is_not_plain(of_context, config):
    assert of_context(PLAIN | config) == []


def test_what_overrides_the_limit_is_left_to_vllm(of_context):
    assert of_context(env={LONG: "1"}) == []
    assert of_context(environment={LONG: "true"}) == []
    assert of_context(args={"hf-overrides": {"max_position_embeddings": 8192}}) == []
    assert of_context(args={"hf-overrides.max_position_embeddings": 8192}) == []
    assert of_context(runner="pooling") == []
    assert of_context(others=["params.json"]) == []


def test_a_models_context_is_looked_at_before_a_start(manifest, monkeypatch, tmp_path):
    monkeypatch.setattr(package, "engine_for", lambda *_: Engine(name="e", executable="/e"))
    monkeypatch.setattr(package, "engine_flags", lambda *_, **__: None)
    [error] = preflight(manifest(max_model_len=4096), {"HOME": "/nowhere"}, tmp_path).errors
    assert (error.field, error.line) == ("max_model_len", 5)


# --- all of it -----------------------------------------------------------------------------------------


def test_a_plugin_must_be_there(tmp_path):
    (tmp_path / "p.py").write_text("")
    assert list(plugins.problems({"tool-parser-plugin": str(tmp_path / "p.py")})) == []
    [problem] = plugins.problems({"reasoning-parser-plugin": str(tmp_path / "q.py")})
    assert "there is no such file" in problem.cause


def test_errors_point_into_the_manifest(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "engine_for", lambda *_: Engine(name="e", executable="/e"))
    monkeypatch.setattr(package, "engine_flags", lambda *_, **__: FLAGS)
    args = {"max_num_seqs": "many", "ssl-keyfile": "./no.key", "ssl-certfile": "./no.crt", "nope": 1}
    done = preflight(manifest(args=args, dtype="x"), {}, tmp_path)
    assert done.skipped is None
    assert done.flags == FLAGS
    assert [(error.field, error.line) for error in done.errors] == [
        ("args.max_num_seqs", 6),
        ("args.ssl-keyfile", 7),
        ("args.ssl-certfile", 8),
        ("args.nope", 9),
        ("dtype", 11),
    ]
    [unreadable] = [error for error in done.errors if error.field == "args.ssl-keyfile"]
    assert str(tmp_path / "no.key") in unreadable.cause


def test_without_an_engine_the_files_are_checked_and_the_rest_is_said_to_be_skipped(
    manifest, tmp_path, monkeypatch
):
    def missing(*_):
        raise EngineMissing(cause="the engine cpu-0.32.0 isn't installed")

    monkeypatch.setattr(package, "engine_for", missing)
    args = {"nope": 1, "ssl-keyfile": "./no.key", "ssl-certfile": "./no.crt"}
    done = preflight(manifest(args=args), {}, tmp_path)
    assert done.skipped == "flags not checked: the engine cpu-0.32.0 isn't installed"
    assert [error.field for error in done.errors] == ["args.ssl-keyfile", "args.ssl-certfile"]


@pytest.mark.parametrize(
    ("engine", "install", "field"),
    [
        ({"python": "/nope"}, None, "engine.python"),
        ({"version": "0.1.0"}, None, "engine.version"),
        ({"version": "0.32.0"}, "0.32.0", None),
        ({}, None, None),
    ],
)
def test_an_engine_that_can_never_be_had_is_the_manifests_fault(
    manifest, tmp_path, monkeypatch, engine, install, field
):
    def missing(*_):
        raise EngineMissing(cause="it isn't there", hint="get it", install=install)

    monkeypatch.setattr(package, "engine_for", missing)
    found = preflight(manifest(engine=engine), {}, tmp_path).no_engine
    assert (found and found.field) == field
    assert found is None or (found.line, found.hint) == (6, "get it")


def test_flags_that_cannot_be_read_are_a_reason_too(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "engine_for", lambda *_: Engine(name="e", executable="/no/vllm"))
    said: list[str] = []
    done = preflight(manifest(), {}, tmp_path, said.append)
    assert done.skipped == "flags not checked: the interpreter of /no/vllm can't be found"
    assert said == ["the interpreter of /no/vllm can't be found"]


def test_an_image_cannot_be_asked(manifest, tmp_path):
    done = preflight(manifest(engine={"launcher": "docker", "image": "v/v:1"}), {}, tmp_path)
    assert done.skipped == "flags not checked: the vLLM in an image can't be asked"
