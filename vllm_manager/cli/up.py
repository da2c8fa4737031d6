"""The command up."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_manager.cli.options import FILES, JSON, NO_WAIT, PRUNE, RECREATE, TIMEOUT
from vllm_manager.cli.output import note, print_error
from vllm_manager.cli.waiting import Deadline, finish, print_usage
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import EngineMissing, ManagerError, ManifestConflictError, NotFound
from vllm_manager.types import Action, Decision, Device

if TYPE_CHECKING:
    from vllm_manager.manifest.loaded import Loaded


@click.command()
@FILES
@NO_WAIT
@TIMEOUT
@RECREATE
@PRUNE
@click.option("--dry-run", is_flag=True, help="Only show what would happen, as `plan` does.")
@JSON
def up(
    files: tuple[Path, ...],
    no_wait: bool,
    timeout: str | None,
    recreate: bool,
    prune: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring the deployments of these manifests up.

    Starts a supervisor in the background if none runs, installs the engine if it is missing, shows the start,
    and returns when each model has answered a real request. An unchanged deployment that runs is left alone,
    one that was stopped runs again, a changed one is stopped and started anew. Of a directory, its manifests.

    \b
    Examples:
      vllm-manager up manifests/tiny.yaml
      vllm-manager up -d chat.yaml embed.yaml
      vllm-manager up --dry-run --prune models/
    """
    if dry_run:
        from vllm_manager.cli.plan import show_plan

        show_plan(files, recreate=recreate, prune=prune, as_json=as_json)
        return
    from vllm_manager.background import ensure_supervisor
    from vllm_manager.cli.manifests import check_flags, load_supported
    from vllm_manager.manifest.secrets import resolve_key

    deadline = Deadline(timeout)
    # Everything that can be wrong with the input is found before anything is started.
    manifests = [(loaded, resolve_key(loaded, os.environ)) for loaded in load_supported(files)]
    for loaded, _ in manifests:
        _ensure_engine(loaded)
    check_flags([loaded for loaded, _ in manifests])
    client = ensure_supervisor()
    _warn_of_logout()
    _end_undeclared(client, files, [loaded.deployment.name for loaded, _ in manifests], prune=prune)
    names: list[str] = []
    refused: dict[str, ManagerError] = {}
    for loaded, key in manifests:
        name = loaded.deployment.name
        names.append(name)
        try:
            decision = _bring_up(client, loaded, key, recreate=recreate)
        except ManagerError as error:
            print_error(error)
            refused[name] = error
            continue
        for line in _told(decision):
            note(line)
        if no_wait and decision.action is Action.START:
            note(f"{name}: starting; `vllm-manager wait {name}` returns when it is ready")
    finish(client, names, refused, deadline, no_wait=no_wait, as_json=as_json, show=print_usage)


def _ensure_engine(loaded: "Loaded") -> None:
    from vllm_manager.command import inherited
    from vllm_manager.engines.find import engine_for
    from vllm_manager.paths import engines_dir

    deployment = loaded.deployment
    try:
        engine_for(deployment, inherited(os.environ), engines_dir())
    except EngineMissing as error:
        if deployment.request.count:
            from vllm_manager.gpus.nvml import read_inventory
            from vllm_manager.placement import place

            # Without a GPU that could take it, the missing engine is the lesser problem.
            place(deployment.request, read_inventory(), [], deployment=deployment.name)
        if error.install is None:
            raise
        from vllm_manager.cli.engine import install_with_progress

        needed = f"vLLM {error.install} for {'the CPU' if error.device == Device.CPU else 'CUDA'}"
        note(f"{deployment.name} needs {needed}, which isn't installed yet: installing it once.")
        install_with_progress(error.install, device=error.device)


def _end_undeclared(
    client: ControlClient, files: Sequence[Path], declared: Sequence[str], *, prune: bool
) -> None:
    from vllm_manager.cli.plan import keep_text
    from vllm_manager.cli.planning import known_deployments, undeclared

    known = known_deployments(client.statuses())
    for name in undeclared(files, declared, known):
        if prune:
            try:
                client.down(name)
            except NotFound:  # somebody else was faster
                continue
            note(f"{name}: down, since it is no longer in {known[name].source}")
        else:
            note(f"{name} {keep_text(known[name].source, known[name].phase, files)}")


def _bring_up(client: ControlClient, loaded: "Loaded", key: str | None, *, recreate: bool) -> Decision:
    from vllm_manager.cli.manifests import located_conflict
    from vllm_manager.command import inherited

    try:
        return client.up(
            loaded.deployment.to_json(),
            source=str(loaded.source),
            api_key=key,
            environment=inherited(os.environ),
            recreate=recreate,
        )
    except ManifestConflictError as error:
        raise located_conflict(loaded, error) from error


def _told(decision: Decision) -> list[str]:
    name, changes = decision.name, decision.changes
    lines = []
    if decision.action is Action.RESTART:
        why = "since its manifest changed" if changes else "as asked for"
        lines.append(f"{name}: restarted, {why}")
    elif decision.action is Action.RESUME:
        lines.append(f"{name}: started again{', with what changed in its manifest' if changes else ''}")
    elif decision.action is Action.UNCHANGED:
        lines.append(f"{name}: unchanged")
    lines += [f"  {change}" for change in changes]
    lines += [f"  {change} (applies without a restart)" for change in decision.applied]
    return lines


def _warn_of_logout() -> None:
    from vllm_manager.logout import logout_risk

    if risk := logout_risk():
        note(f"warning: {risk}")
