"""Commands around engines: engine install, list, remove."""

import sys
import time
from pathlib import Path

import click

from vllm_manager.cli.connect import all_statuses
from vllm_manager.cli.output import ago, duration, gibibytes, interactive, note, print_json, table
from vllm_manager.errors import ManagerError
from vllm_manager.paths import engines_dir

LINE_EVERY = 15.0
"""Seconds between two lines of progress where lines can't be redrawn."""


@click.group()
def engine() -> None:
    """Install, list and remove the vLLM engines that vllm-manager keeps."""


@engine.command()
@click.argument("version", required=False)
@click.option(
    "--python",
    metavar="PATH",
    help="Build it with this interpreter.  [default: a suitable one is looked for]",
)
@click.option("--index-url", metavar="URL", help="Fetch everything from this package index.")
@click.option(
    "--find-links",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Install from the wheels in this directory, without an index; may be given several times.",
)
def install(
    version: str | None, python: str | None, index_url: str | None, find_links: tuple[Path, ...]
) -> None:
    """Install a vLLM for the CPU. Does nothing if it is there.

    It takes about 3.5 GB, and 2 minutes on a fast line.

    \b
    Examples:
      vllm-manager engine install
      vllm-manager engine install 0.32.0 --find-links /media/wheels
    """
    install_with_progress(version, python=python, index_url=index_url, find_links=find_links)


def install_with_progress(
    version: str | None,
    *,
    python: str | None = None,
    index_url: str | None = None,
    find_links: tuple[Path, ...] = (),
) -> None:
    """Install the CPU engine of a version (the default one for None), showing progress on stderr."""
    from vllm_manager.engines.provision import InstallOptions, install_cpu_engine
    from vllm_manager.engines.recipes import DEFAULT_CPU_VERSION

    began = time.monotonic()
    options = InstallOptions(python=python, index_url=index_url, find_links=find_links)
    view = _InstallView()
    try:
        found = install_cpu_engine(
            version or DEFAULT_CPU_VERSION, engines_dir=engines_dir(), options=options, report=view.show
        )
    finally:
        view.close()
    note(f"engine {found.name} is installed ({duration(time.monotonic() - began)})")


class _InstallView:
    """A line that is redrawn on a terminal; elsewhere a line per step, and now and then one more."""

    def __init__(self) -> None:
        self._live = interactive()
        self._step = -1
        self._shown_at = 0.0

    def show(self, progress: "object") -> None:
        from vllm_manager.engines.progress import InstallProgress

        assert isinstance(progress, InstallProgress)  # noqa: S101
        head = f"[{progress.step}/{progress.total}] " if progress.step else ""
        text = f"{head}{progress.what}"
        if progress.detail:
            text += f": {progress.detail}"
        if self._live:
            if progress.step != self._step and self._step >= 0:
                sys.stderr.write("\n")
            self._draw(f"{text}  {duration(progress.elapsed)}")
        elif progress.step != self._step or time.monotonic() - self._shown_at >= LINE_EVERY:
            note(f"{text}  ({duration(progress.elapsed)})")
            self._shown_at = time.monotonic()
        self._step = progress.step

    def _draw(self, text: str) -> None:
        import shutil

        columns = shutil.get_terminal_size().columns
        sys.stderr.write(f"\r\x1b[2K{text[: columns - 1]}")
        sys.stderr.flush()

    def close(self) -> None:
        if self._live and self._step >= 0:
            sys.stderr.write("\n")


@engine.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")
def list_engines(as_json: bool) -> None:
    """List the installed engines.

    \b
    Example:
      vllm-manager engine list
    """
    from vllm_manager.engines.find import installed

    found = installed(engines_dir())
    if as_json:
        print_json(found)
        return
    rows = [
        [
            each.name,
            each.version,
            each.python_version,
            f"{gibibytes(each.size)} GiB",
            ago(each.installed_at),
            str(each.path),
        ]
        for each in found
    ]
    table(["NAME", "VLLM", "PYTHON", "SIZE", "AGE", "PATH"], rows)


@engine.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove an installed engine, by the name that `engine list` shows.

    \b
    Example:
      vllm-manager engine remove cpu-0.32.0
    """
    from vllm_manager.engines.find import remove as remove_engine

    users = [status.name for status in all_statuses() if status.engine == name and status.phase.live]
    if users:
        raise ManagerError(
            cause=f"engine {name} runs {', '.join(users)}",
            hint=f"`vllm-manager down {' '.join(users)}` first",
        )
    remove_engine(name, engines_dir())
    note(f"engine {name} is removed")
