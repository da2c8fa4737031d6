"""plan and up --dry-run: what would happen, on which GPUs, and why not; nothing happens."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box import Box

from tests.fakes.fake_engine import make_fake_engine
from tests.fakes.nvml import GIB, FakeGpu, FakeNvml, FakeProcess

CANARY = "canary-4f9d1c7e55aa"


def plans(box: Box, *arguments: Any, exits: int = 0) -> dict[str, dict[str, Any]]:
    """``plan --json`` by name."""
    done = box.run("plan", "--json", *arguments, exits=exits)
    return {each["name"]: each for each in json.loads(done.stdout)}


def test_a_plan_starts_and_writes_nothing(fresh_box: Box) -> None:
    box = fresh_box
    manifest = box.manifest(api_key=CANARY, max_model_len=512, env={"MY_TOKEN": CANARY})
    planned = box.run("plan", manifest)
    assert "error" not in planned.stderr
    assert CANARY not in planned.stdout
    head, *lines = planned.stdout.splitlines()
    assert head == "tiny: starts"
    assert "  gpus          none, runs on the CPU" in lines
    assert f"  port          {box.ports.start}" in lines
    assert f"  engine        vLLM 0.32.0+cpu, {box.engine.parent}/vllm" in lines
    assert lines[-1] == "plan: 1 to start"

    # What is printed is a command for a shell.
    first = next(number for number, line in enumerate(lines) if line.strip() == "env -i \\")
    script = "printf '%s\\n' " + "\n".join(lines[first:-1])
    words = subprocess.run(
        ["sh", "-c", script], text=True, stdout=subprocess.PIPE, check=True
    ).stdout.splitlines()
    assert words[:2] == ["env", "-i"]
    serve = words.index("serve")
    environment = dict(word.split("=", 1) for word in words[2 : serve - 1])
    assert words[serve - 1] == f"{box.engine.parent}/vllm"
    assert words[words.index("--max-model-len") + 1] == "512"
    assert environment["VLLM_API_KEY"] == environment["MY_TOKEN"] == "***"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert json.loads(environment["FAKE_VLLM"]) == {"startup": 0.02}

    assert box.run("up", "--dry-run", manifest).stdout == planned.stdout
    (data,) = plans(box, manifest).values()
    assert data["action"] == "start"
    assert data["environment"] == environment
    assert data["command"] == words[serve - 1 :]
    assert data["problems"] == []
    assert CANARY not in json.dumps(data)

    assert not box.state.exists()
    assert not box.socket.parent.exists()
    assert box.processes() == {}


def test_a_plan_is_what_up_does(box: Box) -> None:
    manifest = box.manifest(api_key="generate", args={"load-format": "dummy", "seed": 7})
    (planned,) = plans(box, manifest).values()
    box.run("up", manifest)
    process = Path(f"/proc/{box.tree()['main']}")
    argv = process.joinpath("cmdline").read_bytes().decode().rstrip("\0").split("\0")
    assert argv[-len(planned["command"]) :] == planned["command"]
    environ = process.joinpath("environ").read_bytes().decode().rstrip("\0").split("\0")
    environment = dict(line.split("=", 1) for line in environ)
    masked = planned["environment"].pop("VLLM_API_KEY")
    assert (masked, environment.pop("VLLM_API_KEY")) == ("***", box.key())
    own = {"TMPDIR", "VLLM_RPC_BASE_PATH", "VLLM_PROCESS_NAME_PREFIX"}
    assert planned["environment"] == {n: v for n, v in environment.items() if n not in own}

    unchanged = box.run("plan", manifest).stdout
    assert unchanged.splitlines()[0] == "tiny: unchanged, ready now"
    assert unchanged.splitlines()[-1] == "plan: 1 unchanged"
    assert "command" not in unchanged
    recreated = plans(box, "--recreate", manifest)["tiny"]
    assert (recreated["action"], recreated["port"]) == ("restart", box.record()["port"])


def test_changes_are_told_in_words(box: Box) -> None:
    box.run("up", box.manifest(max_model_len=512, api_key="generate", env={"A": "b"}))
    pid, events = box.tree()["main"], box.events()
    changed = box.manifest(
        max_model_len=1024,
        api_key={"file": "key"},
        env={"A": CANARY},
        args={"load-format": "dummy", "max-num-seqs": 256},
        stop={"drain": "5s"},
    )
    (box.root / "manifests" / "key").write_text("another-key")
    done = box.run("plan", changed)
    assert done.stdout.splitlines()[:6] == [
        "tiny: restarts, since its manifest changed",
        "  api_key: changed",
        "  max_model_len: 512 → 1024",
        "  args.max-num-seqs: added (256)",
        "  env.A: changed",
        "  stop.drain: 30 s → 5 s (applies without a restart)",
    ]
    assert f"  port          {box.record()['port']}" in done.stdout.splitlines()
    assert CANARY not in done.stdout.split("command")[0]
    assert (box.tree()["main"], box.events()) == (pid, events)

    box.run("stop", "tiny")
    assert box.run("plan", changed).stdout.startswith("tiny: starts again, stopped now\n")
    assert box.phase() == "stopped"


def test_what_up_would_refuse(box: Box) -> None:
    box.run("up", box.manifest("other", port=box.ports[3]))
    refused = {
        "docker": {"engine": {"launcher": "docker", "image": "vllm/vllm-openai:v0.32.0"}},
        "replicas": {"replicas": 2},
        "port": {"port": box.ports[3]},
        "key": {"api_key": {"env": "NO_SUCH_VARIABLE"}},
        "engine": {"engine": {"python": "/no/such/python"}},
    }
    words = {
        "docker": "docker is not supported yet by this version",
        "replicas": "more than one replica is not supported yet by this version",
        "port": f"port {box.ports[3]} belongs to the deployment other already",
        "key": "NO_SUCH_VARIABLE is not set",
        "engine": "no program /no/such/python",
    }
    for name, fields in refused.items():
        manifest = box.manifest(name, **fields)
        code = 6 if name == "engine" else 2
        planned = box.run("plan", manifest, exits=code)
        told = box.run("up", manifest, exits=code)
        assert f"{name}: can't run" in planned.stdout
        assert "plan: 1 that can't run" in planned.stdout
        for text in (planned.stdout, told.stderr):
            assert words[name] in text
            assert "error:" in text
            assert "hint:" in text
        assert plans(box, manifest, exits=code)[name]["problems"][0]["cause"]
    for name in ("docker", "replicas"):  # located; a manifest may say so all the same
        manifest = box.root / "manifests" / f"{name}.yaml"
        assert f"error: {manifest}:1:" in box.run("up", manifest, exits=2).stderr
        validated = box.run("validate", manifest)
        assert "ok" in validated.stdout
        assert words[name] in validated.stderr
    assert "replicas: replicas: more than one replica is not" in validated.stderr
    pinned = box.root / "manifests" / "port.yaml"
    pinned.write_text(json.dumps(json.loads(pinned.read_text()), indent=1))  # a line that is short enough
    for command in ("plan", "up"):
        done = box.run(command, pinned, exits=2)
        told = done.stdout + done.stderr
        assert re.search(rf"error: {pinned}:\d+:10: port: port {box.ports[3]} belongs", told)
        assert f"the deployment other already ({box.root}/manifests/other.yaml)" in told
        assert re.search(rf'"port": {box.ports[3]},?\n.*\^', told)
    # The code is that of the first reason, and the others are told too.
    both = box.run(
        "plan", box.root / "manifests" / "engine.yaml", box.root / "manifests" / "replicas.yaml", exits=6
    )
    assert "not supported yet" in both.stdout
    assert set(box.endpoints()) == {"other"}


def test_a_port_that_a_stranger_holds(box: Box) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", box.ports[4]))
        stranger.listen()
        planned = box.run("plan", box.manifest(port=box.ports[4]), exits=6)
    assert f"port {box.ports[4]} is in use by pid {os.getpid()}" in planned.stdout


def test_an_engine_that_up_would_install(box: Box) -> None:
    (planned,) = plans(box, box.manifest(engine=None)).values()
    assert planned["installs"]
    assert planned["problems"] == []
    text = box.run("plan", box.manifest(engine=None)).stdout
    assert f"vLLM {planned['installs']}, which `up` installs first" in text
    assert "vllm serve" in text


def test_several_share_the_ports(box: Box) -> None:
    found = plans(box, *(box.manifest(name) for name in "abc"))
    assert len({each["port"] for each in found.values()}) == 3


# --- GPUs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu_box(nvml: FakeNvml, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A machine with GPUs on which nothing ran yet."""
    with Box(make_fake_engine(tmp_path_factory.mktemp("engine") / "cuda", version="0.32.0")) as made:
        made.env |= {name: nvml.env()[name] for name in ("LD_LIBRARY_PATH", "FAKE_NVML")}
        yield made


def on(memory: str, **gpus: Any) -> dict[str, Any]:
    """Fields of a manifest for GPUs."""
    return {"gpus": {"count": 1, "memory": memory} | gpus}


def test_several_are_placed_one_after_another(gpu_box: Box, nvml: FakeNvml) -> None:
    box = gpu_box
    nvml.write(FakeGpu(processes=(FakeProcess(pid=1, memory=30 * GIB),)), FakeGpu())
    manifests = [box.manifest(name, **on("20GiB")) for name in ("one", "two")]
    done = box.run("plan", *manifests, exits=3)
    assert "  gpus          1: 20.0 of 40.0 GiB" in done.stdout.splitlines()
    assert "two: can't run (start)\n  error: no GPU can take two\n" in done.stdout
    assert "30.0 GiB held by pid 1" in done.stdout
    assert "20.0 GiB leased to one" in done.stdout
    assert "hint: " in done.stdout
    found = plans(box, *manifests, exits=3)
    assert found["one"]["placement"]["gpus"][0]["index"] == 1
    assert found["two"]["problems"][0]["code"] == "placement"
    assert not box.state.exists()


def test_leases_of_what_runs_count_with_and_without_a_supervisor(gpu_box: Box, nvml: FakeNvml) -> None:
    box = gpu_box
    nvml.write(FakeGpu(), FakeGpu())
    box.run("up", box.manifest("one", **on("30GiB", indices=[0])))
    other = box.manifest("two", **on("20GiB", indices=[0]))
    bigger = box.manifest("one", **on("39GiB", indices=[0]))
    for _ in ("with a supervisor", "without one"):
        assert "30.0 GiB leased to one" in box.run("plan", other, exits=3).stdout
        # Its own lease doesn't stand in its way, and it makes room for what comes after it.
        assert plans(box, bigger)["one"]["action"] == "restart"
        small = box.manifest("one", file="small.yaml", **on("10GiB", indices=[0]))
        assert set(plans(box, small, other)) == {"one", "two"}
        if box.supervisor_pid():
            box.kill_supervisor()
    # A declared one that is gone makes room where that is asked for.
    box.serve()
    (box.root / "manifests" / "one.yaml").unlink()
    (box.root / "manifests" / "small.yaml").unlink()
    directory = box.root / "manifests"
    assert plans(box, directory, exits=3)["one"]["action"] == "keep"
    assert plans(box, "--prune", directory)["one"]["action"] == "end"
    assert box.phase("one") == "ready"
