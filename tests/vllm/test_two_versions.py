"""Two versions of vLLM at once, each in its own environment."""

import json
from collections.abc import Iterator

import pytest

from tests.contract.vllm_instances import lacking
from tests.process.box import Box, post
from vllm_manager import registry
from vllm_manager.engines.kept import installed
from vllm_manager.paths import engines_dir

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(500)]

VERSIONS = {"old": "0.30.0", "new": "0.32.0"}
START = 400.0


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """An isolated machine with the installed engines of both versions."""
    found = {engine.name: engine for engine in installed(engines_dir())}
    missing = [version for version in VERSIONS.values() if f"cpu-{version}" not in found]
    if missing:
        reason = "; ".join(f"`vllm-manager engine install {each} --device cpu` makes one" for each in missing)
        lacking(f"no engine here: {reason}")
    with Box(found[f"cpu-{VERSIONS['new']}"].path / "bin" / "python") as made:
        made.env["VLLM_MANAGER_ENGINES_DIR"] = str(engines_dir())
        yield made


def test_two_versions_run_side_by_side_and_both_answer(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = [
        box.manifest(
            name,
            engine={"version": version},
            enable_auto_tool_choice=True,
            tool_call_parser="llama3_json",
            max_model_len=512,
            args={"load-format": "dummy", "enforce-eager": True},
            env={"VLLM_CPU_KVCACHE_SPACE": "1"},
        )
        for name, version in VERSIONS.items()
    ]
    box.run("up", *manifests, timeout=START)

    monkeypatch.setenv("VLLM_MANAGER_STATE_DIR", str(box.state))
    for name, version in VERSIONS.items():
        root = box.endpoints()[name]["root_url"]
        assert box.ps()[name]["engine"] == f"cpu-{version}"
        assert box.endpoints()[name]["phase"] == "ready"
        with registry.client(name) as client:
            assert client.chat("hello", max_tokens=5).usage.completion_tokens >= 1
        chat = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        status, answer = post(f"{root}/v1", "/chat/completions", chat)
        assert (status, answer["model"]) == (200, name)
        assert "v" + version in box.run("logs", "-n", "500", name).stdout

    listed = {each["name"]: each for each in json.loads(box.run("engine", "list", "--json").stdout)}
    for name, version in VERSIONS.items():
        assert listed[f"cpu-{version}"]["used_by"] == [name]

    box.run("down", "--all")
    assert box.left_of_instances() == []
