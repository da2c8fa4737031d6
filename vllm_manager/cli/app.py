"""The command ``vllm-manager``: its subcommands, each imported when it is called."""

import importlib

import click
from click.shell_completion import CompletionItem

from vllm_manager import __version__

# name -> (module below vllm_manager.cli, line in the overview)
COMMANDS = {
    "up": ("up", "Bring deployments up, and return when they have answered."),
    "plan": ("plan", "Show what `up` would do, and why not."),
    "down": ("stop", "Take deployments down, and return when nothing of them is left."),
    "stop": ("stop", "Stop deployments without forgetting them."),
    "start": ("start", "Start what was stopped or has failed."),
    "restart": ("start", "Stop deployments and start them anew."),
    "wait": ("start", "Wait until a deployment is ready."),
    "ps": ("ps", "List deployments (also as `ls` and `status`)."),
    "inspect": ("inspect", "Show everything about a deployment."),
    "logs": ("show", "Print a deployment's log."),
    "events": ("events", "Print what happened to deployments."),
    "gpus": ("show", "List the GPUs, and who holds their memory."),
    "chat": ("use", "Send one message, and print the answer as it comes."),
    "env": ("use", "Print OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL for eval."),
    "validate": ("manifests", "Check manifests without starting anything."),
    "schema": ("manifests", "Print the JSON Schema of manifests."),
    "pull": ("pull", "Fetch models from the Hugging Face hub."),
    "engine": ("engine", "Install, list, check and remove the vLLM engines that it manages."),
    "serve": ("serve", "Run the supervisor in the foreground."),
    "completion": ("completion", "Print the script that completes commands in a shell."),
    "version": ("show", "Print the version."),
}

ALIASES = {"ls": "ps", "status": "ps"}

# What other tools call it.
ELSEWHERE = {
    "apply": "up", "deploy": "up", "create": "up", "launch": "up", "run": "up",
    "rm": "down", "remove": "down", "delete": "down", "destroy": "down", "undeploy": "down",
    "kill": "stop", "pause": "stop",
    "list": "ps", "models": "ps", "top": "ps", "show": "inspect", "describe": "inspect", "info": "inspect",
    "log": "logs", "history": "events", "diff": "plan", "check": "validate", "lint": "validate",
    "prompt": "chat", "ask": "chat", "devices": "gpus", "nvidia-smi": "gpus",
    "daemon": "serve", "supervisor": "serve", "engines": "engine", "completions": "completion",
}  # fmt: skip

EXIT_CODES = """\b
Exit codes:
  0  done                               6  a start failed
  1  unexpected                         7  timed out
  2  usage, or a bad manifest           8  another supervisor holds the lock
  3  no GPU can take it               130  interrupted
  4  no such deployment
  5  instances live, but no supervisor answers
"""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"vllm_manager.cli.{COMMANDS[name][0]}")
        command = getattr(module, name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in {*COMMANDS, *ALIASES}:
            from vllm_manager.near import nearest

            match = ELSEWHERE.get(args[0].lower()) or nearest(args[0], [*COMMANDS, *ALIASES])
            suggestion = f": did you mean {match}?" if match else ""
            raise click.UsageError(f"there is no command {args[0]!r}{suggestion}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own would import every command's module for its help text.
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The overview needs no command's module: `--help` stays fast.
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, "-V", "--version", message="vllm-manager %(version)s")
def app() -> None:
    """Launch and supervise vLLM models on this machine.

    \b
    Examples:
      vllm-manager up manifests/tiny.yaml
      vllm-manager ps
      vllm-manager chat tiny "hello"
      vllm-manager down tiny
    """
