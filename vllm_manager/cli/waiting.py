"""Following starts to their ends, and telling how they ended."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import click

from vllm_manager.cli.output import duration, error_lines, note, print_json, style
from vllm_manager.cli.progress import start_view, step_durations
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import ManagerError, StartFailed, WaitTimeout, from_payload
from vllm_manager.types import Phase, Status

Outcome = Status | ManagerError


class Deadline:
    """The caller's patience.

    Args:
        text: As given with ``--timeout``; None waits for ever.
    """

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


def wait_ready(
    client: ControlClient, names: Sequence[str], deadline: Deadline, *, first_start: bool
) -> dict[str, Outcome]:
    """Follow several starts to their ends, side by side.

    Args:
        client: The supervisor.
        names: The deployments.
        deadline: The caller's patience.
        first_start: Whether the first failed start is the answer, also where the supervisor tries again.

    Returns:
        By name, the status with which it was ready, or what went wrong (which was shown at once).
    """
    seen: queue.SimpleQueue[tuple[str, Outcome, bool]] = queue.SimpleQueue()

    def follow(name: str) -> None:
        try:
            for status in _watch(client, name, deadline):
                if status.phase is Phase.READY:
                    return seen.put((name, status, True))
                if status.phase is Phase.FAILED or (first_start and status.phase is Phase.BACKOFF):
                    raise _start_failure(status)
                if status.phase is Phase.STOPPED:
                    raise StartFailed(
                        cause=f"{name} was stopped",
                        hint=f"`vllm-manager start {name}` starts it",
                        deployment=name,
                    )
                seen.put((name, status, False))
        except ManagerError as error:
            seen.put((name, error, True))
        except Exception as error:  # whatever it is, the one who waits must hear of it
            seen.put((name, ManagerError(cause=f"internal error: {error!r}"), True))

    outcomes: dict[str, Outcome] = {}
    with start_view() as view:
        for name in names:
            threading.Thread(target=follow, args=(name,), daemon=True).start()
        while len(outcomes) < len(set(names)):
            name, news, final = seen.get()
            if isinstance(news, Status):
                view.show(news)
            else:
                view.end(name, error_lines(news))
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


def _watch(client: ControlClient, name: str, deadline: Deadline) -> Iterator[Status]:
    for status in client.watch(name, timeout=deadline.left):
        yield status
        if deadline.left() == 0.0:
            break
    raise WaitTimeout(
        cause=f"{name} wasn't ready within {deadline.seconds:g} s",
        hint=f"it goes on: `vllm-manager wait {name}` waits on, `vllm-manager logs -f {name}` shows its log",
        seconds=deadline.seconds or 0.0,
    )


def finish(
    client: ControlClient,
    names: Sequence[str],
    refused: Sequence[ManagerError],
    deadline: Deadline,
    *,
    no_wait: bool,
    as_json: bool,
    show: Callable[[Status], None],
) -> None:
    """The end of every command that starts something: wait, show what is ready, exit as it went.

    Args:
        client: The supervisor.
        names: What was started.
        refused: What couldn't be, which was shown.
        deadline: The caller's patience.
        no_wait: Return at once instead.
        as_json: Print data.
        show: Prints what is ready.
    """
    try:
        outcomes = {} if no_wait else wait_ready(client, names, deadline, first_start=True)
    except KeyboardInterrupt:
        note(f"\n{', '.join(names)}: goes on; `vllm-manager ps` shows it, `vllm-manager stop NAME` ends it")
        raise
    if no_wait and as_json:
        print_json([client.status(name) for name in names])
    elif not no_wait:
        print_ready(outcomes, as_json, show)
    exit_for([*refused, *failures(outcomes)])


def failures(outcomes: Mapping[str, Outcome]) -> list[ManagerError]:
    """Those that didn't end ready."""
    return [each for each in outcomes.values() if isinstance(each, ManagerError)]


def exit_for(errors: Sequence[ManagerError]) -> None:
    """Exit with the first error's code; go on where there is none."""
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)


def print_ready(outcomes: Mapping[str, Outcome], as_json: bool, show: Callable[[Status], None]) -> None:
    """What is ready, as data or by ``show``."""
    ready = [outcome for outcome in outcomes.values() if isinstance(outcome, Status)]
    if as_json:
        print_json(ready)
        return
    for status in ready:
        show(status)


def print_address(status: Status) -> None:
    """That it is ready, on a line."""
    click.echo(f"{status.name} is ready at {status.endpoint.base_url}")


def print_usage(status: Status) -> None:
    """That it is ready, and how to use it."""
    endpoint, name = status.endpoint, status.name
    click.echo(f"{style(name, bold=True)} is {style('ready', fg='green')} at {endpoint.base_url}")
    click.echo(f"  model names   {', '.join(endpoint.names)}")
    if endpoint.max_model_len:
        click.echo(f"  context       {endpoint.max_model_len} tokens")
    click.echo(f"  log           {status.log}")
    if text := startup_text(status):
        click.echo(f"  ready after   {text}")
    click.echo("  try it")
    click.echo(f'    vllm-manager chat {name} "hello"')
    click.echo(f'    eval "$(vllm-manager env {name})"   # OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL')
    click.echo(
        f'    python -c \'from vllm_manager import registry; print(registry.client("{name}").chat("hello"))\''
    )
    for text in status.notes:
        click.echo(f"  note: {text}")


def startup_text(status: Status) -> str:
    """How long its start took, and its steps; empty where that isn't known."""
    if not status.steps or status.ready_after is None:
        return ""
    parts = [f"{step.name} {duration(s)}" for step, s in step_durations(status.steps, status.ready_after)]
    return f"{duration(status.ready_after)}: {', '.join(parts)}"
