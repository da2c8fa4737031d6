"""The JSON Schema: current, described, and of the same opinion as the reader."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from vllm_manager.manifest import schema
from vllm_manager.manifest.reference import markdown
from vllm_manager.manifest.several import MERGED

MANIFESTS = Path(__file__).parents[2] / "manifests"
BASE = {"name": "a", "model": "o/r"}

SCHEMA = Draft202012Validator(schema.json_schema())


def test_the_committed_schema_is_current():
    committed = json.loads((MANIFESTS / "schema.json").read_text())
    assert committed == schema.json_schema(), f"stale; refresh it with: {schema.REFRESH}"


def test_it_is_a_schema():
    Draft202012Validator.check_schema(schema.json_schema())


def test_every_field_is_described():
    for owner in schema.json_schema()["$defs"].values():
        for name, field in owner.get("properties", {}).items():
            assert field.get("description"), name


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_follow_it(path):
    for document in yaml.safe_load_all(path.read_text()):
        SCHEMA.validate(document)


VARIABLE = [
    "port", "replicas", "max_model_len", "gpu_memory_utilization", "enable_auto_tool_choice", "runner",
    "dtype", "gpus", "host", "model", "tensor_parallel_size", "served_model_name",
]  # fmt: skip


@pytest.mark.parametrize(
    "manifest",
    [
        BASE,
        BASE | {"api_key": "generate", "gpus": "none", "served_model_name": "x", "max_model_len": "16K"},
        BASE | {"api_key": {"env": "KEY"}},
        BASE | {"gpus": {"count": "${N}", "indices": ["${I}", 1], "memory": {"env": "M"}}},
        BASE | {"readiness": {"timeout": "${T:-5m}", "warm_up": {"env": "W", "default": True}}},
        BASE | {"env": {"A": "${B}", "C": {"env": "D"}}, "lora_modules": {"x": {"env": "L"}}},
        {"deployments": [BASE]},
        {"defaults": {"model": "o/r", "args": {"a1": 1}}, "deployments": [{"name": "a"}]},
        {"defaults": {"env": {"A": "b"}}, "deployments": [BASE | {"env": {"A": None}, "args": {"a1": None}}]},
        *({"defaults": {}, "deployments": [BASE | {name: None}]} for name in MERGED),
        {
            "defaults": {},
            "deployments": [
                BASE
                | {"readiness": {"timeout": None}, "gpus": {"count": None}, "engine": {"launcher": None}}
                | {"stop": {"drain": None}, "lora_modules": {"x": None}, "restart": {"policy": None}}
            ],
        },
        *(BASE | {name: "${V}"} for name in VARIABLE),
        *(BASE | {name: {"env": "V", "default": 1}} for name in VARIABLE),
    ],
    ids=str,
)
def test_what_people_write_follows_it(manifest):
    SCHEMA.validate(manifest)


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"name": "a"},
        BASE | {"prot": 1},
        BASE | {"port": "80"},
        BASE | {"port": 70000},
        BASE | {"port": {"env": "A", "defualt": 1}},
        BASE | {"gpus": {"cuont": 1}},
        BASE | {"api_key": {"env": "KEY", "default": "x"}},
        BASE | {"engine": {"env": "X"}},
        {"deployments": []},
        {"deployments": BASE},
        {"deployments": [{"model": "o/r"}]},
        {"deployments": [BASE | {"prot": 1}]},
        {"deployments": [BASE], "port": 80},
        {"defaults": {"port": 80}, "deployments": [BASE]},
        {"defaults": {"name": "a"}, "deployments": [BASE]},
        {"defaults": {"prot": 80}, "deployments": [BASE]},
        {"defaults": {"model": "o/r"}},
    ],
    ids=str,
)
def test_what_is_no_manifest_does_not(manifest):
    assert not SCHEMA.is_valid(manifest)


# --- the reference ------------------------------------------------------------------------------------


def test_the_reference_names_every_field_and_every_example():
    page = markdown()
    for name in schema.json_schema()["$defs"]["Deployment"]["properties"]:
        assert f"| `{name}` |" in page, name
    for path in MANIFESTS.glob("*.yaml"):
        assert f"[{path.name}]({path.name})" in page, path.name


def test_the_reference_says_what_is_merged():
    page = markdown()
    sentence = page[page.index("wins over the default") : page.index("are merged key by key")]
    assert {word.strip("`,\n") for word in sentence.split() if word.startswith("`")} == MERGED


def test_the_example_in_the_reference_is_valid(tmp_path):
    from vllm_manager.manifest.load import load_manifest

    path = tmp_path / "m.yaml"
    path.write_text(markdown().split("```yaml\n")[1].split("```")[0])
    chat, embed = load_manifest(path, {})
    assert chat.deployment.args == {"max-num-seqs": 64, "enforce-eager": True}
    assert (chat.deployment.api_key, embed.deployment.api_key) == ("generate", None)
