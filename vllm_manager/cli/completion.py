"""What the shell completes, and the scripts with which it does so. Fast: a key press waits for it."""

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem, get_completion_class

PROGRAM = "vllm-manager"
VARIABLE = "_VLLM_MANAGER_COMPLETE"


def deployment_names(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of deployments, but for those that the command line has already."""
    from vllm_manager.paths import state_dir
    from vllm_manager.store import deployment_names as known

    given = context.params.get(parameter.name or "") or ()
    return _items((name for name in known(state_dir()) if name not in given), incomplete)


def engine_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of installed engines."""
    from vllm_manager.paths import engines_dir

    try:
        entries = sorted(entry.name for entry in engines_dir().iterdir() if entry.is_dir())
    except OSError:
        entries = []
    return _items((name for name in entries if not name.startswith(".")), incomplete)


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and names in a shell.

    \b
    To have it in every new shell, add to ~/.bashrc or (below compinit) to ~/.zshrc:
      eval "$(vllm-manager completion bash)"
      eval "$(vllm-manager completion zsh)"
    and for fish, once:
      vllm-manager completion fish > ~/.config/fish/completions/vllm-manager.fish

    \b
    Example:
      eval "$(vllm-manager completion bash)"
    """
    from vllm_manager.cli.app import app

    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - one of click's own
    script = made(app, {}, PROGRAM, VARIABLE)
    # Not source(): for bash that starts a bash to see how old it is.
    click.echo(script.source_template % script.source_vars())
