"""The commands that start what is known, and wait for it: start, restart, wait."""

from collections.abc import Callable

import click

from vllm_manager.cli.completion import deployment_names
from vllm_manager.cli.connect import control, explain_absence, unknown_name
from vllm_manager.cli.options import JSON, NO_WAIT, TIMEOUT, names_or_all, one_of
from vllm_manager.cli.output import note, print_error
from vllm_manager.cli.waiting import Deadline, finish, print_address
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import ManagerError, NoSupervisor
from vllm_manager.paths import state_dir
from vllm_manager.store import deployment_names as known_names
from vllm_manager.types import Action, Decision


@click.command()
@names_or_all("Start all deployments.")
@NO_WAIT
@TIMEOUT
@JSON
def start(
    names: tuple[str, ...], everything: bool, no_wait: bool, timeout: str | None, as_json: bool
) -> None:
    """Start deployments that were stopped or have failed, and return when each has answered a real request.

    They run as their manifests said when they were brought up; `up` reads the manifests again.

    \b
    Examples:
      vllm-manager start tiny
      vllm-manager start --all -d
    """
    one_of(names, everything)
    _begin(names, ControlClient.start, Deadline(timeout), no_wait=no_wait, as_json=as_json)


@click.command()
@names_or_all("Restart all deployments.")
@NO_WAIT
@TIMEOUT
@JSON
def restart(
    names: tuple[str, ...], everything: bool, no_wait: bool, timeout: str | None, as_json: bool
) -> None:
    """Stop deployments and start them anew on their ports; return when each has answered a real request.

    Running requests have time to finish, as with `down`. A deployment that doesn't run is started.

    \b
    Example:
      vllm-manager restart tiny
    """
    one_of(names, everything)
    _begin(names, ControlClient.restart, Deadline(timeout), no_wait=no_wait, as_json=as_json)


def _begin(
    names: tuple[str, ...],
    ask: Callable[[ControlClient, str], Decision],
    deadline: Deadline,
    *,
    no_wait: bool,
    as_json: bool,
) -> None:
    client = control()
    if client.running():
        names = names or tuple(status.name for status in client.statuses())
    else:
        known = known_names(state_dir())
        names = names or tuple(known)
        if names and not set(names) & set(known):
            raise unknown_name(names[0], known)
        if known:
            from vllm_manager.background import ensure_supervisor

            client = ensure_supervisor()
    if not names:
        note("there are no deployments; `vllm-manager up FILE` brings one up")
        return
    names = tuple(dict.fromkeys(names))
    refused: dict[str, ManagerError] = {}
    for name in names:
        try:
            if ask(client, name).action is Action.UNCHANGED:
                note(f"{name}: runs already")
        except ManagerError as error:
            print_error(error)
            refused[name] = error
    finish(client, names, refused, deadline, no_wait=no_wait, as_json=as_json, show=print_address)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=deployment_names)
@TIMEOUT
@JSON
def wait(names: tuple[str, ...], timeout: str | None, as_json: bool) -> None:
    """Wait until deployments are ready; exit code 6 if one failed, 7 on timeout.

    \b
    Example:
      vllm-manager wait tiny --timeout 5m
    """
    client = control()
    try:
        client.supervisor()
    except NoSupervisor as error:
        raise explain_absence(names[0], error) from error
    names = tuple(dict.fromkeys(names))
    finish(client, names, {}, Deadline(timeout), first_start=False, as_json=as_json, show=print_address)
