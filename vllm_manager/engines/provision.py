"""Provisioning: a CPU engine is built in an environment of its own, once, completely or not at all."""

from collections.abc import Callable, Mapping
from pathlib import Path

from vllm_manager.engines import marker
from vllm_manager.engines.build import Build, InstallOptions
from vllm_manager.engines.environments import script_problem
from vllm_manager.engines.lock import exclusive
from vllm_manager.engines.progress import InstallProgress, Progress
from vllm_manager.engines.recipes import RECIPES, Recipe
from vllm_manager.errors import EngineInstallFailed
from vllm_manager.types import Engine

__all__ = ["InstallOptions", "InstallProgress", "install_cpu_engine"]


def install_cpu_engine(
    version: str,
    *,
    engines_dir: Path,
    options: InstallOptions,
    report: Callable[[InstallProgress], None],
    recipes: Mapping[str, Recipe] = RECIPES,
) -> Engine:
    """Provision vLLM for the CPU in that version, unless it is there; takes minutes, and blocks.

    Of several installs of one version at once, one builds and the others wait for it.

    Raises:
        EngineInstallFailed: It can't be built; names what couldn't be had, and the way round. Nothing of it
            is left but the log, ``<engines_dir>/cpu-<version>.install.log``.
    """
    if version not in recipes:
        raise EngineInstallFailed(
            cause=f"vLLM {version} for the CPU can't be provisioned",
            hint=f"the versions are {', '.join(recipes)}; `engine.python` uses an environment with another",
            what=f"vLLM {version}",
        )
    recipe = recipes[version]
    progress = Progress(report)
    directory = engines_dir.absolute() / recipe.name
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(
            directory.with_name(f"{recipe.name}.lock"),
            waiting=lambda pid: progress.waiting(f"{recipe.name} is being installed by process {pid or '?'}"),
        ) as lock:
            present = marker.read(directory)
            if present is not None and script_problem(present.executable) is None:
                return present.engine
            log_path = directory.with_name(f"{recipe.name}.install.log")
            with log_path.open("wb") as log:
                return Build(recipe, directory, options, progress, log, lock).build().engine
    except OSError as error:
        raise EngineInstallFailed(
            cause=f"{error.filename or directory}: {error.strerror or error}",
            hint="VLLM_MANAGER_ENGINES_DIR names another directory for engines",
            what=f"vLLM {version}",
        ) from error
