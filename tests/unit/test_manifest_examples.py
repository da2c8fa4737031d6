"""The bundled manifests: each is good, all are good together, and no mutation of them breaks the reader."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_manager.errors import ManifestError
from vllm_manager.manifest.load import load_manifest, load_manifests
from vllm_manager.manifest.report import render
from vllm_manager.manifest.secrets import resolve_key

MANIFESTS = Path(__file__).parents[2] / "manifests"
EXAMPLES = sorted(MANIFESTS.glob("*.yaml"))
SINGLE = [path for path in EXAMPLES if path.stem != "shared-gpu"]


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.name)
def test_each_is_a_deployment_of_its_name(path):
    (loaded,) = load_manifest(path, {})
    assert loaded.deployment.name == path.stem
    assert resolve_key(loaded, {}) is None


def test_all_are_good_together():
    names = [loaded.deployment.name for loaded in load_manifests([MANIFESTS], {})]
    assert len(names) == len(EXAMPLES) + 1
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_points_editors_to_the_schema_and_is_short(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=schema.json"
    assert len(lines) < 30
    assert max(map(len, lines)) <= 115


def test_the_two_that_share_a_gpu_fit_on_one():
    loaded = load_manifest(MANIFESTS / "shared-gpu.yaml", {})
    assert sum(each.deployment.request.memory for each in loaded) < 44 * 2**30  # what CUDA sees of 48 GB
    assert {each.deployment.request.count for each in loaded} == {1}


def test_the_large_one_takes_four_gpus():
    (loaded,) = load_manifest(MANIFESTS / "tensor-parallel.yaml", {})
    assert loaded.deployment.request.count == 4


# --- anything at all ----------------------------------------------------------------------------------

_PIECES = [
    ":", "- ", "{", "}", "[", "]", "&a ", "*a", "!!python/object:os.system ", "! ", "|", ">", "'", '"', "\t",
    "\n", "\r", "#", "%", "@", "`", "<<: ", "? ", "---\n", "...\n", "no", "1:30", "0777", "~", "1e999",
    ".nan", "9" * 5000, "\\0", "\u2028", "\x85", "\ufeff", "\U0001f600", "  ", "[" * 2000, "{a: " * 500,
    "null", "-1", "0x1F", "1_0", "\ud7ff", "\x00", '"\\0"', '"\\ud800"', "../" * 50, "~nobody/", "name: ",
    "api_key: ", "env: ", "args: ", "deployments:\n", "defaults:\n", "${A}", "${B}", "${", "$${", "${C:-x}",
    "{env: A}", "{env: B, default: 1}", "lora_modules: ", "replicas: 2\n", "gpus: ",
    "\n---\nname: x\nmodel: a/b\n",
]  # fmt: skip
_ENVIRON = {"A": "s3cr3t-value\0", "C": "8000"}
_TEXTS = [path.read_text() for path in EXAMPLES]


@st.composite
def mutated(draw):
    text = draw(st.sampled_from(_TEXTS))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 30))
        piece = draw(st.sampled_from(_PIECES) | st.text(max_size=5) | st.just(text[at : at + 40]))
        text = text[:at] + piece + text[at + length :]
    return text


def outcome(path):
    try:
        for loaded in load_manifests([path], _ENVIRON):
            resolve_key(loaded, _ENVIRON)
            json.dumps(loaded.deployment.to_json())
            loaded.error(("args", "max-num-seqs", 3, "x"), "wrong")
    except ManifestError as error:
        shown = json.dumps(error.payload(), default=str) + render(error)
        assert not re.search("s3cr3t", shown)
        return error.exit_code
    return 0


@settings(max_examples=400, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=mutated() | st.text())
def test_nothing_but_a_manifest_error_comes_out_of_any_text(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert outcome(path) in (0, 2)


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200))
def test_nor_out_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    assert outcome(path) in (0, 2)
