"""The command ``vllm-manager``: its subcommands, each imported when it is called."""

import importlib

import click

from vllm_manager import __version__

# name -> (module below vllm_manager.cli, line in the overview)
COMMANDS = {
    "up": ("deploy", "Bring deployments up, and return when they have answered."),
    "down": ("deploy", "Take deployments down, and return when nothing of them is left."),
    "wait": ("deploy", "Wait until a deployment is ready."),
    "ps": ("show", "List deployments."),
    "logs": ("show", "Print a deployment's log."),
    "gpus": ("show", "List the GPUs, and who holds their memory."),
    "chat": ("use", "Send one message, and print the answer as it comes."),
    "env": ("use", "Print OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL for eval."),
    "validate": ("deploy", "Check manifests without starting anything."),
    "engine": ("engine", "Install, list and remove the vLLM engines that it manages."),
    "serve": ("deploy", "Run the supervisor in the foreground."),
    "version": ("show", "Print the version."),
}

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
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"vllm_manager.cli.{COMMANDS[name][0]}")
        command = getattr(module, name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from vllm_manager.near import nearest

            match = nearest(args[0], COMMANDS)
            suggestion = f": did you mean {match}?" if match else ""
            raise click.UsageError(f"there is no command {args[0]!r}{suggestion}", ctx)
        return super().resolve_command(ctx, args)

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
