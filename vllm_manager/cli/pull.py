"""The command that fetches models before they are needed: pull."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_manager.cli.output import duration, interactive, note, print_json, table
from vllm_manager.types import Download

if TYPE_CHECKING:
    from vllm_manager.weights.cache import Fetched
    from vllm_manager.weights.wanted import Need

LINE_EVERY = 10.0
"""Seconds between two lines of progress where lines can't be redrawn."""


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="MODEL|FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print data as JSON.")
def pull(what: tuple[str, ...], as_json: bool) -> None:
    """Fetch models from the Hugging Face hub, as far as vLLM reads them.

    MODEL is an id, with @ and a branch, tag or commit where it isn't the main one. Of a manifest, FILE, all
    that its deployments need is fetched. `up` does the same by itself. A pull that was interrupted goes on
    from what has arrived.

    \b
    Examples:
      vllm-manager pull Qwen/Qwen3-0.6B
      vllm-manager pull meta-llama/Llama-3.1-8B-Instruct@main manifests/embed.yaml
    """
    from vllm_manager.weights.fetch import pull as fetch

    wanted = list(_wanted(what))
    results: list[Fetched] = []
    try:
        with _view() as show:
            for needs, environment in wanted:
                results += fetch(needs, environment, show)
    except KeyboardInterrupt:
        note("\nwhat has arrived is kept; the same command goes on from there")
        raise
    if as_json:
        print_json(results)
    else:
        rows = [[r.repository, r.revision, r.commit[:12], f"{r.bytes / 1e9:.2f} GB", r.path] for r in results]
        table(["REPOSITORY", "REVISION", "COMMIT", "SIZE", "PATH"], rows)


def _wanted(what: tuple[str, ...]) -> "Iterator[tuple[tuple[Need, ...], Mapping[str, str]]]":
    from vllm_manager.command import inherited
    from vllm_manager.manifest.load import load_manifests
    from vllm_manager.weights.repositories import need_of, needs

    environment = inherited(os.environ)  # what an engine will see: its cache is the one to fill
    files = [Path(each) for each in what if _is_manifest(each)]
    for name in what:
        if not _is_manifest(name):
            try:
                yield (need_of(name, environment),), environment
            except ValueError:
                raise click.UsageError(
                    f"{name!r} is no Hugging Face id (owner/name, owner/name@revision) and no manifest",
                    click.get_current_context(),
                ) from None
    for loaded in load_manifests(files, os.environ) if files else ():
        deployment = loaded.deployment
        found = needs(deployment, environment)
        if not found:
            note(f"{deployment.name}: nothing of it is on the hub")
        yield found, environment | deployment.env


def _is_manifest(name: str) -> bool:
    return (
        name.endswith((".yaml", ".yml", ".json")) or name.startswith((".", "/", "~")) or os.path.exists(name)
    )


@contextmanager
def _view() -> Iterator[Callable[[Download], None]]:
    """A bar for each repository on a terminal, lines elsewhere; both on stderr."""
    if not interactive():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:

        def show(download: Download) -> None:
            name = download.repository
            if name not in bars:
                # What is there already is no part of the speed.
                bars[name] = progress.add_task(name, total=download.total, completed=download.done)
            progress.update(bars[name], total=download.total, completed=download.done)

        yield show


class _Lines:
    """For pipes and files: a line when a repository begins and ends, and now and then one between."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[float, bool]] = {}

    def show(self, download: Download) -> None:
        now, whole = time.monotonic(), download.done >= download.total
        at, was_whole = self._shown.get(download.repository, (-LINE_EVERY, False))
        if was_whole or (now - at < LINE_EVERY and not whole):
            return
        self._shown[download.repository] = (now, whole)
        text = f"{download.repository}: {download.done / 1e9:.2f} of {download.total / 1e9:.2f} GB"
        if download.speed > 0 and not whole:
            rest = duration((download.total - download.done) / download.speed)
            text += f", {download.speed / 1e6:.1f} MB/s, {rest} left"
        note(text)
