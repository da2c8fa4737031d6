"""Following starts to their ends, and telling how they ended."""

import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from vllm_manager.cli.output import duration, error_lines, note, print_error, print_json, style
from vllm_manager.cli.progress import start_view, step_durations
from vllm_manager.cli.usage import examples
from vllm_manager.control.client import ControlClient
from vllm_manager.errors import ManagerError, NotFound, StartFailed, WaitTimeout, from_payload
from vllm_manager.paths import state_dir
from vllm_manager.store import Desired, read_deployments
from vllm_manager.types import Phase, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a start ended, or the asking for one.

    Attributes:
        status: The last that the supervisor told; None where it has none.
        error: What went wrong, which was shown; None where it is ready.
    """

    status: Status | None = None
    error: ManagerError | None = None


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


def follow_starts(
    client: ControlClient, names: Sequence[str], deadline: Deadline, *, first_start: bool
) -> Iterator[tuple[str, Outcome]]:
    """Follow several starts to their ends, side by side; each comes as it ends, what went wrong is shown.

    Args:
        client: The supervisor.
        names: The deployments, each once.
        deadline: The caller's patience.
        first_start: Whether the first failed start is the answer, also where the supervisor tries again.
    """
    seen: queue.SimpleQueue[tuple[str, Status | Outcome]] = queue.SimpleQueue()

    def follow(name: str) -> None:
        try:
            outcome = _follow(client, name, deadline, first_start, lambda status: seen.put((name, status)))
        except Exception as error:  # whatever it is, the one who waits must hear of it
            outcome = Outcome(error=ManagerError(cause=f"internal error: {error!r}"))
        seen.put((name, outcome))

    with start_view() as view:
        for name in names:
            threading.Thread(target=follow, args=(name,), daemon=True).start()
        left = len(names)
        while left:
            name, news = seen.get()
            if isinstance(news, Status):
                view.show(news)
                continue
            left -= 1
            if news.error is not None:
                view.end(name, error_lines(news.error))
            elif news.status is not None:
                view.show(news.status)
            yield name, news


def _follow(
    client: ControlClient,
    name: str,
    deadline: Deadline,
    first_start: bool,
    show: Callable[[Status], None],
) -> Outcome:
    last: Status | None = None
    try:
        for status in client.watch(name, timeout=deadline.left):
            last = status
            if status.phase is Phase.READY:
                return Outcome(status=status)
            if status.phase is Phase.FAILED or (first_start and status.phase is Phase.BACKOFF):
                return Outcome(status=status, error=_start_failure(status))
            if status.phase is Phase.STOPPED:
                return (
                    _taken_down(status) if _forgotten(name) else Outcome(status=status, error=_stopped(name))
                )
            show(status)
            if deadline.left() == 0.0:
                break
    except NotFound as error:
        return Outcome(error=error) if last is None else _taken_down(last)
    except ManagerError as error:
        return Outcome(error=error)
    return Outcome(status=last, error=_timeout(name, deadline))


def _forgotten(name: str) -> bool:
    # What is taken down looks stopped for a moment. What is wanted of it is written down before it ends.
    record = read_deployments(state_dir()).get(name)
    return record is None or record.desired is Desired.GONE


def _taken_down(status: Status) -> Outcome:
    name, source = status.name, status.source
    error = StartFailed(
        cause=f"{name} was taken down",
        hint=f"`vllm-manager up {shlex.quote(source)}` brings it up again",
        deployment=name,
    )
    return Outcome(error=error)


def _stopped(name: str) -> ManagerError:
    return StartFailed(
        cause=f"{name} was stopped", hint=f"`vllm-manager start {name}` starts it", deployment=name
    )


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


def _timeout(name: str, deadline: Deadline) -> ManagerError:
    return WaitTimeout(
        cause=f"{name} wasn't ready within {deadline.seconds:g} s",
        hint=f"it goes on: `vllm-manager wait {name}` waits on, `vllm-manager logs -f {name}` shows its log",
        seconds=deadline.seconds or 0.0,
    )


def finish(
    client: ControlClient,
    names: Sequence[str],
    refused: Mapping[str, ManagerError],
    deadline: Deadline,
    *,
    no_wait: bool = False,
    first_start: bool = True,
    as_json: bool,
    show: Callable[[Status], None],
) -> None:
    """The end of every command that starts something or waits: wait, show what is ready, exit as it went.

    Args:
        client: The supervisor.
        names: What was to be started, each once.
        refused: What of it the supervisor refused, which was shown.
        deadline: The caller's patience.
        no_wait: Return at once instead.
        first_start: As for ``follow_starts``.
        as_json: Print data, an entry for each name.
        show: Prints what is ready.
    """
    begun = [name for name in names if name not in refused]
    outcomes = {name: Outcome(error=error) for name, error in refused.items()}
    try:
        if not no_wait:
            for name, outcome in follow_starts(client, begun, deadline, first_start=first_start):
                outcomes[name] = outcome
        elif as_json:
            outcomes |= {name: _look(client, name) for name in begun}
    except KeyboardInterrupt:
        if left := [name for name in begun if name not in outcomes]:
            note(
                f"\n{', '.join(left)}: goes on; `vllm-manager ps` shows it, `vllm-manager stop NAME` ends it"
            )
        raise
    told = {name: outcomes[name] for name in names if name in outcomes}
    if as_json:
        print_json([_entry(name, outcome) for name, outcome in told.items()])
    else:
        for outcome in told.values():
            if outcome.status is not None and outcome.error is None:
                show(outcome.status)
    errors = [outcome.error for name, outcome in told.items() if name not in refused]
    exit_for([*refused.values(), *(error for error in errors if error is not None)])


def _look(client: ControlClient, name: str) -> Outcome:
    try:
        return Outcome(status=client.status(name))
    except ManagerError as error:
        print_error(error)
        return Outcome(error=error)


def _entry(name: str, outcome: Outcome) -> object:
    if outcome.status is not None:
        return outcome.status
    return {"name": name, "error": outcome.error and outcome.error.payload()}


def exit_for(errors: Sequence[ManagerError]) -> None:
    """Exit with the first error's code; go on where there is none."""
    if errors:
        raise click.exceptions.Exit(errors[0].exit_code)


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
    for line in examples(name, endpoint.task):
        click.echo(f"    {line}")
    for text in status.notes:
        click.echo(f"  note: {text}")


def startup_text(status: Status) -> str:
    """How long its start took, and its steps; empty where that isn't known."""
    if not status.steps or status.ready_after is None:
        return ""
    parts = [f"{step.name} {duration(s)}" for step, s in step_durations(status.steps, status.ready_after)]
    return f"{duration(status.ready_after)}: {', '.join(parts)}"
