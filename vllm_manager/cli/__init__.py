"""The command line: results go to stdout, all else to stderr; heavy imports wait until they are needed."""

import os
import sys
from typing import NoReturn

import click

from vllm_manager.errors import ManagerError


def main() -> NoReturn:
    """Run the command line and exit with the documented code."""
    from vllm_manager.cli.app import app
    from vllm_manager.cli.output import print_error

    try:
        code = app.main(prog_name="vllm-manager", standalone_mode=False)
    except ManagerError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        # What is still in stdout's buffer would fail once more at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        place = error.filename or "the output"
        print_error(ManagerError(cause=f"can't use {place}: {error.strerror or error}"))
        sys.exit(1)
    except click.UsageError as error:
        missing = isinstance(error, click.MissingParameter)
        if not missing and (not error.message or error.message.startswith("Usage:")):  # click's help
            click.echo(error.format_message(), err=True)
            sys.exit(error.exit_code)
        command = error.ctx.command_path if error.ctx else "vllm-manager"
        print_error(ManagerError(cause=_usage(error), hint=f"`{command} --help` shows how"))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except SystemExit:
        # Only click itself exits in here, on a broken pipe: whoever read our output has seen enough.
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        from vllm_manager.near import nearest

        match = nearest(error.option_name, error.possibilities or ())
        return f"there is no option {error.option_name}{f': did you mean {match}?' if match else ''}"
    return " ".join(error.format_message().removesuffix(".").split())
