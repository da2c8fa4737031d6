"""Arguments and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_manager.cli.completion import deployment_names

F = TypeVar("F", bound=Callable[..., Any])

FILES = click.argument(
    "files", nargs=-1, required=True, metavar="FILE|DIR...", type=click.Path(path_type=Path)
)
NAMES = click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=deployment_names)
NAME = click.argument("name", shell_complete=deployment_names)
JSON = click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")
TIMEOUT = click.option(
    "--timeout",
    metavar="DURATION",
    help="Give up waiting after this long, as in 90s or 10m (exit code 7); the start goes on.",
)
NO_WAIT = click.option(
    "-d", "--no-wait", is_flag=True, help="Return at once; `wait` and `ps` tell when it is ready."
)
NOW = click.option("--now", is_flag=True, help="Don't wait for running requests, nor for a graceful end.")
RECREATE = click.option("--recreate", is_flag=True, help="Replace instances also where nothing changed.")
PRUNE = click.option(
    "--prune", is_flag=True, help="Take down what these files declared before, and don't any more."
)


def names_or_all(help_of_all: str) -> Callable[[F], F]:
    """``NAME...`` or ``--all``; check them with ``one_of``."""

    def decorate(command: F) -> F:
        every = click.option("--all", "everything", is_flag=True, help=help_of_all)
        some = click.argument("names", nargs=-1, metavar="NAME...|--all", shell_complete=deployment_names)
        return some(every(command))

    return decorate


def one_of(names: tuple[str, ...], everything: bool) -> None:
    """Refuse both and neither of ``NAME...`` and ``--all``."""
    if bool(names) == everything:
        raise click.UsageError(
            "give names or --all, not both" if names else "name the deployments, or give --all"
        )
