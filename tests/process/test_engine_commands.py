"""The commands around engines, on engines from tiny wheels: install, list, check, remove."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fake_engine import make_fake_engine
from tests.fakes.nvml import FakeGpu, FakeNvml
from tests.process.box import Box
from tests.process.engine_wheels import (
    NOBODY,
    VERSION,
    forget_pip_configuration,
    make_recipe,
    make_wheels,
    with_recipes,
)
from vllm_manager.engines import marker
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.types import Device

COMMAND = "from vllm_manager.cli import main; main()"


class Engines:
    """Both engines' wheels, and a machine whose engines directory begins empty."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "engines"
        self.wheels = {device: make_wheels(root / f"{device}-wheels", device) for device in Device}
        self.recipes = {device: make_recipe(device, self.wheels[device]) for device in Device}
        self.nvml = FakeNvml(root)
        self.nvml.break_library()
        self.env = {
            "VLLM_MANAGER_ENGINES_DIR": str(self.directory),
            "VLLM_MANAGER_STATE_DIR": str(root / "state"),
            "VLLM_MANAGER_SOCKET": str(root / "socket"),
            "PATH": "/usr/bin:/bin",
        }

    def run(
        self, *arguments: Any, exits: int = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``vllm-manager engine``; these recipes are all it knows."""
        recipes = self.recipes.values()
        done = subprocess.run(
            with_recipes(COMMAND, recipes, "engine", *map(str, arguments)),
            env=self.nvml.env() | self.env | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == exits, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done

    def install(self, device: Device, *arguments: str) -> None:
        self.run("install", "--device", device, "--find-links", self.wheels[device], *arguments)

    def list(self, **options: Any) -> dict[str, dict[str, Any]]:
        """``engine list --json`` by name."""
        return {each["name"]: each for each in json.loads(self.run("list", "--json", **options).stdout)}


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engines:
    forget_pip_configuration(tmp_path / "home", monkeypatch)
    return Engines(tmp_path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Both engines, installed; tests leave them as they are."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("both")
        forget_pip_configuration(root / "home", patch)
        made = Engines(root)
        for device in Device:
            made.install(device)
        yield made


def gpu(root: Path, *, cuda: int) -> FakeNvml:
    """A machine with a GPU, whose driver supports that CUDA."""
    directory = root / f"driver-{cuda}"
    directory.mkdir()
    made = FakeNvml(directory)
    made.write(FakeGpu(), cuda=cuda)
    return made


def findings(engines: Engines, name: str, exits: int) -> dict[str, dict[str, Any]]:
    [result] = json.loads(engines.run("check", name, "--json", exits=exits).stdout)
    assert result["name"] == name
    return {finding["what"]: finding for finding in result["findings"]}


# --- install -----------------------------------------------------------------------------------------


def test_install_takes_cuda_where_there_is_a_gpu_and_its_places_from_the_variables(engines: Engines) -> None:
    variables = {"VLLM_MANAGER_FIND_LINKS": str(engines.wheels[Device.CUDA])}
    engines.nvml = gpu(engines.root, cuda=13000)
    done = engines.run("install", "--json", env=variables)
    assert "installing for CUDA, since there is an NVIDIA GPU" in done.stderr
    assert json.loads(done.stdout)["name"] == f"cuda-{VERSION}"
    assert "driver" not in done.stderr


def test_install_says_why_it_takes_the_cpu_and_that_a_version_has_no_pins(engines: Engines) -> None:
    done = engines.run("install", "--find-links", "/nowhere", exits=6)
    assert "installing for the CPU: the NVIDIA driver's library" in done.stderr
    done = engines.run("install", "0.29", "--device", "cuda", "--find-links", "/nowhere", exits=6)
    assert f"vLLM 0.29.0 isn't pinned, unlike {VERSION}" in done.stderr


def test_install_warns_of_a_driver_that_is_too_old_before_it_fetches_anything(engines: Engines) -> None:
    engines.nvml = gpu(engines.root, cuda=12080)
    done = engines.run("install", "--device", "cuda", "--find-links", "/nowhere", exits=6)
    assert "needs a driver for CUDA 13.0, and this one supports CUDA up to 12.8" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("install", "latest"), "'latest' is no version, such as 0.32.0"),
        (("install", "--device", "tpu"), "'tpu' is not one of 'cpu', 'cuda'"),
        (("install", "--extra-index-url", "http://x"), "there is no option --extra-index-url"),
    ],
)
def test_what_cannot_be_asked_for_is_a_usage_error(
    engines: Engines, arguments: tuple[str, ...], said: str
) -> None:
    assert said in engines.run(*arguments, exits=2).stderr


def test_a_cpu_version_without_a_recipe_names_those_that_have_one(engines: Engines) -> None:
    done = engines.run("install", "9.9", "--device", "cpu", exits=6)
    assert "vLLM 9.9.0 for the CPU can't be provisioned" in done.stderr
    assert f"hint: the versions are {VERSION}" in done.stderr


# --- list, remove ------------------------------------------------------------------------------------


def test_engines_are_listed_with_their_devices_and_the_one_on_path(both: Engines, tmp_path: Path) -> None:
    python = make_fake_engine(tmp_path / "own", version="0.32.0")
    path = {"PATH": f"{python.parent}:/usr/bin:/bin"}
    found = both.list(env=path)
    assert {(each["name"], each["state"], each["device"], each["version"]) for each in found.values()} == {
        (f"cpu-{VERSION}", "installed", "cpu", f"{VERSION}+cpu"),
        (f"cuda-{VERSION}", "installed", "cuda", VERSION),
        (str(python.with_name("vllm")), "external", "cuda", "0.32.0"),
    }
    assert found[f"cpu-{VERSION}"]["size"] > 1_000_000
    table = both.run("list", env=path).stdout
    assert f"cuda-{VERSION}" in table
    assert "external" in table


def test_a_broken_vllm_on_path_is_listed_with_what_is_wrong(engines: Engines, tmp_path: Path) -> None:
    vllm = tmp_path / "own" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text("#!/nowhere/python\n")
    vllm.chmod(0o755)
    done = engines.run("list", env={"PATH": f"{vllm.parent}:/usr/bin:/bin"})
    assert "needs /nowhere/python, which isn't there" in done.stderr


def test_what_an_interrupted_install_left_is_listed_with_the_command_that_removes_it(
    engines: Engines,
) -> None:
    (engines.directory / "cuda-0.31.0/lib").mkdir(parents=True)
    (engines.directory / "cuda-0.31.0.install.log").write_text("pip")
    done = engines.run("list")
    assert "interrupted" in done.stdout
    assert "`vllm-manager engine remove cuda-0.31.0` deletes what is left" in done.stderr
    assert engines.list()["cuda-0.31.0"]["state"] == "interrupted"
    check = engines.run("check", "cuda-0.31.0", exits=6)
    assert "hint: `vllm-manager engine install 0.31.0 --device cuda` installs it" in check.stderr
    engines.run("remove", "cuda-0.31.0")
    assert os.listdir(engines.directory) == ["cuda-0.31.0.lock"]
    assert engines.list() == {}


def test_a_failed_install_is_listed_with_its_log(engines: Engines) -> None:
    engines.run("install", "--device", "cpu", "--index-url", NOBODY, exits=6)
    listed = engines.list()[f"cpu-{VERSION}"]
    assert listed["state"] == "failed"
    assert str(engines.directory / f"cpu-{VERSION}.install.log") in listed["problem"]


def test_an_engine_that_is_not_there_can_be_neither_checked_nor_removed(both: Engines) -> None:
    for command in ("check", "remove"):
        assert "no engine 'cpu-1.0'" in both.run(command, "cpu-1.0", exits=4).stderr


# --- check -------------------------------------------------------------------------------------------


def test_a_good_engine_passes_every_check(both: Engines) -> None:
    found = findings(both, f"cpu-{VERSION}", exits=0)
    assert set(found) == {"program", "files", "packages", "system library", "imports", "flags"}
    assert not any(finding["problem"] for finding in found.values())
    assert both.list()[f"cpu-{VERSION}"]["flags_cached"]


def test_an_engine_for_cuda_needs_a_driver_too(both: Engines, tmp_path: Path) -> None:
    without_driver = findings(both, f"cuda-{VERSION}", exits=6)
    assert {what for what, finding in without_driver.items() if finding["problem"]} == {"driver"}
    assert "NVIDIA driver" in without_driver["driver"]["hint"]
    assert without_driver["imports"]["detail"] == "for CUDA 13.0"

    for cuda, exits in ((12080, 6), (13000, 0)):
        env = gpu(tmp_path, cuda=cuda).env() | both.env
        found = json.loads(both.run("check", f"cuda-{VERSION}", "--json", exits=exits, env=env).stdout)
        [driver] = [each for each in found[0]["findings"] if each["what"] == "driver"]
        assert ("supports CUDA up to 12.8" in str(driver["problem"])) == bool(exits)


def test_check_without_a_name_looks_at_every_engine_and_tells_which_cannot_be_relied_on(
    both: Engines,
) -> None:
    done = both.run("check", exits=6)
    assert f"cpu-{VERSION} in {both.directory}" in done.stdout
    assert "FAILED  driver" in done.stdout
    assert f"error: cuda-{VERSION} can't be relied on" in done.stderr


def test_damage_is_found_and_the_hint_repairs_it(engines: Engines) -> None:
    engines.install(Device.CPU)
    environment = engines.directory / f"cpu-{VERSION}"
    [dep] = environment.glob("lib/*/site-packages/dep/__init__.py")
    for directory in (dep.parent, *environment.glob("lib/*/site-packages/dep-*.dist-info")):
        shutil.rmtree(directory)
    [torch] = environment.glob("lib/*/site-packages/torch/__init__.py")
    torch.write_text("")

    found = findings(engines, f"cpu-{VERSION}", exits=6)
    assert "torch/__init__.py" in found["files"]["problem"]
    assert "requires dep, which is not installed" in found["packages"]["problem"]
    assert found["imports"]["problem"].startswith("it can't be imported: ")
    assert not found["program"]["problem"]
    engines.run("remove", f"cpu-{VERSION}")
    engines.install(Device.CPU)
    assert not any(each["problem"] for each in findings(engines, f"cpu-{VERSION}", exits=0).values())


def test_no_engine_at_all_is_said(engines: Engines) -> None:
    assert "no engine is installed" in engines.run("check").stderr


# --- engines in use ----------------------------------------------------------------------------------


def test_an_engine_that_runs_a_deployment_names_it_and_is_not_removed(fresh_box: Box) -> None:
    engines = fresh_box.root / "engines"
    make_fake_engine(engines / "cpu-0.31.0", version="0.31.0+cpu")
    marker.write(
        InstalledEngine(
            name="cpu-0.31.0",
            version="0.31.0+cpu",
            path=engines / "cpu-0.31.0",
            size=1,
            python_version="3.11.2",
            installed_at=0.0,
        )
    )
    fresh_box.run("up", fresh_box.manifest(engine={"version": "0.31.0"}))
    [listed] = json.loads(fresh_box.run("engine", "list", "--json").stdout)
    assert (listed["name"], listed["used_by"]) == ("cpu-0.31.0", ["tiny"])
    refused = fresh_box.run("engine", "remove", "cpu-0.31.0", exits=1)
    assert "engine cpu-0.31.0 runs tiny" in refused.stderr
    assert "hint: `vllm-manager down tiny` first" in refused.stderr
    fresh_box.run("down", "tiny", "--now")
    fresh_box.run("engine", "remove", "cpu-0.31.0")
    assert not (engines / "cpu-0.31.0").exists()
