"""Loading manifests: what is accepted, what is refused, and where the errors point."""

import os
import re
from pathlib import Path

import pytest

from vllm_manager.errors import (
    ManifestError,
    ManifestErrors,
    ManifestFieldError,
    ManifestUnreadable,
)
from vllm_manager.manifest.load import load_manifest
from vllm_manager.manifest.report import render
from vllm_manager.types import GpuRequest

BASE = "name: tiny\nmodel: owner/repo\n"
MANIFESTS = Path(__file__).parents[2] / "manifests"


def one(path, environ=None):
    (loaded,) = load_manifest(path, environ or {})
    return loaded


@pytest.fixture
def write(tmp_path):
    def write(text, name="m.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def deployment(write):
    return lambda text: one(write(BASE + text)).deployment


@pytest.fixture
def refused(write):
    def refused(text, kind=ManifestError):
        with pytest.raises(kind) as caught:
            load_manifest(write(text), {})
        return caught.value

    return refused


def place(error):
    return error.field, error.line, error.column


# --- what is accepted ---------------------------------------------------------------------------------


def test_the_tiny_manifest_is_what_the_quickstart_needs():
    tiny = one(MANIFESTS / "tiny.yaml").deployment
    assert tiny.model == str(MANIFESTS / "models" / "tiny")
    assert (tiny.names, tiny.port, tiny.api_key) == (("tiny",), None, "generate")
    assert tiny.request.count == 0
    assert tiny.args == {"load-format": "dummy", "enforce-eager": True}


def test_two_lines_are_enough(deployment):
    minimal = deployment("")
    assert minimal.names == ("tiny", "owner/repo")
    assert (minimal.host, minimal.port, minimal.api_key) == ("127.0.0.1", None, None)
    assert minimal.request == GpuRequest(count=1, utilization=0.92)


def test_served_names_come_first_and_each_name_once(deployment):
    named = deployment("served_model_name: big\naliases: [other, big]")
    assert named.names == ("big", "other")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8192", 8192), ("16K", 16384), ("16k", 16000), ("25.6k", 25600), ("auto", "auto"), ("-1", "auto")],
)
def test_context_length_is_read_as_vllm_reads_it(deployment, text, expected):
    assert deployment(f"max_model_len: {text}").max_model_len == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("0.5s", 0.5), ("45", 45)]
)
def test_durations(deployment, text, expected):
    assert deployment(f"readiness: {{timeout: {text}}}").readiness.timeout == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("30GiB", 30 * 2**30), ("30GB", 30 * 10**9), ("1073741824", 2**30)]
)
def test_memory(deployment, text, expected):
    assert deployment(f"gpus: {{memory: {text}}}").request.memory == expected


def test_the_gpu_count_follows_from_the_parallel_sizes(deployment):
    sizes = "tensor_parallel_size: 2\npipeline_parallel_size: 2\ndata_parallel_size: 2"
    assert deployment(sizes).request.count == 8
    assert deployment(sizes + "\ngpus: none").request.count == 0


def test_flags_are_brought_to_one_spelling(deployment):
    args = deployment("args: {max_num_seqs: 5, compilation-config.cudagraph_mode: NONE, seed: null}").args
    assert args == {"max-num-seqs": 5, "compilation-config.cudagraph_mode": "NONE", "seed": None}


def test_paths_are_relative_to_the_manifest(write, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    (tmp_path / "chat.jinja").write_text("x")
    path = write(
        "name: a\nmodel: ./weights\nchat_template: chat.jinja\n"
        "engine: {python: ve/bin/python}\napi_key: {file: key}\n"
    )
    loaded = one(path).deployment
    assert loaded.model == str(tmp_path / "weights")
    assert loaded.chat_template == str(tmp_path / "chat.jinja")
    assert loaded.engine.python == str(tmp_path / "ve/bin/python")
    assert loaded.api_key.file == str(tmp_path / "key")
    assert loaded.names == ("a",)


def test_an_adapter_is_a_hugging_face_id_or_a_directory_with_its_configuration(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("sql", "home"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    path = write(
        BASE + "lora_modules: {a: ./sql, b: ~/home, c: owner/adapter, d: " + str(tmp_path / "sql") + "}"
    )
    assert one(path).deployment.lora_modules == {
        "a": str(tmp_path / "sql"),
        "b": str(tmp_path / "home"),
        "c": "owner/adapter",
        "d": str(tmp_path / "sql"),
    }


def test_a_container_an_image_and_no_port_of_its_own(deployment):
    deployed = deployment("engine: {launcher: docker, image: 'vllm/vllm-openai:v0.32.0'}\nreplicas: 3")
    assert (deployed.engine.launcher, deployed.engine.image) == ("docker", "vllm/vllm-openai:v0.32.0")
    assert (deployed.replicas, deployed.port) == (3, None)


def test_how_vllm_is_to_run_the_model(deployment):
    fields = "revision: v1.0\nrunner: pooling\nconvert: embed\ndtype: float16\nquantization: fp8\n"
    deployed = deployment(fields)
    assert (deployed.revision, deployed.runner, deployed.convert) == ("v1.0", "pooling", "embed")
    assert (deployed.dtype, deployed.quantization) == ("float16", "fp8")


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("0s", 0), ("1m", 60)])
def test_a_drain_may_be_none_at_all(deployment, text, seconds):
    assert deployment(f"stop: {{drain: {text}, grace: 5s}}").stop.drain == seconds


def test_a_template_in_place_is_no_path(deployment):
    assert deployment("chat_template: '{{ messages }}'").chat_template == "{{ messages }}"


def test_byte_order_mark_and_windows_line_ends_are_fine(write):
    path = write(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert one(path).deployment.name == "tiny"


def test_anchors_work_within_bounds(deployment):
    assert deployment("args: {a1: &x [1, 2], b1: *x}").args == {"a1": [1, 2], "b1": [1, 2]}


# --- fields ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "cause", "hint"),
    [
        ("prot: 80", ("prot", 3, 1), "unknown field", "`port`"),
        ("served-model-name: x", ("served-model-name", 3, 1), "unknown field", "`served_model_name`"),
        ("max_num_seqs: 3", ("max_num_seqs", 3, 1), "unknown field", "under `args:`"),
        ("timeout: 20m", ("timeout", 3, 1), "unknown field", "under `readiness:`"),
        ("gpus:\n  cuont: 1", ("gpus.cuont", 4, 3), "unknown field", "`count`"),
        ("port: two", ("port", 3, 7), 'expected a whole number, got "two"', None),
        ('port: "80"', ("port", 3, 7), "expected a whole number", "without quotes"),
        ("port: 70000", ("port", 3, 7), "at most 65535", None),
        ("port: '" + "[" * 5000 + "'", ("port", 3, 7), "expected a whole number", None),
        ("gpus: {memory: " + "9" * 400 + "GiB}", ("gpus.memory", 3, 16), "no memory for a model", None),
        ("readiness: {stall: " + "9" * 400 + "h}", ("readiness.stall", 3, 20), "at most a year", None),
        ("port: true", ("port", 3, 7), "expected a whole number, got true", None),
        ("gpus: all", ("gpus", 3, 7), "expected none or a mapping", "none"),
        ("gpus: {count: 2}", ("gpus.count", 3, 15), "ask for 1", "tensor_parallel_size"),
        ("gpus: {memory: 30}", ("gpus.memory", 3, 16), "30 is no memory", "30GiB"),
        ("gpus: {memory: 30G}", ("gpus.memory", 3, 16), "amount of memory", "30GiB"),
        ("gpus: {indices: [0, 0]}", ("gpus.indices", 3, 17), "twice", None),
        ("gpus: {indices: [0, x]}", ("gpus.indices[1]", 3, 21), "whole number", None),
        ("gpus: {indices: [0], uuids: [GPU-1]}", ("gpus.uuids", 3, 29), "exclude each other", None),
        ("tensor_parallel_size: 2\ngpus: {indices: [1]}", ("gpus.indices", 4, 17), "1 of 2", None),
        ("gpu_memory_utilization: 0.5\ngpus: {memory: 1GiB}", ("gpus.memory", 4, 16), "exclude", None),
        ("gpu_memory_utilization: 0", ("gpu_memory_utilization", 3, 25), "more than 0", None),
        ("host: 0.0.0.0", ("host", 3, 7), "vLLM would answer anybody", "expose_without_key"),
        ("host: 127.0.0.1:80", ("host", 3, 7), "no address", "port has its own field"),
        ("enable_auto_tool_choice: true", ("enable_auto_tool_choice", 3, 26), "tool_call_parser", "hermes"),
        ("engine: {launcher: docker}", ("engine.image", 3, 9), "a container needs an image", "vllm-openai"),
        ("engine: {launcher: podman}", ("engine.launcher", 3, 20), "'process' or 'docker'", None),
        ("engine: {image: a/b}", ("engine.image", 3, 17), "for containers", "launcher: docker"),
        ('engine: {launcher: docker, image: a, version: "0.32.0"}', None, "its own vLLM", "remove it"),
        ("engine: {launcher: docker, image: a, python: b}", None, "its own vLLM", "remove it"),
        ("revision: ''", ("revision", 3, 11), "is empty", "leave the field out"),
        ("revision: 1.5", ("revision", 3, 11), "expected text, got 1.5", 'quote it: "1.5"'),
        ("runner: embed", ("runner", 3, 9), "must be 'auto', 'generate', 'pooling' or 'draft'", None),
        ("convert: pooling", ("convert", 3, 10), "must be 'auto', 'none', 'embed' or 'classify'", None),
        ("dtype: 16", ("dtype", 3, 8), "expected text, got 16", "quote it"),
        ("quantization: [fp8]", ("quantization", 3, 15), "expected text, got a list", None),
        ("lora_modules: [a]", ("lora_modules", 3, 15), "expected a mapping, got a list", None),
        ("lora_modules: {a: 5}", ("lora_modules.a", 3, 19), "expected text, got 5", "quote it"),
        ("lora_modules: {a b: o/r}", ("lora_modules.a b", 3, 16), "can't be a model's name", "spaces"),
        ("lora_modules: {a=b: o/r}", ("lora_modules.a=b", 3, 16), "can't be an adapter's name", "="),
        ("lora_modules: {a: 'o/r,s'}", ("lora_modules.a", 3, 19), "can't be an adapter's place", "comma"),
        ("lora_modules: {a: b c}", ("lora_modules.a", 3, 19), "no Hugging Face id", None),
        ("lora_modules: {tiny: o/r}", ("lora_modules.tiny", 3, 16), "the model itself", "another one"),
        ("aliases: x\nlora_modules: {x: o/r}", ("lora_modules.x", 4, 16), "the model itself", "another"),
        ("lora_modules: {a: ./gone}", ("lora_modules.a", 3, 19), "there is no such directory", "relative"),
        ("replicas: 0", ("replicas", 3, 11), "at least 1", None),
        ("replicas: 65", ("replicas", 3, 11), "at most 64", None),
        ("port: 80\nreplicas: 2", ("replicas", 4, 11), "can't share the port", "leave `port` out"),
        ("stop: {drain: -1}", ("stop.drain", 3, 15), "more than 0", None),
        ("stop: {grace: 0}", ("stop.grace", 3, 15), "more than 0", None),
        ("liveness: {enabled: 1}", ("liveness.enabled", 3, 21), "expected true or false, got 1", None),
        ("liveness: {after: soon}", ("liveness.after", 3, 19), "expected a duration", "90s"),
        ("drain: 5s", ("drain", 3, 1), "unknown field", "under `stop:`"),
        ("engine: {version: 0.32}", ("engine.version", 3, 19), "expected text, got 0.32", '"0.32"'),
        ("engine: {version: latest}", ("engine.version", 3, 19), "no version", "0.32.0"),
        ('engine: {version: "0.32.0", python: x}', ("engine.python", 3, 37), "exclude each other", None),
        ("readiness: {stall: 5 min}", ("readiness.stall", 3, 20), "duration", "20m"),
        ("readiness: {stall: 0s}", ("readiness.stall", 3, 20), "more than 0", None),
        ("restart: {policy: always}", ("restart.policy", 3, 19), "'on-failure' or 'never'", None),
        ("restart: {backoff_initial: 2m}", ("restart.backoff_max", 3, 10), "shorter", None),
        ("env: {A: 1}", ("env.A", 3, 10), "expected text, got a number", "quote it"),
        ("env: {A: true}", ("env.A", 3, 10), "expected text, got a boolean", "quote it"),
        ('env: {1A: ""}', ("env.1A", 3, 7), "no name of an environment variable", None),
        ('env: {CUDA_VISIBLE_DEVICES: "1"}', ("env.CUDA_VISIBLE_DEVICES", 3, 7), "can't be set", "`gpus`"),
        ("args:\n  max_model_len: 1", ("args.max_model_len", 4, 3), "field of its own", "`max_model_len:`"),
        ("args: {no-enable-auto-tool-choice: true}", None, "field of its own", "enable_auto_tool_choice"),
        ("args: {uds: /x}", ("args.uds", 3, 8), "can't be set here", "HTTP"),
        ("args: {config: x}", ("args.config", 3, 8), "can't be set here", "under `args:`"),
        ("args: {nnodes: 2}", ("args.nnodes", 3, 8), "can't be set here", "this machine alone"),
        ("args: {gpu-mem: 0.5}", None, "abbreviation of gpu-memory-utilization", "in full"),
        ("args: {--max-num-seqs: 2}", None, "without leading dashes", "`max-num-seqs:`"),
        ("args: {max-num-seqs: 2, max_num_seqs: 3}", ("args.max_num_seqs", 3, 25), "same flag", None),
        ("args:", ("args", 3, 6), "expected a mapping, got nothing", "leave the field out"),
        ("served_model_name: []", ("served_model_name", 3, 20), "empty list", None),
        ("served_model_name: [a, -b]", ("served_model_name[1]", 3, 24), "no model's name|can't be", None),
        ("max_model_len: long", ("max_model_len", 3, 16), "number of tokens", "16K"),
        ("max_model_len: 0", ("max_model_len", 3, 16), "no possible number", None),
        ("chat_template: none.jinja", ("chat_template", 3, 16), "there is no such file", "relative"),
        ("api_key: {env: A, file: b}", ("api_key", 3, 10), "exclude each other", None),
        ("api_key: {}", ("api_key.env", 3, 10), "is missing", "environment variable"),
        ("api_key: 5", ("api_key", 3, 10), "text or a mapping, got a number", None),
    ],
)
def test_a_wrong_field_is_located_and_explained(refused, text, expected, cause, hint):
    error = refused(BASE + text, ManifestFieldError)
    if expected is not None:
        assert place(error) == expected
    assert re.search(cause, error.cause)
    assert hint is None or hint in (error.hint or "")
    assert error.exit_code == 2


@pytest.mark.parametrize("name", ["Tiny", "a b", "", "-a", "x" * 41, "ä", "a/b", "a\nb"])
def test_names_that_are_no_file_names_are_refused(refused, name):
    error = refused(f"name: {name!r}\nmodel: a/b" if "\n" not in name else 'name: "a\\nb"\nmodel: a/b')
    assert error.field == "name"


def test_missing_fields_are_all_named(refused):
    error = refused("port: 8000", ManifestErrors)
    assert [e.field for e in error.errors] == ["name", "model"]
    assert all(e.cause == "is missing" and e.hint for e in error.errors)


def test_all_problems_of_a_file_are_reported_in_the_order_of_the_lines(refused):
    error = refused(
        "name: A\nmodel: ./no\nprot: 1\nport: x\nhost: 0.0.0.0\nargs: {uds: 1, api-key: 2}\n"
        "gpus: {memory: 1GiB}\ngpu_memory_utilization: 0.5\nenv: {A: no}\nport: 4\n",
        ManifestErrors,
    )
    fields = ["name", "model", "prot", "port", "host", "args.uds", "args.api-key", "gpus.memory", None, None]
    assert [e.field for e in error.errors] == fields


# --- models -----------------------------------------------------------------------------------------------


def test_a_missing_model_directory(refused):
    error = refused("name: a\nmodel: ./nothere\n", ManifestFieldError)
    assert place(error) == ("model", 2, 8)
    assert "there is no such directory" in error.cause


def test_a_model_directory_without_configuration(refused, tmp_path):
    (tmp_path / "weights").mkdir()
    assert "no config.json" in refused("name: a\nmodel: ./weights\n", ManifestFieldError).cause


def test_a_model_that_is_a_file(refused, write):
    write("x", "weights")
    assert "isn't a directory" in refused("name: a\nmodel: ./weights\n", ManifestFieldError).cause


def test_a_directory_that_looks_like_a_hugging_face_id(refused, tmp_path):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    error = refused("name: a\nmodel: models/tiny\n", ManifestFieldError)
    assert "./models/tiny" in error.hint


def test_an_adapter_directory_without_its_configuration(refused, tmp_path):
    (tmp_path / "sql").mkdir()
    error = refused(BASE + "lora_modules:\n  a: ./sql\n", ManifestFieldError)
    assert place(error) == ("lora_modules.a", 4, 6)
    assert "no adapter_config.json" in error.cause


def test_an_adapter_that_looks_like_a_hugging_face_id(refused, tmp_path):
    (tmp_path / "adapters" / "sql").mkdir(parents=True)
    assert "./adapters/sql" in refused(BASE + "lora_modules: {a: adapters/sql}", ManifestFieldError).hint


@pytest.mark.parametrize("model", ["a/b/c", "''", "'a b'", "--port", "a/"])
def test_what_is_neither_id_nor_path(refused, model):
    assert refused(f"name: a\nmodel: {model}\n", ManifestFieldError).field == "model"


# --- the file -----------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_suggests_its_neighbour(write):
    path = write(BASE, "tiny.yaml")
    with pytest.raises(ManifestUnreadable) as caught:
        load_manifest(path.with_name("tinny.yaml"), {})
    assert caught.value.cause == "no such file"
    assert "tiny.yaml" in caught.value.hint


def test_a_directory(tmp_path, write):
    write(BASE)
    with pytest.raises(ManifestUnreadable, match="is a directory") as caught:
        load_manifest(tmp_path, {})
    assert "m.yaml" in caught.value.hint


def test_no_permission(write, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = write(BASE)
    monkeypatch.setattr(Path, "open", denied)  # a mode would not stop root
    with pytest.raises(ManifestUnreadable, match="no permission"):
        load_manifest(path, {})


def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "f.yaml")
    with pytest.raises(ManifestUnreadable, match="isn't a regular file"):
        load_manifest(tmp_path / "f.yaml", {})


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_impossible_file_names(name):
    with pytest.raises(ManifestUnreadable):
        load_manifest(Path(name), {})


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"---\n", "is empty"),
        (b"- name: a\n", "holds a list"),
        (b"just words", "holds a single value"),
        (b"\xff\xfe" + "name: a".encode("utf-16-le"), "isn't UTF-8"),
        (b"name: \xe9", "isn't UTF-8"),
        (b"name: a\n\x00\x01\x02", "control characters"),
        (b"\x7fELF\x02\x01\x01", "control characters"),
        (b"a" * (10 * 2**20), "larger than 1 MiB"),
    ],
)
def test_what_is_no_manifest_at_all(refused, content, cause):
    assert cause in refused(content, ManifestUnreadable).cause


# --- rendering ----------------------------------------------------------------------------------------------


def test_an_error_shows_its_line_with_a_caret_and_a_hint(refused):
    error = refused(BASE + "gpus: {count: two}\n")
    assert render(error).splitlines() == [
        f'{error.path}:3:15: gpus.count: expected a whole number, got "two"',
        "    3 | gpus: {count: two}",
        "      |               ^",
    ]
    assert render(refused(BASE + "prot: 1")).endswith("\nhint: did you mean `port`?")


def test_several_errors_are_apart(refused):
    error = refused("port: x\n")
    assert render(error).count("\n\n") == 2


def test_an_error_without_a_line(tmp_path):
    with pytest.raises(ManifestUnreadable) as caught:
        load_manifest(tmp_path / "x.yaml", {})
    assert render(caught.value) == f"{tmp_path / 'x.yaml'}: no such file"


def test_a_very_long_line_is_cut(refused):
    error = refused(BASE + "prot: " + "x" * 100_000)
    assert len(render(error)) < 1000
