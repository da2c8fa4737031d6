"""From manifest files to deployments, with every problem located."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vllm_manager.errors import (
    ManifestConflictError,
    ManifestError,
    ManifestErrors,
    ManifestUnreadable,
)
from vllm_manager.manifest import flags, local_files, secrets
from vllm_manager.manifest.document import Document
from vllm_manager.manifest.explain import Problem, problems
from vllm_manager.manifest.loaded import Loaded
from vllm_manager.manifest.model import Deployment
from vllm_manager.manifest.several import Deployments
from vllm_manager.manifest.source import files_of, read_source
from vllm_manager.manifest.variables import Variables
from vllm_manager.manifest.yaml_nodes import read

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on

_Place = tuple[int | None, int | None]


def load_manifest(path: Path, environ: Mapping[str, str]) -> tuple[Loaded, ...]:
    """The deployments that a file declares, one at least.

    Args:
        path: The file.
        environ: The variables that the file may use: the environment of whoever runs `up`.

    Raises:
        ManifestError: It can't be used; ManifestErrors where several things are wrong.
    """
    loaded, errors = _load(path, environ)
    errors += _conflicts(loaded)
    if errors:
        raise together(errors, str(path))
    return tuple(loaded)


def load_manifests(paths: Sequence[Path], environ: Mapping[str, str]) -> tuple[Loaded, ...]:
    """The deployments of several files, and of the files in several directories.

    A file that is named twice is read once. No two deployments may claim one name or one port.

    Raises:
        ManifestError: The one problem, or ManifestErrors with those of all files.
    """
    files, errors = files_of(paths)
    loaded: list[Loaded] = []
    for path in files:
        try:
            found, problems = _load(path, environ)
            loaded += found
            errors += problems
        except ManifestUnreadable as error:
            errors.append(error)
    errors += _conflicts(loaded)
    if errors:
        raise together(errors, *map(str, paths))
    return tuple(loaded)


def in_order(manifests: Sequence[Loaded]) -> tuple[Loaded, ...]:
    """As they are to be brought up: those with a port of their own first, so that no other gets it."""
    return tuple(sorted(manifests, key=lambda each: each.deployment.port is None))


def together(errors: Sequence[ManifestError], *paths: str) -> ManifestError:
    """The one error, or all of them in one. ``paths`` are what was to be loaded."""
    if len(errors) == 1:
        return errors[0]
    cause = f"{len(errors)} problems in {', '.join(paths)}"
    return ManifestErrors(cause=cause, path=paths[0] if len(paths) == 1 else "", errors=tuple(errors))


def _load(path: Path, environ: Mapping[str, str]) -> tuple[list[Loaded], list[ManifestError]]:
    source = read_source(path)
    trees, syntax = read(source)
    if not trees and not syntax:
        hint = "a manifest starts with `name:` and `model:`"
        raise ManifestUnreadable(cause="is empty", hint=hint, path=source.path)
    variables = Variables(source, environ)
    deployments = Deployments(source, variables)
    loaded: list[Loaded] = []
    found: list[tuple[Document, list[ManifestError]]] = []
    for document in (document for tree in trees for document in deployments.of(tree)):
        result = _deployment(document, path.absolute())
        if isinstance(result, Loaded):
            loaded.append(result)
            result = []
        found.append((document, result))
    errors = _one_a_place([*syntax, *variables.problems, *deployments.problems, *_told_once(found)])
    return loaded, errors


def _deployment(document: Document, source: Path) -> Loaded | list[ManifestError]:
    data = document.data()
    literal, found = _move_key_out(data)
    found += local_files.resolve(data, source.parent)
    if isinstance(data.get("args"), dict):
        found += flags.contradictions(data["args"])
    try:
        deployment = Deployment.model_validate(data)
    except ValidationError as error:
        found += problems(error, Deployment, data)
    if found:
        return [document.error(p.path, p.cause, p.hint, at_key=p.at_key) for p in found]
    return Loaded(deployment=deployment, source=source, document=document, literal_key=literal)


def _move_key_out(data: dict[str, Any]) -> tuple[str | None, list[Problem]]:
    key = data.get("api_key")
    if not isinstance(key, str) or key == "generate":
        return None, []
    data["api_key"] = "given"
    flaw = secrets.key_flaw(key)
    hint = "write `api_key: generate`, or `null` for no key"
    if flaw is None and key.lower() in ("none", "null", "false", "true"):
        flaw = "would be that very word, which anybody could guess"
    return key, [] if flaw is None else [Problem(path=("api_key",), cause=f"the key {flaw}", hint=hint)]


def _told_once(found: Sequence[tuple[Document, list[ManifestError]]]) -> Iterator[ManifestError]:
    # What is wrong in `defaults:` would be told for each deployment. Where it goes wrong with some of them
    # only, it says with which.
    users: Counter[_Place] = Counter(place for document, _ in found for place in document.shared)
    lines: defaultdict[_Place, list[int]] = defaultdict(list)
    for document, errors in found:
        for place in {(error.line, error.column) for error in errors} & document.shared:
            lines[place].append(document.root.line)
    for _, errors in found:
        for error in errors:
            place = (error.line, error.column)
            if len(those := lines.get(place, [])) < users[place]:
                more = f" and {len(those) - 1} more" if len(those) > 1 else ""
                yield replace(error, cause=f"{error.cause} (in the deployment of line {those[0]}{more})")
            else:
                yield error


def _one_a_place(found: Iterable[ManifestError]) -> list[ManifestError]:
    # What the YAML already got wrong at a place explains the rest; but several fields may miss from one.
    errors: dict[tuple[_Place, str | None], ManifestError] = {}
    for error in found:
        missing = error.field if error.cause.startswith("is missing") else None
        errors.setdefault(((error.line, error.column), missing), error)
    return sorted(errors.values(), key=lambda error: (error.line or 0, error.column or 0))


def _conflicts(loaded: Sequence[Loaded]) -> Iterator[ManifestConflictError]:
    names: dict[str, Loaded] = {}
    ports: defaultdict[int, list[Loaded]] = defaultdict(list)
    for later in loaded:
        own = later.deployment
        if (earlier := names.setdefault(own.name, later)) is not later:
            yield _conflict(later, earlier, "name", f"the name {own.name}")
        if own.port is None:
            continue
        others = (other for other in ports[own.port] if _overlap(other.deployment.host, own.host))
        if earlier is later and (other := next(others, None)) is not None:
            yield _conflict(later, other, "port", f"port {own.port}")
        ports[own.port].append(later)


def _overlap(one: str, other: str) -> bool:
    same = {"localhost": "127.0.0.1"}
    return same.get(one, one) == same.get(other, other) or bool(_WILDCARDS & {one, other})


def _conflict(later: Loaded, earlier: Loaded, name: str, what: str) -> ManifestConflictError:
    taken = earlier.error((name,), "")
    cause = f"{what} is taken by {earlier.source}:{taken.line}"
    place = later.error((name,), cause, "give each its own")
    return ManifestConflictError(
        cause=place.cause,
        hint=place.hint,
        path=place.path,
        line=place.line,
        column=place.column,
        field=name,
        source=place.source,
    )
