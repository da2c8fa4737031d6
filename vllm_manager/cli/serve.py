"""The command serve."""

from pathlib import Path

import click


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE|DIR...]", type=click.Path(path_type=Path))
@click.option("--exit-when-empty", is_flag=True, hidden=True)
def serve(files: tuple[Path, ...], exit_when_empty: bool) -> None:
    """Run the supervisor in the foreground, and bring up the given manifests.

    It takes over whatever an earlier supervisor left running. SIGINT and SIGTERM stop all deployments and end
    it (a second one skips the grace periods); SIGUSR1 ends it and leaves them running.

    \b
    Examples:
      vllm-manager serve manifests/llama.yaml
      vllm-manager serve /etc/vllm-manager
    """
    from vllm_manager.daemon import run

    run(files, exit_when_empty=exit_when_empty)
