"""Reading manifests for the command line; and the commands validate and schema."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vllm_manager.cli.options import FILES, JSON
from vllm_manager.cli.output import note, print_json
from vllm_manager.errors import ManifestConflictError, ManifestError

if TYPE_CHECKING:
    from vllm_manager.manifest.loaded import Loaded
    from vllm_manager.preflight import Preflight


@click.command()
@FILES
@JSON
def validate(files: tuple[Path, ...], as_json: bool) -> None:
    """Check manifests without starting anything.

    The errors in the fields of all files are told at once. Once the fields are right, flags are checked
    against the engine that would run them, where it is installed. Of a directory, its manifests.

    \b
    Examples:
      vllm-manager validate manifests/*.yaml
      vllm-manager validate manifests/
    """
    from vllm_manager.manifest.load import load_manifests

    manifests = load_manifests(files, os.environ)
    _refuse(_key_file_errors(manifests), manifests)
    skipped = check_flags(manifests)
    refusals = [unsupported(each) for each in manifests]
    for each, refusal in zip(manifests, refusals, strict=True):
        if refusal is not None:
            note(f"{each.deployment.name}: {refusal.field}: {refusal.cause}")
    if as_json:
        print_json(
            [
                {
                    "file": str(each.source),
                    "name": each.deployment.name,
                    "skipped": why,
                    "unsupported": refusal and refusal.cause,
                }
                for each, why, refusal in zip(manifests, skipped, refusals, strict=True)
            ]
        )
        return
    for each in manifests:
        click.echo(f"{each.source}: ok ({each.deployment.name})")


def _key_file_errors(manifests: "Sequence[Loaded]") -> Iterator[ManifestError]:
    from vllm_manager.manifest.model import FileRef
    from vllm_manager.manifest.secrets import resolve_key

    for loaded in manifests:
        # A variable may be set where `up` is run, and not here.
        if isinstance(loaded.deployment.api_key, FileRef):
            try:
                resolve_key(loaded, {})
            except ManifestError as error:
                yield error


@click.command()
def schema() -> None:
    """Print the JSON Schema of manifests, for editors.

    \b
    Example:
      vllm-manager schema > schema.json
    """
    from vllm_manager.manifest.schema import text

    click.echo(text(), nl=False)


def load_supported(files: Sequence[Path]) -> "tuple[Loaded, ...]":
    """The deployments of these files and directories, in the order in which they are brought up.

    Raises:
        ManifestError: Something is wrong with them, or asks for what this version can't do.
    """
    from vllm_manager.manifest.load import in_order, load_manifests, together

    manifests = load_manifests(files, os.environ)
    if errors := [error for each in manifests if (error := unsupported(each)) is not None]:
        raise together(errors, *map(str, files))
    return in_order(manifests)


def unsupported(loaded: "Loaded") -> ManifestError | None:
    """The error where a manifest asks for what this version can't do."""
    from vllm_manager import reconcile

    found = reconcile.unsupported(loaded.deployment)
    return loaded.error(*found) if found else None


def located_conflict(loaded: "Loaded", conflict: ManifestConflictError) -> ManifestConflictError:
    """A port that another deployment pins, as an error of the manifest that asks for it now."""
    owner = f" ({conflict.path})" if conflict.path else ""
    place = loaded.error(("port",), f"{conflict.cause}{owner}", conflict.hint)
    return replace(
        conflict,
        cause=place.cause,
        hint=place.hint,
        path=place.path,
        line=place.line,
        column=place.column,
        source=place.source,
    )


def check_flags(manifests: "Sequence[Loaded]") -> list[str | None]:
    """Check what goes to vLLM against the engines that will run it; notes for which that wasn't possible.

    Returns:
        For each, why its flags weren't checked, or None where they were.

    Raises:
        ManifestError: An engine doesn't know a flag, or not that value; a file or the engine isn't there.
    """
    checks = [check(loaded) for loaded in manifests]
    found = (error for each in checks for error in (each.no_engine, *each.errors) if error is not None)
    _refuse(found, manifests)
    for loaded, each in zip(manifests, checks, strict=True):
        if each.skipped:
            note(f"{loaded.deployment.name}: {each.skipped}")
    return [each.skipped for each in checks]


def _refuse(found: Iterable[ManifestError], manifests: "Sequence[Loaded]") -> None:
    """Raise what was found, where anything was."""
    from vllm_manager.manifest.load import together

    # What stands under `defaults:` is wrong once, however many deployments have it.
    errors = {(error.path, error.line, error.column, error.cause): error for error in found}
    if errors:
        raise together([*errors.values()], *dict.fromkeys(str(each.source) for each in manifests))


def check(loaded: "Loaded") -> "Preflight":
    """What would keep a deployment from starting, as far as its engine and its files tell."""
    from vllm_manager.command import inherited
    from vllm_manager.paths import engines_dir
    from vllm_manager.preflight import preflight

    return preflight(loaded, inherited(os.environ), engines_dir(), report=note)
