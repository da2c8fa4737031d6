"""Commands that change what runs: up, down, wait, serve; and validate, which checks what up would read."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_manager.cli.connect import control, explain_absence, lives, records
from vllm_manager.cli.output import duration, note, print_error, print_json
from vllm_manager.cli.progress import start_view, step_durations
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import ManagerError, NoSupervisor, StartFailed, WaitTimeout, from_payload
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
    for loaded, key in manifests:
        _bring_up(client, loaded, key)
    if no_wait:
        return
    ready = [
        _wait_ready(client, loaded.deployment.name, deadline, first_start=True) for loaded, _ in manifests
    ]
    if as_json:
        print_json(ready)
        return
    for status in ready:
        _print_ready(status)


def _ensure_engine(loaded: "Loaded") -> None:
    from vllm_manager.command import inherited
    from vllm_manager.engines.find import resolve
    from vllm_manager.errors import EngineMissing
    from vllm_manager.paths import engines_dir
    from vllm_manager.types import Device

    deployment = loaded.deployment
    cpu = deployment.request.count == 0
    try:
        resolve(
            version=deployment.engine.version,
            python=deployment.engine.python,
            device=Device.CPU if cpu else Device.CUDA,
            engines_dir=engines_dir(),
            path=inherited(os.environ).get("PATH"),
        )
    except EngineMissing:
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


def _wait_ready(client: ControlClient, name: str, deadline: "_Deadline", *, first_start: bool) -> Status:
    """Follow a start to its end.

    Args:
        client: The supervisor.
        name: The deployment.
        deadline: The caller's patience.
        first_start: Whether the first failed start is the answer, also where the supervisor tries again.
    """
    with start_view() as view:
        for status in _watch(client, name, deadline):
            view.show(status)
            if status.phase is Phase.READY:
                return status
            if status.phase is Phase.FAILED or (first_start and status.phase is Phase.BACKOFF):
                raise _start_failure(status)
            if status.phase is Phase.STOPPED:
                raise StartFailed(cause=f"{name} was stopped", deployment=name)
    raise AssertionError("a watch ends with an error or not at all")


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
        return seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from error


def _print_ready(status: Status) -> None:
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

    Running requests have up to 30 s to finish.

    \b
    Examples:
      vllm-manager down tiny
      vllm-manager down --all
    """
    if bool(names) == everything:
        raise click.UsageError("name the deployments, or give --all")
    client = control()
    failed = None
    for name in names or [status.name for status in _statuses_or_none(client)]:
        try:
            _take_down(client, name, now)
            note(f"{name}: down")
        except ManagerError as error:
            print_error(error)
            failed = failed or error
    if failed:
        raise click.exceptions.Exit(failed.exit_code)


def _statuses_or_none(client: ControlClient) -> list[Status]:
    try:
        return client.statuses()
    except NoSupervisor as error:
        from vllm_manager.cli.connect import offline_statuses

        if any(lives(record) for record in records().values()):
            raise explain_absence(None, error) from error
        return offline_statuses()


def _take_down(client: ControlClient, name: str, now: bool) -> None:
    try:
        with _second_interrupt_hurries(client, name):
            client.down(name, now=now)
    except NoSupervisor as error:
        reason = explain_absence(name, error)
        if reason is not error:
            raise reason from error
        _forget_dead(name)


def _forget_dead(name: str) -> None:
    # Nothing of it lives and nobody supervises: only its records are left to remove.
    from vllm_manager.daemon import lock
    from vllm_manager.paths import state_dir
    from vllm_manager.store import Store

    store = Store(state_dir())
    with lock(store.root):
        record = store.instances()[0].get(name)
        if record is not None and not lives(record):
            import shutil

            for directory in {record.cwd, record.tmp} - {""}:
                shutil.rmtree(directory, ignore_errors=True)
        store.forget(name)


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
    deadline = _Deadline(timeout)
    client = control()
    try:
        ready = [_wait_ready(client, name, deadline, first_start=False) for name in names]
    except NoSupervisor as error:
        raise explain_absence(names[0], error) from error
    if as_json:
        print_json(ready)
    else:
        for status in ready:
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
