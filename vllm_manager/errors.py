"""Every error of vllm-manager, each with a code, a one-line cause, typed fields and a hint.

::

    ManagerError                                                    exit code
    ├─ ManifestError                                                        2
    │   ├─ ManifestUnreadable      the file can't be read, or is no manifest
    │   ├─ ManifestSyntaxError     not YAML, or YAML that means something else than it looks like
    │   ├─ ManifestFieldError      one field is unknown, missing or wrong
    │   ├─ ManifestConflictError   two deployments claim one name or one port
    │   └─ ManifestErrors          several of the above at once
    ├─ PlacementError              no GPU can take it; the reason per GPU   3
    ├─ NotFound                    no deployment of that name               4
    ├─ AmbiguousName               several deployments answer to that name  4
    ├─ NoSupervisor                nothing answers on the control socket    5
    ├─ StartFailed                                                          6
    │   ├─ ExecutableNotFound      the engine's program isn't there
    │   ├─ PortInUse               somebody else holds the port
    │   ├─ SpawnFailed             the operating system refused to start it
    │   ├─ EarlyExit               it ended before it was ready
    │   ├─ StartupTimeout          it went past the readiness timeout
    │   ├─ Stalled                 it showed no progress for too long
    │   ├─ WarmUpFailed            it answers HTTP, but produces no token
    │   ├─ ModelNotFound           the model's directory isn't there
    │   ├─ DownloadError           the model's files can't be fetched
    │   │   ├─ GatedRepository     its owner hasn't let this user in
    │   │   ├─ RepositoryNotFound  no such repository or revision, or a private one
    │   │   ├─ TokenRefused        the hub doesn't know the token
    │   │   ├─ HubUnreachable      no answer from the hub, or HF_HUB_OFFLINE, and not in the cache
    │   │   ├─ HubBusy             429; carries retry_after
    │   │   ├─ DiskFull            the cache's file system has no room for them
    │   │   ├─ TransferBroken      a file arrived broken, or not at all, again and again
    │   │   └─ NoWeights           the repository has none that vLLM loads
    │   └─ EngineError
    │       ├─ EngineMissing       no vLLM here that could run this
    │       ├─ EngineBroken        a vLLM is there and can't be used
    │       └─ EngineInstallFailed provisioning a vLLM failed
    ├─ InstanceHung                a ready instance computes nothing any more 1
    ├─ WaitTimeout                 the caller's own patience ran out        7
    ├─ AlreadyRunning              another supervisor holds the lock        8
    ├─ HandleError                                                          1
    │   ├─ InstanceGone            the process isn't there any more
    │   └─ IdentityMismatch        that pid belongs to somebody else now
    ├─ StateError                                                           1
    │   ├─ StateCorrupt            a state file can't be read as what it should be
    │   └─ StateUnwritable         a state file can't be written
    ├─ ControlError                                                         1
    │   ├─ SocketDenied            no rights to the control socket
    │   └─ BadControlRequest       the supervisor doesn't understand the request
    └─ ClientError                 a request to a model failed              1
        ├─ AuthenticationFailed    401, 403
        ├─ UnknownModel            404: the model isn't served there
        ├─ ModelNotReady           the deployment is known, and can't answer yet
        ├─ InvalidRequest          400, 422
        │   └─ ContextLengthExceeded
        ├─ UnsupportedOperation    404, 405, 501: this model has no such endpoint
        ├─ Busy                    429, 503; carries retry_after
        ├─ UpstreamError           500 and the rest of 5xx
        ├─ Unavailable             no connection
        ├─ ResponseTimeout         no answer in time
        ├─ InvalidResponse         a 200 that holds an error, or isn't what it should be
        └─ StreamInterrupted       the stream broke; carries the text so far

No message may hold a secret: whoever raises passes text through ``redact`` where it quotes foreign output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

_BY_CODE: dict[str, type["ManagerError"]] = {}


@dataclass(eq=False, kw_only=True)
class ManagerError(Exception):
    """Anything that vllm-manager reports: what went wrong, and what to do about it.

    Attributes:
        cause: One line, for people; says what and why.
        hint: What would help, or None.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    cause: str
    hint: str | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _BY_CODE[cls.code] = cls

    def __str__(self) -> str:
        return self.cause

    def payload(self) -> dict[str, Any]:
        """The error as JSON-ready values: its code and its fields."""
        return {"code": self.code} | {f.name: getattr(self, f.name) for f in fields(self)}


def from_payload(payload: Mapping[str, Any]) -> ManagerError:
    """The error that ``payload()`` described; an unknown code becomes a plain ManagerError."""
    cls = _BY_CODE.get(str(payload.get("code")), ManagerError)
    known = {f.name: payload[f.name] for f in fields(cls) if f.name in payload}
    try:
        return cls(**known)
    except TypeError:  # a field that this version requires and the sender's didn't send
        return ManagerError(cause=str(payload.get("cause", payload)), hint=payload.get("hint"))


# --- manifests ---------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class ManifestError(ManagerError):
    """A manifest can't be used.

    Attributes:
        path: The file.
        line: 1-based, or None where no line is to blame.
        column: 1-based.
        field: The dotted path of the field, such as ``engine.version``.
        source: The text of that line, for the caret.
    """

    code: ClassVar[str] = "manifest"
    exit_code: ClassVar[int] = 2

    path: str = ""
    line: int | None = None
    column: int | None = None
    field: str | None = None
    source: str | None = None


@dataclass(eq=False, kw_only=True)
class ManifestUnreadable(ManifestError):
    """The file isn't there, can't be read, or is no text of a sensible size."""

    code: ClassVar[str] = "manifest-unreadable"


@dataclass(eq=False, kw_only=True)
class ManifestSyntaxError(ManifestError):
    """The text is no YAML, or YAML that means something else than it looks like."""

    code: ClassVar[str] = "manifest-syntax"


@dataclass(eq=False, kw_only=True)
class ManifestFieldError(ManifestError):
    """A field is unknown, missing, or has a value it can't have."""

    code: ClassVar[str] = "manifest-field"


@dataclass(eq=False, kw_only=True)
class ManifestConflictError(ManifestError):
    """Two deployments claim one name or one port."""

    code: ClassVar[str] = "manifest-conflict"


@dataclass(eq=False, kw_only=True)
class ManifestErrors(ManifestError):
    """Several manifest errors, reported together."""

    code: ClassVar[str] = "manifest-errors"

    errors: tuple[ManifestError, ...] = ()

    def payload(self) -> dict[str, Any]:
        """The error as JSON-ready values."""
        return super().payload() | {"errors": [error.payload() for error in self.errors]}


# --- placement ---------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class PlacementError(ManagerError):
    """No placement is possible; says why for each GPU.

    Attributes:
        deployment: Whose request it was.
        reasons: One line per GPU, such as ``GPU 0 (A100): 3.1 of 40.0 GiB free, 36.8 needed``.
    """

    code: ClassVar[str] = "placement"
    exit_code: ClassVar[int] = 3

    deployment: str = ""
    reasons: tuple[str, ...] = ()


# --- names -------------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class NotFound(ManagerError):
    """No deployment has that name."""

    code: ClassVar[str] = "not-found"
    exit_code: ClassVar[int] = 4

    name: str = ""
    known: tuple[str, ...] = ()


@dataclass(eq=False, kw_only=True)
class AmbiguousName(ManagerError):
    """Several deployments answer to that name."""

    code: ClassVar[str] = "ambiguous-name"
    exit_code: ClassVar[int] = 4

    name: str = ""
    deployments: tuple[str, ...] = ()


# --- supervisor and control socket -------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class NoSupervisor(ManagerError):
    """Nothing answers on the control socket.

    Attributes:
        live: Names of deployments whose instances run on all the same.
    """

    code: ClassVar[str] = "no-supervisor"
    exit_code: ClassVar[int] = 5

    live: tuple[str, ...] = ()


@dataclass(eq=False, kw_only=True)
class AlreadyRunning(ManagerError):
    """Another supervisor holds the lock of this state directory."""

    code: ClassVar[str] = "already-running"
    exit_code: ClassVar[int] = 8

    pid: int | None = None


@dataclass(eq=False, kw_only=True)
class ControlError(ManagerError):
    """The control API refused or failed."""

    code: ClassVar[str] = "control"


@dataclass(eq=False, kw_only=True)
class SocketDenied(ControlError):
    """The caller has no rights to the control socket, or to its directory."""

    code: ClassVar[str] = "socket-denied"

    path: str = ""


@dataclass(eq=False, kw_only=True)
class BadControlRequest(ControlError):
    """The supervisor doesn't understand the request (another version's command line, say)."""

    code: ClassVar[str] = "bad-control-request"


@dataclass(eq=False, kw_only=True)
class InstanceHung(ManagerError):
    """A ready instance computes nothing any more, though it answers HTTP.

    Attributes:
        silent: Seconds since its last sign of progress.
    """

    code: ClassVar[str] = "hung"

    silent: float = 0.0


@dataclass(eq=False, kw_only=True)
class WaitTimeout(ManagerError):
    """The caller's own ``--timeout`` ran out; what was waited for goes on."""

    code: ClassVar[str] = "wait-timeout"
    exit_code: ClassVar[int] = 7

    seconds: float = 0.0


# --- starting ----------------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class StartFailed(ManagerError):
    """An instance didn't become ready.

    Attributes:
        deployment: Its name.
        permanent: True where trying again unchanged can't help.
        exception: The line of the log that names the error, or None.
        log_tail: The last lines of the log.
        log_path: The whole log.
    """

    code: ClassVar[str] = "start-failed"
    exit_code: ClassVar[int] = 6

    deployment: str = ""
    permanent: bool = False
    exception: str | None = None
    log_tail: tuple[str, ...] = ()
    log_path: str | None = None


@dataclass(eq=False, kw_only=True)
class ExecutableNotFound(StartFailed):
    """The engine's program isn't there or can't be executed."""

    code: ClassVar[str] = "executable-not-found"


@dataclass(eq=False, kw_only=True)
class PortInUse(StartFailed):
    """Somebody else holds the port.

    Attributes:
        port: The TCP port.
        owner: Who listens there, as far as this user may know.
    """

    code: ClassVar[str] = "port-in-use"

    port: int = 0
    owner: str | None = None


@dataclass(eq=False, kw_only=True)
class SpawnFailed(StartFailed):
    """The operating system refused to start the process."""

    code: ClassVar[str] = "spawn-failed"

    errno: int | None = None


@dataclass(eq=False, kw_only=True)
class EarlyExit(StartFailed):
    """The engine ended before it was ready.

    Attributes:
        exit_status: As from ``waitpid``; None where it can't be known (an adopted process). It
            tells little: vLLM exits 0 when its engine dies.
        diagnosis: The code of the recognised cause, or None.
    """

    code: ClassVar[str] = "early-exit"

    exit_status: int | None = None
    diagnosis: str | None = None


@dataclass(eq=False, kw_only=True)
class StartupTimeout(StartFailed):
    """The start took longer than ``readiness.timeout``."""

    code: ClassVar[str] = "startup-timeout"


@dataclass(eq=False, kw_only=True)
class Stalled(StartFailed):
    """The start showed no progress for ``readiness.stall``."""

    code: ClassVar[str] = "stalled"


@dataclass(eq=False, kw_only=True)
class WarmUpFailed(StartFailed):
    """The engine answers HTTP, but the 1-token request fails or yields nothing."""

    code: ClassVar[str] = "warm-up-failed"

    status: int | None = None


@dataclass(eq=False, kw_only=True)
class ModelNotFound(StartFailed):
    """The manifest names a local model that isn't there, or holds no model."""

    code: ClassVar[str] = "model-not-found"


@dataclass(eq=False, kw_only=True)
class DownloadError(StartFailed):
    """A model's files can't be fetched from the Hugging Face hub.

    Attributes:
        repository: Its id there.
    """

    code: ClassVar[str] = "download"

    repository: str = ""


@dataclass(eq=False, kw_only=True)
class GatedRepository(DownloadError):
    """The repository's owner lets in only whom they know, and this user or token isn't among them."""

    code: ClassVar[str] = "gated-repository"


@dataclass(eq=False, kw_only=True)
class RepositoryNotFound(DownloadError):
    """The hub has no such repository or revision, or hides a private one.

    Attributes:
        revision: The one that was asked for.
    """

    code: ClassVar[str] = "repository-not-found"

    revision: str = ""


@dataclass(eq=False, kw_only=True)
class TokenRefused(DownloadError):
    """The hub doesn't know the token that it was sent, or that token may not read."""

    code: ClassVar[str] = "token-refused"


@dataclass(eq=False, kw_only=True)
class HubUnreachable(DownloadError):
    """The hub doesn't answer or may not be asked, and the cache hasn't all that is needed."""

    code: ClassVar[str] = "hub-unreachable"


@dataclass(eq=False, kw_only=True)
class HubBusy(DownloadError):
    """The hub wants fewer requests.

    Attributes:
        retry_after: Seconds that it asked to wait, or None.
    """

    code: ClassVar[str] = "hub-busy"

    retry_after: float | None = None


@dataclass(eq=False, kw_only=True)
class DiskFull(DownloadError):
    """The file system of the hub's cache has no room for the files.

    Attributes:
        path: The cache.
        needed: Bytes still to be fetched.
        free: Bytes that are free there.
    """

    code: ClassVar[str] = "disk-full"

    path: str = ""
    needed: int = 0
    free: int = 0


@dataclass(eq=False, kw_only=True)
class TransferBroken(DownloadError):
    """A file came broken, or not at all, also when it was tried again."""

    code: ClassVar[str] = "transfer-broken"


@dataclass(eq=False, kw_only=True)
class NoWeights(DownloadError):
    """The repository holds no weights that vLLM would load."""

    code: ClassVar[str] = "no-weights"


@dataclass(eq=False, kw_only=True)
class EngineError(StartFailed):
    """An engine can't be found, used or provisioned."""

    code: ClassVar[str] = "engine"


@dataclass(eq=False, kw_only=True)
class EngineMissing(EngineError):
    """No vLLM on this machine could run the deployment.

    Attributes:
        install: The version that provisioning would bring; None where provisioning can't help.
        device: What to provision it for, ``cpu`` or ``cuda``.
    """

    code: ClassVar[str] = "engine-missing"

    install: str | None = None
    device: str | None = None


@dataclass(eq=False, kw_only=True)
class EngineBroken(EngineError):
    """A vLLM is there and can't be used."""

    code: ClassVar[str] = "engine-broken"


@dataclass(eq=False, kw_only=True)
class EngineInstallFailed(EngineError):
    """Provisioning an engine failed; nothing half-installed is ever used.

    Attributes:
        what: What could not be had, such as ``torch==2.13.0+cpu`` or ``6.0 GiB of disk``.
    """

    code: ClassVar[str] = "engine-install-failed"

    what: str = ""


# --- handles and state -------------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class HandleError(ManagerError):
    """What a handle points to can't be taken over."""

    code: ClassVar[str] = "handle"


@dataclass(eq=False, kw_only=True)
class InstanceGone(HandleError):
    """The instance's main process isn't there any more (a zombie counts as gone)."""

    code: ClassVar[str] = "instance-gone"


@dataclass(eq=False, kw_only=True)
class IdentityMismatch(HandleError):
    """The recorded pid belongs to another process, boot or pid namespace now."""

    code: ClassVar[str] = "identity-mismatch"


@dataclass(eq=False, kw_only=True)
class StateError(ManagerError):
    """A state file is unusable."""

    code: ClassVar[str] = "state"

    path: str = ""


@dataclass(eq=False, kw_only=True)
class StateCorrupt(StateError):
    """A state file doesn't hold what it should; it was set aside, not deleted."""

    code: ClassVar[str] = "state-corrupt"

    quarantined_to: str | None = None


@dataclass(eq=False, kw_only=True)
class StateUnwritable(StateError):
    """A state file can't be written (disk full, no rights)."""

    code: ClassVar[str] = "state-unwritable"

    errno: int | None = None


# --- requests to a model -----------------------------------------------------------------------------


@dataclass(eq=False, kw_only=True)
class ClientError(ManagerError):
    """A request to a model failed.

    Attributes:
        deployment: Which one, where it was looked up by name.
        status: The HTTP status, or None where none came.
        body: The response's text (first 4,096 characters), or None.
        retry_after: Seconds that the other side asked to wait, or None.
    """

    code: ClassVar[str] = "client"

    deployment: str | None = None
    status: int | None = None
    body: str | None = None
    retry_after: float | None = None


@dataclass(eq=False, kw_only=True)
class AuthenticationFailed(ClientError):
    """The key is missing or wrong."""

    code: ClassVar[str] = "authentication-failed"


@dataclass(eq=False, kw_only=True)
class UnknownModel(ClientError):
    """The address serves no model of that name."""

    code: ClassVar[str] = "unknown-model"


@dataclass(eq=False, kw_only=True)
class ModelNotReady(ClientError):
    """The deployment is known, and can't answer now (starting, stopped, failed)."""

    code: ClassVar[str] = "model-not-ready"

    phase: str | None = None


@dataclass(eq=False, kw_only=True)
class InvalidRequest(ClientError):
    """The model's server refuses the request as it is."""

    code: ClassVar[str] = "invalid-request"


@dataclass(eq=False, kw_only=True)
class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer don't fit into the model's context."""

    code: ClassVar[str] = "context-length-exceeded"


@dataclass(eq=False, kw_only=True)
class UnsupportedOperation(ClientError):
    """This model has no such endpoint."""

    code: ClassVar[str] = "unsupported-operation"


@dataclass(eq=False, kw_only=True)
class Busy(ClientError):
    """Too many requests; try again after ``retry_after``."""

    code: ClassVar[str] = "busy"


@dataclass(eq=False, kw_only=True)
class UpstreamError(ClientError):
    """The model's server failed at the request."""

    code: ClassVar[str] = "upstream-error"


@dataclass(eq=False, kw_only=True)
class Unavailable(ClientError):
    """No connection to the model's server."""

    code: ClassVar[str] = "unavailable"


@dataclass(eq=False, kw_only=True)
class ResponseTimeout(ClientError):
    """No answer in time."""

    code: ClassVar[str] = "response-timeout"


@dataclass(eq=False, kw_only=True)
class InvalidResponse(ClientError):
    """A success status with an error or with something unreadable inside."""

    code: ClassVar[str] = "invalid-response"


@dataclass(eq=False, kw_only=True)
class StreamInterrupted(ClientError):
    """A stream broke before its end.

    Attributes:
        partial: The text that had arrived.
    """

    code: ClassVar[str] = "stream-interrupted"

    partial: str = field(default="")
