"""The commands that end deployments: down forgets them, stop keeps them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import click

from vllm_manager.cli.connect import awaiting, control, explain_absence
from vllm_manager.cli.options import NOW, names_or_all, one_of
from vllm_manager.cli.output import note, print_error
from vllm_manager.cli.waiting import exit_for
from vllm_manager.errors import AlreadyRunning, ManagerError, NoSupervisor, NotFound
from vllm_manager.paths import state_dir
from vllm_manager.store import Desired


@click.command()
@names_or_all("Take all deployments down.")
@NOW
def down(names: tuple[str, ...], everything: bool, now: bool) -> None:
    """Take deployments down, and return when their processes, ports, GPU memory and files are gone.

    Running requests have time to finish (`stop` in the manifest, 30 s by default). The command `stop` ends
    deployments without forgetting them.

    \b
    Examples:
      vllm-manager down tiny
      vllm-manager down --all
    """
    one_of(names, everything)
    _end(names, Desired.GONE, now=now)


@click.command()
@names_or_all("Stop all deployments.")
@NOW
def stop(names: tuple[str, ...], everything: bool, now: bool) -> None:
    """Stop deployments without forgetting them, and return when their processes are gone.

    They stay stopped, also after a reboot, until `start`, `restart` or `up`; `ps` goes on listing them.

    \b
    Examples:
      vllm-manager stop tiny
      vllm-manager stop --all --now
    """
    one_of(names, everything)
    _end(names, Desired.STOPPED, now=now)


def _end(names: tuple[str, ...], desired: Desired, *, now: bool) -> None:
    """Stop these deployments, or all where none is named, and forget them where that is desired."""
    client = control()
    ending: frozenset[str] = frozenset()
    met = client.running()
    if met:
        names = names or tuple(status.name for status in client.statuses())
    elif ending := _leave_word(names, desired):
        from vllm_manager.background import ensure_supervisor

        if others := awaiting():
            to_run = "it is to run" if len(others) == 1 else "they are to run"
            note(f"this starts a supervisor, which will start {', '.join(others)} too, since {to_run}")
        met = True
        client, names = ensure_supervisor(), names or tuple(sorted(ending))
    if not names:
        note("nothing is up")
    end: Callable[..., None] = client.down if desired is Desired.GONE else client.stop
    done = "down" if desired is Desired.GONE else "stopped"
    failures = []
    for name in dict.fromkeys(names):
        try:
            with _second_interrupt_hurries(end, name), _gone_if(desired is Desired.GONE and name in ending):
                end(name, now=now)
            note(f"{name}: {done}")
        except ManagerError as error:
            if isinstance(error, NoSupervisor):
                error = explain_absence(name, error)
                if met and isinstance(error, NoSupervisor):
                    again = "down" if desired is Desired.GONE else "stop"
                    error.cause = f"the supervisor ended before {name} was {done}"
                    error.hint = f"run it again: `vllm-manager {again} {name}` starts one, which finishes it"
            failures.append(error)
            print_error(error)
    exit_for(failures)


def _leave_word(names: tuple[str, ...], desired: Desired) -> frozenset[str]:
    """Without a supervisor: tell the next one what is desired of these, or of all; returns which."""
    from vllm_manager.daemon import lock
    from vllm_manager.store import Store

    if not state_dir().is_dir():
        return frozenset()
    store = Store(state_dir())
    with suppress(AlreadyRunning), lock(store.root):  # one that comes up meanwhile is simply asked
        known = store.deployments()[0]
        ending = frozenset(names or known) & frozenset(known)
        for name in ending:
            if known[name].desired is not Desired.GONE:
                store.save_deployment(replace(known[name], desired=desired))
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


@contextmanager
def _second_interrupt_hurries(end: Callable[..., None], name: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        note(f"{name} goes on stopping; interrupt once more to leave it at that, or wait while it is killed")
        end(name, now=True)
