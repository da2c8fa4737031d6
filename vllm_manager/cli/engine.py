"""Commands around engines: engine install, list, remove, check."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_manager.cli.completion import engine_names
from vllm_manager.cli.connect import all_statuses
from vllm_manager.cli.options import JSON
from vllm_manager.cli.output import ago, duration, gibibytes, interactive, note, print_json, table
from vllm_manager.errors import EngineBroken, ManagerError, NotFound
from vllm_manager.paths import engines_dir
from vllm_manager.types import Device, GpuInventory, Status

if TYPE_CHECKING:
    from vllm_manager.engines.check import Finding
    from vllm_manager.engines.marker import InstalledEngine
    from vllm_manager.engines.recipes import Recipe

LINE_EVERY = 15.0
"""Seconds between two lines of progress where lines can't be redrawn."""


@click.group()
def engine() -> None:
    """Install, list, check and remove the vLLM engines that vllm-manager keeps."""


def _normal(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from packaging.version import InvalidVersion, Version

    try:
        return None if value is None else str(Version(value))
    except InvalidVersion:
        raise click.BadParameter(f"{value!r} is no version, such as 0.32.0") from None


@engine.command()
@click.argument("version", required=False, callback=_normal)
@click.option(
    "--device",
    type=click.Choice([str(device) for device in Device]),
    help="What it computes on.  [default: cuda where there is an NVIDIA GPU, else cpu]",
)
@click.option(
    "--python",
    metavar="PATH",
    help="Build it with this interpreter.  [default: a suitable one is looked for]",
)
@click.option("--index-url", metavar="URL", help="Fetch everything from this package index.")
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Take wheels from this directory, and without --index-url from nowhere else; may be repeated.",
)
@JSON
def install(
    version: str | None,
    device: str | None,
    python: str | None,
    index_url: str | None,
    find_links: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Install a vLLM in an environment of its own. Does nothing if it is there.

    For the CPU it takes 3.5 GB and 2 minutes on a fast line, for CUDA 9 GB (16 meanwhile) and 5 minutes.

    Packages come from where pip is configured to look. --index-url and --find-links replace that, and so
    do $VLLM_MANAGER_INDEX_URL and $VLLM_MANAGER_FIND_LINKS (directories with colons between), which `up`
    heeds too. There is no option for a second index: pip takes the higher version of a package, so whoever
    may publish in one of the two could replace what comes from the other (dependency confusion).

    \b
    Examples:
      vllm-manager engine install
      vllm-manager engine install 0.31.0 --device cpu
      vllm-manager engine install 0.32.0 --find-links /media/wheels
    """
    name = install_with_progress(
        version, device=device, python=python, index_url=index_url, find_links=find_links
    )
    if as_json:
        from vllm_manager.engines.kept import installed

        print_json(
            next(each for each in _listed_installed(installed(engines_dir()), []) if each.name == name)
        )


def install_with_progress(
    version: str | None,
    *,
    device: str | None = None,
    python: str | None = None,
    index_url: str | None = None,
    find_links: tuple[Path, ...] = (),
) -> str:
    """Install an engine, showing progress on stderr; returns its name.

    Args:
        version: Of vLLM; None takes the default one.
        device: ``cpu`` or ``cuda``; None looks for a GPU, and says so.
        python: The interpreter to build with; None chooses one.
        index_url: Instead of pip's configuration and of the variables.
        find_links: Likewise.

    Raises:
        EngineInstallFailed: It can't be built.
    """
    from vllm_manager.engines.provision import install_engine, no_recipe
    from vllm_manager.engines.recipes import DEFAULT_VERSION, recipe_for
    from vllm_manager.engines.sources import given

    began = time.monotonic()
    options = given(os.environ, python=python, index_url=index_url, find_links=find_links)
    chosen = Device(device) if device else _default_device()
    recipe = recipe_for(version or DEFAULT_VERSION, chosen)
    if recipe is None:
        raise no_recipe(version or DEFAULT_VERSION, chosen)
    _remark(recipe)
    view = _InstallView()
    try:
        found = install_engine(recipe, engines_dir=engines_dir(), options=options, report=view.show)
    finally:
        view.close()
    note(f"engine {found.name} is installed ({duration(time.monotonic() - began)})")
    return found.name


def _default_device() -> Device:
    inventory = _inventory()
    if inventory.gpus:
        note("installing for CUDA, since there is an NVIDIA GPU (--device cpu installs for the CPU)")
        return Device.CUDA
    note(f"installing for the CPU: {inventory.problem} (--device cuda installs for CUDA all the same)")
    return Device.CPU


def _remark(recipe: "Recipe") -> None:
    from vllm_manager.engines.check import driver_problem
    from vllm_manager.engines.recipes import RECIPES

    if recipe.version not in RECIPES[recipe.device]:
        pinned = ", ".join(RECIPES[recipe.device])
        note(f"note: vLLM {recipe.version} isn't pinned, unlike {pinned}: what the index has is installed")
    if recipe.cuda and (problem := driver_problem(recipe.cuda, _inventory().cuda_version)):
        note(f"note: it won't start on this machine before its NVIDIA driver is updated: {problem}")


def _inventory() -> GpuInventory:
    import asyncio

    from vllm_manager.gpus import GpuReader

    return asyncio.run(GpuReader().read())


class _InstallView:
    """A line that is redrawn on a terminal; elsewhere a line per step, and now and then one more."""

    def __init__(self) -> None:
        self._live = interactive()
        self._step = -1
        self._shown_at = 0.0

    def show(self, progress: "object") -> None:
        from vllm_manager.engines.progress import InstallProgress

        assert isinstance(progress, InstallProgress)  # noqa: S101
        head = f"[{progress.step}/{progress.total}] " if progress.step else ""
        text = f"{head}{progress.what}"
        if progress.detail:
            text += f": {progress.detail}"
        if self._live:
            if progress.step != self._step and self._step >= 0:
                sys.stderr.write("\n")
            self._draw(f"{text}  {duration(progress.elapsed)}")
        elif progress.step != self._step or time.monotonic() - self._shown_at >= LINE_EVERY:
            note(f"{text}  ({duration(progress.elapsed)})")
            self._shown_at = time.monotonic()
        self._step = progress.step

    def _draw(self, text: str) -> None:
        import shutil

        columns = shutil.get_terminal_size().columns
        sys.stderr.write(f"\r\x1b[2K{text[: columns - 1]}")
        sys.stderr.flush()

    def close(self) -> None:
        if self._live and self._step >= 0:
            sys.stderr.write("\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An engine as ``engine list`` shows it.

    Attributes:
        state: ``installed``, ``external`` (the ``vllm`` on PATH, which isn't ours), ``installing``,
            ``interrupted`` or ``failed``.
        size: Bytes on disk.
        flags_cached: Whether its flags have been read, so that checking manifests is fast.
        used_by: The deployments that run on it.
        problem: Why it can't be used, or None.
        hint: What would help, or None.
    """

    name: str
    state: str
    device: Device | None = None
    version: str | None = None
    python_version: str | None = None
    size: int | None = None
    installed_at: float | None = None
    path: str | None = None
    flags_cached: bool = False
    used_by: tuple[str, ...] = ()
    problem: str | None = None
    hint: str | None = None


@engine.command("list")
@JSON
def list_engines(as_json: bool) -> None:
    """List the engines: those that are installed, what installs left unfinished, and the `vllm` on PATH.

    \b
    Example:
      vllm-manager engine list
    """
    from vllm_manager.engines.kept import installed

    statuses = all_statuses()
    found = [
        *_listed_installed(installed(engines_dir()), statuses),
        *_listed_unfinished(),
        *_listed_external(statuses),
    ]
    if as_json:
        print_json(found)
        return
    table(
        ["NAME", "STATE", "DEVICE", "VLLM", "PYTHON", "SIZE", "AGE", "FLAGS", "USED BY"],
        [
            [
                each.name,
                each.state,
                str(each.device or "-"),
                each.version or "-",
                each.python_version or "-",
                "-" if each.size is None else f"{gibibytes(each.size)} GiB",
                "-" if each.installed_at is None else ago(each.installed_at),
                "read" if each.flags_cached else "-",
                ", ".join(each.used_by) or "-",
            ]
            for each in found
        ],
    )
    for each in found:
        if each.problem:
            note(f"{each.name}: {each.problem}" + (f"; {each.hint}" if each.hint else ""))


def _listed_installed(engines: "tuple[InstalledEngine, ...]", statuses: list[Status]) -> list[Listed]:
    from vllm_manager.engines.introspect import engine_flags

    return [
        Listed(
            name=each.name,
            state="installed",
            device=each.device,
            version=each.version,
            python_version=each.python_version,
            size=each.size,
            installed_at=each.installed_at,
            path=str(each.path),
            flags_cached=engine_flags(each.engine, engines_dir(), only_cached=True) is not None,
            used_by=tuple(_users(each.name, statuses)),
        )
        for each in engines
    ]


def _listed_unfinished() -> list[Listed]:
    from vllm_manager.engines.kept import unfinished

    found = []
    for each in unfinished(engines_dir()):
        if each.installer is not None:
            state, problem, hint = (
                "installing",
                f"is being installed by process {each.installer or '?'}",
                None,
            )
        else:
            state = "interrupted" if each.files else "failed"
            problem = "its install was interrupted" if each.files else "its install failed"
            problem += f" (log: {each.log})" if each.log else ""
            hint = f"`vllm-manager engine remove {each.name}` deletes what is left"
        found.append(Listed(name=each.name, state=state, size=each.size, problem=problem, hint=hint))
    return found


def _listed_external(statuses: list[Status]) -> list[Listed]:
    from vllm_manager.engines.find import on_path
    from vllm_manager.engines.introspect import engine_flags

    try:
        found = on_path()
    except EngineBroken as error:
        return [Listed(name="vllm on PATH", state="external", problem=error.cause, hint=error.hint)]
    if found is None:
        return []
    return [
        Listed(
            name=found.name,
            state="external",
            device=found.device,
            version=found.version,
            path=str(Path(found.executable).parents[1]),
            flags_cached=engine_flags(found, engines_dir(), only_cached=True) is not None,
            used_by=tuple(_users(found.name, statuses)),
        )
    ]


@engine.command()
@click.argument("name", shell_complete=engine_names)
def remove(name: str) -> None:
    """Remove an engine that no deployment runs on, or what an install left of it.

    \b
    Example:
      vllm-manager engine remove cpu-0.32.0
    """
    from vllm_manager.engines.kept import remove as remove_engine

    if users := _users(name, all_statuses()):
        raise ManagerError(
            cause=f"engine {name} runs {', '.join(users)}",
            hint=f"`vllm-manager down {' '.join(users)}` first",
        )
    remove_engine(name, engines_dir())
    note(f"engine {name} is removed")


def _users(name: str, statuses: list[Status]) -> list[str]:
    return [status.name for status in statuses if status.engine == name and status.phase.live]


@engine.command()
@click.argument("name", required=False, shell_complete=engine_names)
@JSON
def check(name: str | None, as_json: bool) -> None:
    """Check that an engine, or each of them, still works here.

    Looks at its files and packages, imports it, reads its flags, and looks at what it needs of this machine:
    about 20 s for each. Exit code 6 says that something is wrong.

    \b
    Examples:
      vllm-manager engine check
      vllm-manager engine check cuda-0.32.0
    """
    from vllm_manager.engines.check import check as findings_of

    engines = _named(name)
    inventory = _inventory() if any(each.device is Device.CUDA for each in engines) else None
    results: list[tuple[InstalledEngine, list[Finding]]] = []
    for each in engines:
        if not as_json:
            click.echo(f"{each.name} in {each.path}")
        findings = []
        for finding in findings_of(each, engines_dir(), inventory=inventory):
            findings.append(finding)
            if not as_json:
                _print_finding(finding)
        results.append((each, findings))
    if as_json:
        print_json([{"name": each.name, "findings": findings} for each, findings in results])
    broken = [each.name for each, findings in results if any(finding.problem for finding in findings)]
    if broken:
        raise EngineBroken(cause=f"{', '.join(broken)} can't be relied on", hint="see above what would help")
    if not engines:
        note("no engine is installed; `vllm-manager engine install` installs one")


def _named(name: str | None) -> "tuple[InstalledEngine, ...]":
    from vllm_manager.engines.kept import installed, unfinished

    engines = installed(engines_dir())
    if name is None:
        return engines
    if found := tuple(each for each in engines if each.name == name):
        return found
    if any(each.name == name for each in unfinished(engines_dir())):
        device, _, version = name.partition("-")
        raise EngineBroken(
            cause=f"the engine {name} isn't installed completely",
            hint=f"`vllm-manager engine install {version} --device {device}` installs it",
        )
    raise NotFound(
        cause=f"no engine {name!r} in {engines_dir()}",
        hint="`vllm-manager engine list` shows them",
        name=name,
        known=tuple(each.name for each in engines),
    )


def _print_finding(finding: "Finding") -> None:
    click.echo(
        f"  {'FAILED' if finding.problem else 'ok':<6}  {finding.what}: {finding.problem or finding.detail}"
    )
    if finding.hint:
        click.echo(f"          hint: {finding.hint}")
