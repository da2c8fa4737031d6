"""The command plan, which is also `up --dry-run`."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_manager.cli.command_line import shell_lines
from vllm_manager.cli.options import FILES, JSON, PRUNE, RECREATE
from vllm_manager.cli.output import error_lines, fields, gibibytes, print_json, style
from vllm_manager.codec import encode
from vllm_manager.types import Action, Phase

if TYPE_CHECKING:
    from vllm_manager.cli.planning import Planned

COLOURS = {Action.START: "green", Action.RESUME: "green", Action.RESTART: "yellow", Action.END: "red"}


@click.command()
@FILES
@RECREATE
@PRUNE
@JSON
def plan(files: tuple[Path, ...], recreate: bool, prune: bool, as_json: bool) -> None:
    """Show what `up` would do with these manifests, and why not where it couldn't. Starts nothing.

    For each deployment: what would happen, on which GPUs and port, with which engine, command and environment
    (secrets masked). Exit code 0 if all of it could run, else that of the first reason against it.

    \b
    Examples:
      vllm-manager plan manifests/llama.yaml
      vllm-manager plan --prune models/
    """
    show_plan(files, recreate=recreate, prune=prune, as_json=as_json)


def show_plan(files: Sequence[Path], *, recreate: bool, prune: bool, as_json: bool) -> None:
    """Print the plan, and exit as it says."""
    from vllm_manager.cli import planning

    plans = planning.plan(files, recreate=recreate, prune=prune)
    if as_json:
        print_json([_data(each) for each in plans])
    else:
        for each in plans:
            _print(each, files)
        click.echo(_summary(plans))
    problems = [problem for each in plans for problem in each.problems]
    if problems:
        raise click.exceptions.Exit(problems[0].exit_code)


def _data(planned: "Planned") -> dict[str, object]:
    data: dict[str, object] = encode(planned)
    return data | {"problems": [encode(problem.payload()) for problem in planned.problems]}


def _print(planned: "Planned", files: Sequence[Path]) -> None:
    name = style(planned.name, bold=True)
    click.echo(f"{name}: {style(_what(planned, files), fg=COLOURS.get(planned.action))}")
    for change in planned.changes:
        click.echo(f"  {change}")
    for change in planned.applied:
        click.echo(f"  {change} (applies without a restart)")
    for problem in planned.problems:
        for line in error_lines(problem):
            click.echo(f"  {line}")
    fields(_where(planned))
    if planned.command:
        click.echo("  command")
        for line in shell_lines(planned.command, planned.environment):
            click.echo(f"    {line}")


def _what(planned: "Planned", files: Sequence[Path]) -> str:
    at = f", {planned.phase} now" if planned.phase else ""
    if planned.action is Action.KEEP:
        return keep_text(planned.source, planned.phase, files)
    if planned.action is Action.END:
        return f"ends, since it is no longer in {planned.source}"
    texts = {
        Action.START: "starts",
        Action.RESTART: "restarts, since its manifest changed"
        if planned.changes
        else "restarts, as asked for",
        Action.RESUME: f"starts again{at}",
        Action.UNCHANGED: f"unchanged{at}",
    }
    return f"can't run ({planned.action})" if planned.problems else texts[planned.action]


def keep_text(source: str, phase: Phase | None, files: Sequence[Path]) -> str:
    """What to say of a deployment that its manifest doesn't declare any more."""
    state = "it is kept, stopped" if phase is Phase.STOPPED else "it runs on"
    command = f"vllm-manager up --prune {' '.join(map(str, files))}"
    return f"is no longer in {os.path.relpath(source)}; {state}: `{command}` ends it"


def _where(planned: "Planned") -> Iterator[tuple[str, str]]:
    if planned.placement is not None:
        placed = [
            f"{gpu.index}: {gibibytes(gpu.memory)} of {gibibytes(gpu.memory_total)} GiB"
            for gpu in planned.placement.gpus
        ]
        yield "gpus", ", ".join(placed) or "none, runs on the CPU"
    yield "port", str(planned.port or "")
    if planned.engine is not None:
        version = f"vLLM {planned.engine.version or '(version unknown)'}"
        if planned.installs is not None:
            yield "engine", f"{version}, which `up` installs first"
        else:
            yield "engine", f"{version}, {planned.engine.executable}"
    yield "note", planned.skipped or ""
    for text in planned.notes:
        yield "note", text


def _summary(plans: Sequence["Planned"]) -> str:
    words = {
        Action.START: "to start",
        Action.RESTART: "to restart",
        Action.RESUME: "to start again",
        Action.UNCHANGED: "unchanged",
        Action.END: "to end",
        Action.KEEP: "no longer declared",
    }
    counts = Counter("that can't run" if each.problems else words[each.action] for each in plans)
    return "plan: " + (", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing to do")
