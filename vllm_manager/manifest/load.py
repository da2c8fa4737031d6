"""From manifest files to deployments, with every problem located."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vllm_manager.errors import (
    ManifestConflictError,
    ManifestError,
    ManifestErrors,
)
from vllm_manager.manifest import flags, local_files, secrets
from vllm_manager.manifest.explain import Problem, problems
from vllm_manager.manifest.loaded import Loaded
from vllm_manager.manifest.model import Deployment
from vllm_manager.manifest.source import read_source
from vllm_manager.manifest.yaml_nodes import Document, read

_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on


def load_manifest(path: Path) -> Loaded:
    """The deployment that a file declares.

    Raises:
        ManifestError: It can't be used; ManifestErrors where several things are wrong.
    """
    document = read(read_source(path))
    source = path.absolute()
    data = document.data()
    if several := [name for name in ("deployments", "defaults") if name in data]:
        raise document.error(
            (several[0],),
            "several deployments in one file are not supported yet by this version",
            "one deployment a file: write its fields at the top level",
            at_key=True,
        )
    literal, found = _move_key_out(data)
    found += local_files.resolve(data, source.parent)
    if isinstance(data.get("args"), dict):
        found += flags.repeats(data["args"])
    try:
        deployment = Deployment.model_validate(data)
    except ValidationError as error:
        found += problems(error, Deployment, data)
    errors = _located(document, found)
    if errors:
        raise _combined(errors, f"{len(errors)} problems in {path}", str(path))
    return Loaded(deployment=deployment, source=source, document=document, literal_key=literal)


def load_manifests(paths: Sequence[Path]) -> tuple[Loaded, ...]:
    """The deployments of several files, which must not claim one name or one port.

    Raises:
        ManifestError: The one problem, or ManifestErrors with those of all files.
    """
    loaded: list[Loaded] = []
    errors: list[ManifestError] = []
    for path in paths:
        try:
            loaded.append(load_manifest(path))
        except ManifestErrors as several:
            errors += several.errors
        except ManifestError as error:
            errors.append(error)
    errors += _conflicts(loaded)
    if errors:
        raise _combined(errors, f"{len(errors)} problems in {', '.join(map(str, paths))}")
    return tuple(loaded)


def _combined(errors: list[ManifestError], cause: str, path: str = "") -> ManifestError:
    return errors[0] if len(errors) == 1 else ManifestErrors(cause=cause, path=path, errors=tuple(errors))


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


def _located(document: Document, found: Sequence[Problem]) -> list[ManifestError]:
    # One error a place: what the YAML already got wrong there explains the rest.
    errors: dict[tuple[int | None, int | None], ManifestError] = {}
    fields = (document.error(p.path, p.cause, p.hint, at_key=p.at_key) for p in found)
    unplaced: list[ManifestError] = []
    for error in (*document.problems, *fields):
        if error.cause == "is missing":  # several may be missing from one place
            unplaced.append(error)
        else:
            errors.setdefault((error.line, error.column), error)
    return sorted([*unplaced, *errors.values()], key=lambda error: (error.line or 0, error.column or 0))


def _conflicts(loaded: Sequence[Loaded]) -> Iterator[ManifestConflictError]:
    for number, later in enumerate(loaded):
        for earlier in loaded[:number]:
            one, other = earlier.deployment, later.deployment
            if one.name == other.name:
                yield _conflict(later, earlier, "name", f"the name {one.name} is taken by {earlier.source}")
            elif one.port is not None and one.port == other.port and _overlap(one.host, other.host):
                yield _conflict(later, earlier, "port", f"port {one.port} is taken by {earlier.source}")


def _overlap(one: str, other: str) -> bool:
    same = {"localhost": "127.0.0.1"}
    return same.get(one, one) == same.get(other, other) or bool(_WILDCARDS & {one, other})


def _conflict(later: Loaded, earlier: Loaded, name: str, cause: str) -> ManifestConflictError:
    hint = "give each its own" if later.source != earlier.source else "name the file once"
    place = later.error((name,), cause, hint)
    return ManifestConflictError(
        cause=cause,
        hint=hint,
        path=place.path,
        line=place.line,
        column=place.column,
        field=name,
        source=place.source,
    )
