"""What manifests mean for what is there: an action for each deployment, and what changed, in words. Pure."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_manager.errors import ManifestConflictError
from vllm_manager.manifest.model import WATCHING, Deployment
from vllm_manager.redact import names_a_secret, redact
from vllm_manager.types import Action, Decision, Phase

LONGEST_VALUE = 48
"""Characters; a longer value isn't quoted."""

_SECONDS = frozenset(
    {"timeout", "stall", "after", "drain", "grace", "backoff_initial", "backoff_max", "within"}
)
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A deployment that was brought up before.

    Attributes:
        source: The manifest that declared it.
    """

    deployment: Deployment
    source: str
    phase: Phase


def decide(
    deployment: Deployment, known: Known | None, *, key_changed: bool = False, recreate: bool = False
) -> Decision:
    """What `up` means for a deployment.

    Args:
        deployment: As its manifest declares it now.
        known: As it was declared before.
        key_changed: Whether its key has another value than before, also where the manifest reads the same.
        recreate: Whether it gets a new instance although nothing changed.
    """
    name = deployment.name
    if known is None:
        return Decision(name=name, action=Action.START)
    changes, applied = describe_changes(known.deployment, deployment)
    if key_changed and not any(change.startswith("api_key:") for change in changes):
        changes = (*changes, "api_key: changed")
    if known.phase in (Phase.STOPPED, Phase.FAILED, Phase.BACKOFF):
        action = Action.RESUME
    else:
        action = Action.RESTART if changes or recreate else Action.UNCHANGED
    return Decision(name=name, action=action, changes=changes, applied=applied)


def undeclared(
    declared: Collection[str], known: Mapping[str, Known], covers: Callable[[str], bool]
) -> tuple[str, ...]:
    """The known deployments whose manifest was read again and doesn't declare them any more.

    Args:
        declared: The names that are declared now.
        known: All deployments, by name.
        covers: Whether the file of that path was read, or would have been if it were still there.
    """
    return tuple(sorted(name for name in known if name not in declared and covers(known[name].source)))


def port_conflict(deployment: Deployment, known: Mapping[str, Known]) -> ManifestConflictError | None:
    """The error where another known deployment pins the same port."""
    for name, other in known.items():
        if name != deployment.name and deployment.port and deployment.port == other.deployment.port:
            return ManifestConflictError(
                cause=f"port {deployment.port} belongs to the deployment {name} already",
                hint="choose another `port`, or leave it out to get a free one",
                path=other.source,
                field="port",
            )
    return None


def unsupported(deployment: Deployment) -> tuple[tuple[str, ...], str, str] | None:
    """What the manifest may say and this version can't do: field, cause, hint; None where it can do all."""
    if deployment.engine.launcher != "process":
        cause = f"{deployment.engine.launcher} is not supported yet by this version"
        return ("engine", "launcher"), cause, "use `launcher: process`"
    if deployment.replicas > 1:
        hint = "leave it out, and declare the model once more under another name"
        return ("replicas",), "more than one replica is not supported yet by this version", hint
    return None


# --- changes, in words -------------------------------------------------------------------------------


def describe_changes(old: Deployment, new: Deployment) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What differs between two manifests of a deployment, such as ``max_model_len: 4096 → 8192``.

    Returns:
        What takes a new instance, and what applies without one. Values that may be secret aren't quoted.
    """
    before, after = old.to_json(), new.to_json()
    restarting: list[str] = []
    applying: list[str] = []
    for name in new.changes(old):
        (applying if name in WATCHING else restarting).extend(_field(name, before[name], after[name]))
    return tuple(restarting), tuple(applying)


def _field(path: str, old: Any, new: Any) -> Iterator[str]:
    if path == "api_key":
        yield f"{path}: {'added' if old is None else 'removed' if new is None else 'changed'}"
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            if (key in old, old.get(key)) != (key in new, new.get(key)):
                yield from _field(f"{path}.{key}", old.get(key), new.get(key))
    else:
        yield f"{path}: {_difference(path, old, new)}"


def _difference(path: str, old: Any, new: Any) -> str:
    shown = [_value(path, value) for value in (old, new)]
    secret = path.startswith("env.") or (path.startswith("args.") and names_a_secret(path))
    if _unset(old):
        return "added" if secret or shown[1] is None else f"added ({shown[1]})"
    if _unset(new):
        return "removed" if secret or shown[0] is None else f"removed (was {shown[0]})"
    if secret or None in shown or shown[0] == shown[1]:
        return "changed"
    return f"{shown[0]} → {shown[1]}"


def _unset(value: Any) -> bool:
    return value is None or value in ([], {})


def _value(path: str, value: Any) -> str | None:
    """The value on a line, or None where it is too long for that."""
    last = path.rpartition(".")[2]
    if value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(map(str, value))
    elif isinstance(value, list | Mapping):
        text = json.dumps(value)
    elif path == "gpus.memory" and isinstance(value, int):
        text = f"{value / _GIB:g} GiB"
    elif last in _SECONDS and not path.startswith("args.") and isinstance(value, int | float):
        text = f"{value:g} s"
    else:
        text = str(value)
    text = redact(text)
    return text if len(text) <= LONGEST_VALUE and "\n" not in text else None
