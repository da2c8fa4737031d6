"""Provisioning: an engine is built in an environment of its own, once, completely or not at all."""

from collections.abc import Callable
from pathlib import Path

from vllm_manager.engines import marker
from vllm_manager.engines.build import Build
from vllm_manager.engines.environments import script_problem
from vllm_manager.engines.layout import layout
from vllm_manager.engines.lock import exclusive
from vllm_manager.engines.progress import InstallProgress, Progress
from vllm_manager.engines.recipes import RECIPES, Recipe, spelling
from vllm_manager.engines.sources import InstallOptions
from vllm_manager.errors import EngineInstallFailed
from vllm_manager.types import Device, Engine

__all__ = ["InstallOptions", "InstallProgress", "install_engine", "no_recipe"]


def install_engine(
    recipe: Recipe,
    *,
    engines_dir: Path,
    options: InstallOptions,
    report: Callable[[InstallProgress], None],
) -> Engine:
    """Provision an engine, unless it is there; takes minutes, and blocks.

    Of several installs of one engine at once, one builds and the others wait for it.

    Raises:
        EngineInstallFailed: It can't be built; names what couldn't be had, and the way round. Nothing of it
            is left but the log, ``<engines_dir>/<name>.install.log``.
    """
    progress = Progress(report, total=5 if recipe.torch else 4)
    files = layout(recipe.name, engines_dir)
    try:
        files.directory.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(
            files.lock,
            waiting=lambda pid: progress.waiting(f"{recipe.name} is being installed by process {pid or '?'}"),
        ) as lock:
            present = marker.read(files.directory)
            if present is not None and script_problem(present.executable) is None:
                return present.engine
            with files.log.open("wb") as log:
                return Build(recipe, files.directory, options, progress, log, lock).build().engine
    except OSError as error:
        raise EngineInstallFailed(
            cause=f"{error.filename or files.directory}: {error.strerror or error}",
            hint="VLLM_MANAGER_ENGINES_DIR names another directory for engines",
            what=f"vLLM {recipe.version}",
        ) from error


def no_recipe(version: str, device: Device) -> EngineInstallFailed:
    """What to raise where ``recipe_for`` has none."""
    version = spelling(version, device)
    return EngineInstallFailed(
        cause=f"vLLM {version} for the {device.upper()} can't be provisioned",
        hint=f"the versions are {', '.join(RECIPES[device])}, or name an environment as `engine.python`",
        what=f"vLLM {version}",
    )
