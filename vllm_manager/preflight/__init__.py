"""What can be checked before a start: the flags, and the files that vLLM opens only after the weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_manager.engines.find import engine_for
from vllm_manager.engines.introspect import engine_flags
from vllm_manager.errors import EngineError, EngineMissing, ManifestError
from vllm_manager.flag_check import problems
from vllm_manager.manifest.explain import Problem
from vllm_manager.manifest.loaded import Loaded
from vllm_manager.manifest.model import Deployment
from vllm_manager.preflight import adapters, context, model_files, plugins, ssl_files, tokenizers
from vllm_manager.types import EngineFlags


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found.

    Attributes:
        errors: Why the deployment wouldn't start, located in the manifest.
        skipped: Why the flags couldn't be checked, or None where they were.
        no_engine: That the manifest names an engine which isn't there and can't be installed; located.
        flags: The engine's, as they render the command; None where they weren't checked.
    """

    errors: tuple[ManifestError, ...] = ()
    skipped: str | None = None
    no_engine: ManifestError | None = None
    flags: EngineFlags | None = None


def preflight(
    loaded: Loaded,
    environment: Mapping[str, str],
    engines_dir: Path,
    report: Callable[[str], None] | None = None,
) -> Preflight:
    """Check a deployment against its engine and the files that it names; nothing is fetched or started.

    Takes about 10 s the first time that an engine is met, while its flags are read. Blocks.

    Args:
        loaded: The deployment.
        environment: Where the engine and the hub's cache are looked for.
        engines_dir: Where engines were provisioned.
        report: Gets a line for what takes long.
    """
    deployment = loaded.deployment
    no_engine = None
    try:
        flags, why = _flags(deployment, environment, engines_dir, report)
    except EngineError as error:
        flags, why, no_engine = None, error.cause, _located(loaded, error)
    found = problems(deployment, flags) if flags else []
    files = model_files.find(deployment, environment)
    found += _late_checks(deployment, environment, files, flags)
    errors: dict[tuple[str | int, ...], ManifestError] = {}
    for problem in found:  # the first at a place explains the others
        located = loaded.error(problem.path, problem.cause, problem.hint, at_key=problem.at_key)
        errors.setdefault(problem.path, located)
    return Preflight(
        errors=tuple(sorted(errors.values(), key=lambda error: (error.line or 0, error.column or 0))),
        skipped=None if flags else f"flags not checked: {why}",
        no_engine=no_engine,
        flags=flags,
    )


def _flags(
    deployment: Deployment,
    environment: Mapping[str, str],
    engines_dir: Path,
    report: Callable[[str], None] | None,
) -> tuple[EngineFlags | None, str]:
    """The engine's flags, or None and why there are none. Raises EngineError where there is no engine."""
    if deployment.engine.launcher != "process":
        return None, "the vLLM in an image can't be asked"
    engine = engine_for(deployment, environment, engines_dir)
    said = [f"those of {engine.name} are unknown"]

    def say(line: str) -> None:
        said.append(line)
        if report is not None:
            report(line)

    return engine_flags(engine, engines_dir, report=say), said[-1]


def _located(loaded: Loaded, error: EngineError) -> ManifestError | None:
    engine = loaded.deployment.engine
    field = "python" if engine.python else "version" if engine.version else None
    if field is None or (isinstance(error, EngineMissing) and error.install is not None):
        return None  # the manifest is right: something is yet to be installed
    return loaded.error(("engine", field), error.cause.removeprefix(f"engine.{field}: "), error.hint)


def _late_checks(
    deployment: Deployment,
    environment: Mapping[str, str],
    files: model_files.ModelFiles,
    flags: EngineFlags | None,
) -> Iterator[Problem]:
    yield from ssl_files.problems(deployment.args)
    yield from plugins.problems(deployment.args)
    yield from adapters.problems(deployment, files, flags)
    yield from context.problems(deployment, environment, files)
    if flags is not None:
        yield from tokenizers.problems(deployment, files, flags)
