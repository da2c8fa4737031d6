"""What outlives the supervisor, as small files in the state directory.

::

    lock                        flock of the running supervisor; holds its pid
    deployments/<name>.json     what is wanted: the manifest and where it came from
    instances/<name>.json       the instance that runs, ran last or is being started
    secrets/<name>.json         its key and environment (0600); the only files with secrets
    endpoints.json              what clients need to find models, also while the supervisor is down
    events.jsonl                what happened, one JSON object a line
    logs/<instance>.log         stdout and stderr of one instance
    run/<id>/                   the instance's private working directory and TMPDIR

Every file is written whole to a temporary sibling, fsynced and renamed, so a reader (or a reboot) sees the
old or the new one, never a part. An unreadable record is set aside as
``<name>.json.corrupt-<n>``, never deleted. The truth about an instance is its process; its record only says
where to look.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from vllm_manager.codec import decode, encode
from vllm_manager.errors import StateCorrupt, StateUnwritable
from vllm_manager.redact import names_a_secret
from vllm_manager.types import Endpoint, Engine, Handle, Phase, Placement, Step, Task

T = TypeVar("T")
VERSION = 1


class Desired(StrEnum):
    """What is wanted of a deployment, by every supervisor and after every boot."""

    RUNNING = "running"
    STOPPED = "stopped"  # kept, and not running, until `start`, `restart` or `up`
    GONE = "gone"  # a `down` is under way: the next supervisor finishes it


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRecord:
    """One deployment as the user wants it.

    Attributes:
        manifest: ``Deployment.to_json()``.
        source: The manifest's path, for messages.
    """

    name: str
    manifest: Mapping[str, Any]
    source: str
    desired: Desired = Desired.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """One instance, and what is needed to take it over.

    Attributes:
        instance: Its id, such as ``tiny-3f9a1c2e``.
        fingerprint: Of the deployment that it was started from.
        handle: None until it was spawned, and after it ended.
        cwd: Its private directory. With ``log`` and ``title`` it finds processes that no handle tells of.
        steps: The start-up steps, with seconds since the spawn.
        ready_after: Seconds from spawn to READY.
        shared_memory: Files under /dev/shm that its processes used, removed when they are gone.
        failed_starts: In a row.
        restarts_at: Wall-clock times of restarts after READY, for the restart budget.
        error: The payload of what went wrong last.
        retry_at: Wall-clock time of the next start, in BACKOFF.
    """

    instance: str
    deployment: str
    fingerprint: str
    phase: Phase
    host: str
    port: int
    cwd: str
    tmp: str
    log: str
    title: str
    engine: Engine | None = None
    placement: Placement = field(default_factory=Placement)
    handle: Handle | None = None
    phase_since: float = 0.0
    spawned_at: float | None = None
    ready_at: float | None = None
    ready_after: float | None = None
    steps: tuple[Step, ...] = ()
    task: Task | None = None
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    shared_memory: tuple[str, ...] = ()
    failed_starts: int = 0
    restarts_at: tuple[float, ...] = ()
    error: Mapping[str, Any] | None = None
    retry_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What of a deployment is secret.

    Attributes:
        api_key: The key of its endpoint, or None where it asks for none.
        environment: The variables that its instances inherit from whoever brought it up.
    """

    api_key: str | None = field(default=None, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def values(self) -> tuple[str, ...]:
        """The texts that must not be shown: the key, and variables whose names say so."""
        named = (value for name, value in self.environment.items() if names_a_secret(name))
        return tuple(v for v in (self.api_key, *named) if v)


def endpoints_path(state_dir: Path) -> Path:
    """The file that ``read_endpoints`` reads."""
    return state_dir / "endpoints.json"


def read_endpoints(state_dir: Path) -> tuple[Endpoint, ...]:
    """The deployments' endpoints as the supervisor last wrote them; empty where it never did.

    Raises:
        StateCorrupt: The file can't be read as endpoints.
    """
    path = endpoints_path(state_dir)
    try:
        data = json.loads(path.read_bytes())
        return tuple(decode(Endpoint, item) for item in data["deployments"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateCorrupt(
            cause=f"{path} can't be read: {error}",
            hint="the supervisor writes it anew at the next change or start",
            path=str(path),
        ) from error


def read_secrets(state_dir: Path, deployment: str) -> Secrets | None:
    """The deployment's secrets, or None where there are none that this user may read.

    Raises:
        StateCorrupt: The file is damaged.
    """
    path = state_dir / "secrets" / f"{deployment}.json"
    try:
        return decode(Secrets, json.loads(path.read_bytes()))
    except (FileNotFoundError, PermissionError):
        return None
    except ValueError as error:
        # The decoder's own words could quote a value: a secret.
        raise StateCorrupt(
            cause=f"{path} is damaged",
            hint=f"bring {deployment} up again to write it anew",
            path=str(path),
        ) from error


def deployment_names(state_dir: Path) -> list[str]:
    """The names of all deployments, without reading their records."""
    return sorted(path.stem for path in (state_dir / "deployments").glob("*.json"))


def read_deployments(state_dir: Path) -> dict[str, DeploymentRecord]:
    """The deployment records that can be read, by name; changes nothing, so it needs no lock."""
    return _load(state_dir / "deployments", DeploymentRecord)[0]


def read_instances(state_dir: Path) -> dict[str, InstanceRecord]:
    """The instance records that can be read, by deployment; changes nothing, so it needs no lock."""
    return _load(state_dir / "instances", InstanceRecord)[0]


def logs_of(state_dir: Path, deployment: str) -> list[Path]:
    """The logs of a deployment's instances, oldest first."""
    # An instance id is the deployment's name, a dash and eight hex digits.
    found = [
        path for path in (state_dir / "logs").glob("*.log") if path.stem.rpartition("-")[0] == deployment
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime)


class Store:
    """The state directory of one supervisor. Blocking: its files are small and local."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._create(root)
        for name in ("deployments", "instances", "secrets", "logs", "run"):
            self._create(root / name)

    @staticmethod
    def _create(path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error

    # --- deployments and instances

    def deployments(self) -> tuple[dict[str, DeploymentRecord], list[StateCorrupt]]:
        """All deployment records by name, and what had to be set aside."""
        return self._load_all("deployments", DeploymentRecord)

    def instances(self) -> tuple[dict[str, InstanceRecord], list[StateCorrupt]]:
        """All instance records by deployment, and what had to be set aside."""
        return self._load_all("instances", InstanceRecord)

    def save_deployment(self, record: DeploymentRecord) -> None:
        """Write it durably. Raises StateUnwritable."""
        self._write(self.root / "deployments" / f"{record.name}.json", encode(record))

    def save_instance(self, record: InstanceRecord) -> None:
        """Write it durably. Raises StateUnwritable."""
        self._write(self.root / "instances" / f"{record.deployment}.json", encode(record))

    def forget(self, deployment: str) -> None:
        """Remove everything that is kept of a deployment, its logs included."""
        for path in [
            *(self.root / kind / f"{deployment}.json" for kind in ("deployments", "instances", "secrets")),
            *self.logs_of(deployment),
        ]:
            path.unlink(missing_ok=True)

    # --- secrets, endpoints, events

    def save_secrets(self, deployment: str, secrets: Secrets) -> None:
        """Write them durably, readable by the owner alone. Raises StateUnwritable."""
        self._write(self.root / "secrets" / f"{deployment}.json", encode(secrets))

    def secrets(self, deployment: str) -> Secrets:
        """The deployment's secrets; empty where there are none, or where they are damaged."""
        with suppress(StateCorrupt):
            return read_secrets(self.root, deployment) or Secrets()
        return Secrets()

    def save_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Publish how clients reach the deployments, without keys. Raises StateUnwritable."""
        public = [replace(endpoint, api_key=None) for endpoint in endpoints]
        self._write(
            endpoints_path(self.root), {"version": VERSION, "deployments": encode(public)}, sync=False
        )

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to the history; a history that can't be written stops nothing."""
        with suppress(OSError):
            descriptor = os.open(self.root / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, json.dumps(event).encode() + b"\n")
            finally:
                os.close(descriptor)

    # --- logs

    def log_path(self, instance: str) -> Path:
        """Where that instance's output goes."""
        return self.root / "logs" / f"{instance}.log"

    def logs_of(self, deployment: str) -> list[Path]:
        """The logs of a deployment's instances, oldest first."""
        return logs_of(self.root, deployment)

    # --- files

    def _load_all(self, kind: str, cls: type[T]) -> tuple[dict[str, T], list[StateCorrupt]]:
        records, damaged = _load(self.root / kind, cls)
        return records, [_quarantine(path, error) for path, error in damaged]

    def _write(self, path: Path, data: Any, *, sync: bool = True) -> None:
        # endpoints.json is derived and rewritten at every start, so it needn't survive a power cut.
        self._create(path.parent)  # somebody may have tidied it away
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(descriptor, "w") as file:
                json.dump(data, file, indent=1)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if sync:
                _sync_directory(path.parent)
        except OSError as error:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)
            raise _unwritable(path, error) from error


def _load(directory: Path, cls: type[T]) -> tuple[dict[str, T], list[tuple[Path, Exception]]]:
    records: dict[str, T] = {}
    damaged: list[tuple[Path, Exception]] = []
    for path in sorted(directory.glob("*.json")):
        try:
            records[path.stem] = decode(cls, _upgraded(json.loads(path.read_bytes())))
        except FileNotFoundError:  # forgotten meanwhile
            continue
        except (OSError, ValueError) as error:
            damaged.append((path, error))
    return records, damaged


def _upgraded(data: Any) -> Any:
    # Before there was `stop`, a deployment's record said `wanted`, which was false during a `down`.
    if isinstance(data, dict) and data.get("wanted") is False and "desired" not in data:
        return data | {"desired": Desired.GONE}
    return data


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quarantine(path: Path, error: Exception) -> StateCorrupt:
    for number in itertools.count(1):
        aside = path.with_name(f"{path.name}.corrupt-{number}")
        if not aside.exists():
            break
    with suppress(OSError):
        path.rename(aside)
    return StateCorrupt(
        cause=f"{path} is damaged ({error}); set aside as {aside.name}",
        hint="its deployment can be brought up again from its manifest",
        path=str(path),
        quarantined_to=str(aside),
    )


def _unwritable(path: Path, error: OSError) -> StateUnwritable:
    return StateUnwritable(
        cause=f"can't write {path}: {error.strerror}",
        hint="make room or give this user rights there; $VLLM_MANAGER_STATE_DIR moves the state elsewhere",
        path=str(path),
        errno=error.errno,
    )
