"""Commands that change what runs: up, down, wait, serve; and validate, which checks what up would read."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_manager.cli.connect import control, explain_absence
from vllm_manager.cli.output import duration, note, print_error, print_json
from vllm_manager.cli.progress import start_view, step_durations
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import (
    AlreadyRunning,
    ManagerError,
    NoSupervisor,
    NotFound,
    StartFailed,
    WaitTimeout,
    from_payload,
)
from vllm_manager.paths import state_dir
from vllm_manager.types import Phase, Status

if TYPE_CHECKING:
    from vllm_manager.manifest.loaded import Loaded

FILES = click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")
TIMEOUT = click.option(
    "--timeout",
    metavar="DURATION",
    help="Give up waiting after this long, as in 90s or 10m (exit code 7); the start goes on.",
)


@click.command()
@FILES
@click.option("-d", "--no-wait", is_flag=True, help="Return at once; `wait` and `ps` tell when it is ready.")
@TIMEOUT
@JSON
def up(files: tuple[Path, ...], no_wait: bool, timeout: str | None, as_json: bool) -> None:
    """Bring the deployments of these manifests up.

    Starts a supervisor in the background if none runs, installs the engine if it is missing, shows the start,
    and returns when each model has answered a real request. Unchanged deployments that run are left alone;
    a changed one is stopped and started again.

    \b
    Examples:
      vllm-manager up manifests/tiny.yaml
      vllm-manager up -d chat.yaml embed.yaml
    """
    from vllm_manager.background import ensure_supervisor
    from vllm_manager.manifest.load import load_manifests
    from vllm_manager.manifest.secrets import resolve_key

    deadline = _Deadline(timeout)
    # Everything that can be wrong with the input is found before anything is started.
    manifests = [(loaded, resolve_key(loaded, os.environ)) for loaded in load_manifests(files)]
    for loaded, _ in manifests:
        _ensure_engine(loaded)
    client = ensure_supervisor()
    _warn_of_logout()
    names: list[str] = []
    refused: list[ManagerError] = []
    for loaded, key in manifests:
        try:
            _bring_up(client, loaded, key)
            names.append(loaded.deployment.name)
        except ManagerError as error:
            print_error(error)
            refused.append(error)
    try:
        outcomes = {} if no_wait else _wait_ready(client, names, deadline, first_start=True)
    except KeyboardInterrupt:
        note(f"\n{', '.join(names)}: goes on; `vllm-manager ps` shows it, `vllm-manager down NAME` ends it")
        raise
    if no_wait and as_json:
        print_json([client.status(name) for name in names])
    elif not no_wait:
        _print_ready(outcomes, as_json, _print_usage)
    _exit_for([*refused, *(each for each in outcomes.values() if isinstance(each, ManagerError))])


def _ensure_engine(loaded: "Loaded") -> None:
    from vllm_manager.command import inherited
    from vllm_manager.engines.find import engine_for
    from vllm_manager.errors import EngineMissing
    from vllm_manager.paths import engines_dir

    deployment = loaded.deployment
    cpu = deployment.request.count == 0
    try:
        engine_for(deployment, inherited(os.environ), engines_dir())
    except EngineMissing:
        if not cpu:
            from vllm_manager.gpus.nvml import read_inventory
            from vllm_manager.placement import place

            # Without a GPU that could take it, the missing engine is the lesser problem.
            place(deployment.request, read_inventory(), [], deployment=deployment.name)
        if not cpu or deployment.engine.python is not None:
            raise
        from vllm_manager.cli.engine import install_with_progress

        note(f"{deployment.name} needs a vLLM for the CPU, and there is none yet: installing it once.")
        install_with_progress(deployment.engine.version)


def _bring_up(client: ControlClient, loaded: "Loaded", key: str | None) -> None:
    from vllm_manager.command import inherited

    name = loaded.deployment.name
    result = client.up(
        loaded.deployment.to_json(),
        source=str(loaded.source),
        api_key=key,
        environment=inherited(os.environ),
    )
    if result["action"] == "unchanged":
        note(f"{name}: unchanged")
    elif result["action"] == "restarted":
        note(f"{name}: restarted, since {', '.join(result['changes'])} changed")


def _wait_ready(
    client: ControlClient, names: Sequence[str], deadline: "_Deadline", *, first_start: bool
) -> dict[str, Status | ManagerError]:
    """Follow several starts to their ends, side by side.

    Args:
        client: The supervisor.
        names: The deployments.
        deadline: The caller's patience.
        first_start: Whether the first failed start is the answer, also where the supervisor tries again.

    Returns:
        By name, the status with which it was ready, or what went wrong (which was shown at once).
    """
    seen: queue.SimpleQueue[tuple[str, Status | ManagerError, bool]] = queue.SimpleQueue()

    def follow(name: str) -> None:
        try:
            for status in _watch(client, name, deadline):
                if status.phase is Phase.READY:
                    return seen.put((name, status, True))
                if status.phase is Phase.FAILED or (first_start and status.phase is Phase.BACKOFF):
                    raise _start_failure(status)
                if status.phase is Phase.STOPPED:
                    raise StartFailed(cause=f"{name} was stopped", deployment=name)
                seen.put((name, status, False))
        except ManagerError as error:
            seen.put((name, error, True))
        except Exception as error:  # whatever it is, the one who waits must hear of it
            seen.put((name, ManagerError(cause=f"internal error: {error!r}"), True))

    outcomes: dict[str, Status | ManagerError] = {}
    with start_view() as view:
        for name in names:
            threading.Thread(target=follow, args=(name,), daemon=True).start()
        while len(outcomes) < len(set(names)):
            name, news, final = seen.get()
            if isinstance(news, Status):
                view.show(news)
            else:
                print_error(news)
            if final:
                outcomes[name] = news
    return {name: outcomes[name] for name in names}


def _start_failure(status: Status) -> ManagerError:
    error = from_payload(status.error or {"cause": "it failed"})
    error.cause = f"{status.name} didn't start: {error.cause}"
    again = (
        f"; the supervisor tries again in {duration(status.retry_in)}" if status.retry_in is not None else ""
    )
    if again:
        error.cause += again
        stop = f"`vllm-manager down {status.name}` ends that"
        error.hint = f"{error.hint}; {stop}" if error.hint else stop
    if error.exit_code == 1:  # whatever went wrong in a start is a failed start
        error = StartFailed(cause=error.cause, hint=error.hint, deployment=status.name)
    return error


def _watch(client: ControlClient, name: str, deadline: "_Deadline") -> Iterator[Status]:
    for status in client.watch(name, timeout=deadline.left):
        yield status
        if deadline.left() == 0.0:
            break
    raise WaitTimeout(
        cause=f"{name} wasn't ready within {deadline.seconds:g} s",
        hint=f"it goes on: `vllm-manager wait {name}` waits on, `vllm-manager logs -f {name}` shows its log",
        seconds=deadline.seconds or 0.0,
    )


class _Deadline:
    def __init__(self, text: str | None) -> None:
        self.seconds = _seconds(text)
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    def left(self) -> float | None:
        """Seconds, not below 0; None for no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    from vllm_manager.manifest.values import seconds

    try:
        return seconds(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from error


def _print_ready(
    outcomes: Mapping[str, Status | ManagerError], as_json: bool, show: Callable[[Status], None]
) -> None:
    ready = [outcome for outcome in outcomes.values() if isinstance(outcome, Status)]
    if as_json:
        print_json(ready)
        return
    for status in ready:
        show(status)


def _print_usage(status: Status) -> None:
    endpoint, name = status.endpoint, status.name
    click.echo(f"{click.style(name, bold=True)} is {click.style('ready', fg='green')} at {endpoint.base_url}")
    click.echo(f"  model names   {', '.join(endpoint.names)}")
    if endpoint.max_model_len:
        click.echo(f"  context       {endpoint.max_model_len} tokens")
    click.echo(f"  log           {status.log}")
    if status.steps and status.ready_after is not None:
        parts = [f"{step.name} {duration(s)}" for step, s in step_durations(status.steps, status.ready_after)]
        click.echo(f"  ready after   {duration(status.ready_after)}: {', '.join(parts)}")
    click.echo("  try it")
    click.echo(f'    vllm-manager chat {name} "hello"')
    click.echo(f'    eval "$(vllm-manager env {name})"   # OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL')
    click.echo(
        f'    python -c \'from vllm_manager import registry; print(registry.client("{name}").chat("hello"))\''
    )
    for text in status.notes:
        click.echo(f"  note: {text}")


def _warn_of_logout() -> None:
    from vllm_manager.logout import logout_risk

    if risk := logout_risk():
        note(f"warning: {risk}")


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "everything", is_flag=True, help="Take all deployments down.")
@click.option("--now", is_flag=True, help="Don't wait for running requests, nor for a graceful end.")
def down(names: tuple[str, ...], everything: bool, now: bool) -> None:
    """Take deployments down, and return when their processes, ports, GPU memory and files are gone.

    Running requests have up to 30 s to finish. Where no supervisor runs, one is started to do it.

    \b
    Examples:
      vllm-manager down tiny
      vllm-manager down --all
    """
    if bool(names) == everything:
        raise click.UsageError(
            "give names or --all, not both" if names else "name the deployments, or give --all"
        )
    client = control()
    ending: frozenset[str] = frozenset()
    if client.running():
        names = names or tuple(status.name for status in client.statuses())
    elif ending := _note_as_unwanted(names):
        from vllm_manager.background import ensure_supervisor

        client, names = ensure_supervisor(), names or tuple(sorted(ending))
    if not names:
        note("nothing is up")
    failures = []
    for name in dict.fromkeys(names):
        try:
            with _second_interrupt_hurries(client, name), _gone_if(name in ending):
                client.down(name, now=now)
            note(f"{name}: down")
        except ManagerError as error:
            failures.append(explain_absence(name, error) if isinstance(error, NoSupervisor) else error)
            print_error(failures[-1])
    _exit_for(failures)


def _note_as_unwanted(names: tuple[str, ...]) -> frozenset[str]:
    """Without a supervisor: leave word to the next one that these, or all, are to be ended; returns which."""
    from vllm_manager.daemon import lock
    from vllm_manager.store import Store

    if not state_dir().is_dir():
        return frozenset()
    store = Store(state_dir())
    with suppress(AlreadyRunning), lock(store.root):  # one that comes up meanwhile is simply asked
        known = store.deployments()[0]
        ending = frozenset(names or known) & frozenset(known)
        for name in ending:
            store.save_deployment(replace(known[name], wanted=False))
        return ending
    return frozenset()


@contextmanager
def _gone_if(ending: bool) -> Iterator[None]:
    """Whom the new supervisor was told to end may be gone before it is asked."""
    try:
        yield
    except NotFound:
        if not ending:
            raise


def _exit_for(failures: Sequence[ManagerError]) -> None:
    if failures:
        raise click.exceptions.Exit(failures[0].exit_code)


@contextmanager
def _second_interrupt_hurries(client: ControlClient, name: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"{name} goes on stopping; interrupt once more to leave it at that, or wait while it is killed")
        client.down(name, now=True)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
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
    outcomes = _wait_ready(client, names, _Deadline(timeout), first_start=False)
    _print_ready(outcomes, as_json, _print_address)
    _exit_for([each for each in outcomes.values() if isinstance(each, ManagerError)])


def _print_address(status: Status) -> None:
    click.echo(f"{status.name} is ready at {status.endpoint.base_url}")


@click.command()
@FILES
@JSON
def validate(files: tuple[Path, ...], as_json: bool) -> None:
    """Check manifests without starting anything; all errors of all files at once.

    \b
    Example:
      vllm-manager validate manifests/*.yaml
    """
    from vllm_manager.manifest.load import load_manifests

    loaded = load_manifests(files)
    if as_json:
        print_json([{"file": str(each.source), "name": each.deployment.name} for each in loaded])
        return
    for each in loaded:
        click.echo(f"{each.source}: ok ({each.deployment.name})")


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE...]", type=click.Path(path_type=Path))
@click.option("--exit-when-empty", is_flag=True, hidden=True)
def serve(files: tuple[Path, ...], exit_when_empty: bool) -> None:
    """Run the supervisor in the foreground, and bring up the given manifests.

    It takes over whatever an earlier supervisor left running. SIGINT and SIGTERM stop all deployments and end
    it (a second one skips the grace periods); SIGUSR1 ends it and leaves them running.

    \b
    Example:
      vllm-manager serve manifests/llama.yaml
    """
    from vllm_manager.daemon import run

    run(files, exit_when_empty=exit_when_empty)
