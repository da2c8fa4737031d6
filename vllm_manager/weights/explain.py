"""Failures of huggingface_hub and of the disk, as errors with a cause and a hint. The worker's alone.

Network errors are told by the name of a base class: the library's HTTP client, and with it the classes,
changes between its major versions (httpx in 1.x, httpx2 in 2.x).
"""

import errno
import re
import shutil
from contextlib import suppress
from typing import Any

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vllm_manager.errors import (
    DiskFull,
    DownloadError,
    GatedRepository,
    HubBusy,
    HubUnreachable,
    RepositoryNotFound,
    TokenRefused,
    TransferBroken,
)
from vllm_manager.redact import redact
from vllm_manager.weights.wanted import Need

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_LOGIN = "set HF_TOKEN, or run `hf auth login`"


class BrokenContent(Exception):
    """What arrived isn't the file that the hub announced."""


def transient(error: Exception) -> float | None:
    """Seconds that must pass before another try (0 where nobody says), or None where none would help."""
    response = _response(error)
    if response is not None:
        return (_retry_after(response) or 0.0) if response.status_code in _TRANSIENT else None
    return 0.0 if _is_transport(error) else None


def explain(error: Exception, need: Need, file: str | None = None) -> DownloadError:
    """The error to report.

    Args:
        error: What was raised.
        need: What was to be fetched.
        file: Of which the bytes were on their way, or None where the hub was only asked.
    """
    found = _explain(error, need, file)
    if token := get_token():
        found.cause = redact(found.cause, [token])
    return found


def _explain(error: Exception, need: Need, file: str | None) -> DownloadError:
    name = need.repository
    if isinstance(error, DownloadError):
        return error
    if isinstance(error, GatedRepoError):
        return _gated(name)
    if isinstance(error, RevisionNotFoundError):
        return RepositoryNotFound(
            cause=f"{name} has no revision {need.revision}",
            hint=f"its branches and commits are at https://huggingface.co/{name}/commits/main",
            repository=name,
            revision=need.revision,
            permanent=True,
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        rights = "your token must have rights to it" if get_token() else _LOGIN
        return RepositoryNotFound(
            cause=f"the hub has no repository {name}, or it is private",
            hint=f"check the spelling; for a private one {rights}",
            repository=name,
            revision=need.revision,
            permanent=True,
        )
    response = _response(error)
    if response is not None and response.status_code in (401, 403):
        return _refused(response, name)
    if response is not None and response.status_code == 429:
        wait = _retry_after(response)
        return HubBusy(
            cause="the hub wants fewer requests" + (f" for {wait:.0f} s" if wait else ""),
            hint="wait, or log in, which allows more of them" if not get_token() else "wait, and try again",
            repository=name,
            retry_after=wait,
        )
    if isinstance(error, BrokenContent) or transient(error) is not None:
        return _unreachable(error, need, file)
    if isinstance(error, OSError) and response is None and error.errno is not None:
        return _on_disk(error, need)
    return DownloadError(cause=f"{name} can't be fetched: {_words(error)}", repository=name)


def disk_full(need: Need, needed: int, free: int) -> DiskFull:
    """No room in the cache; ``needed`` are the bytes still to come, where they are known."""
    cause = f"no room for {need.repository} in {need.cache_dir}: " + (
        f"{needed / 1e9:.2f} GB are still to come, {free / 1e9:.2f} GB are free"
        if needed
        else f"the disk is full ({free / 1e9:.2f} GB are free)"
    )
    return DiskFull(
        cause=cause,
        hint="make room there (`hf cache ls` shows what is in it), or let HF_HOME name a larger disk",
        repository=need.repository,
        path=need.cache_dir,
        needed=needed,
        free=free,
        permanent=True,
    )


def _gated(name: str) -> GatedRepository:
    page = f"https://huggingface.co/{name}"
    if get_token():
        return GatedRepository(
            cause=f"{name} is gated, and your token has no access to it",
            hint=f"accept its licence at {page} with the token's account; "
            "a fine-grained token also needs the right to read gated repositories",
            repository=name,
            permanent=True,
        )
    return GatedRepository(
        cause=f"{name} is gated: its owner lets in only those who accepted its licence",
        hint=f"accept the licence at {page}, then {_LOGIN}",
        repository=name,
        permanent=True,
    )


def _refused(response: Any, name: str) -> DownloadError:
    said = str(response.headers.get("X-Error-Message") or f"HTTP {response.status_code}")
    if not get_token():
        return DownloadError(
            cause=f"the hub forbids to read {name}: {said}", repository=name, permanent=True, hint=_LOGIN
        )
    if response.status_code == 401:
        return TokenRefused(
            cause="the hub refuses your token: it is wrong, or no longer valid",
            hint=f"make one at https://huggingface.co/settings/tokens, and {_LOGIN}",
            repository=name,
            permanent=True,
        )
    return TokenRefused(
        cause=f"your token may not read {name}: {said}",
        hint="see its rights at https://huggingface.co/settings/tokens",
        repository=name,
        permanent=True,
    )


def _unreachable(error: Exception, need: Need, file: str | None) -> DownloadError:
    if file is not None:
        return TransferBroken(
            cause=f"{file} of {need.repository} can't be fetched whole: {_words(error)}",
            hint="what has arrived is kept, and the next try goes on from there",
            repository=need.repository,
        )
    return HubUnreachable(
        cause=f"{need.repository} isn't in the cache, and {constants.ENDPOINT} can't be reached: "
        + _words(error),
        hint="check the network, HTTPS_PROXY and HF_ENDPOINT",
        repository=need.repository,
    )


def _on_disk(error: OSError, need: Need) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = 0
        with suppress(OSError):
            free = shutil.disk_usage(need.cache_dir).free
        return disk_full(need, 0, free)
    place = error.filename or need.cache_dir
    return DownloadError(
        cause=f"can't write {place}: {error.strerror}",
        hint="HF_HOME names the directory that the hub's files go to",
        repository=need.repository,
        permanent=error.errno in (errno.EACCES, errno.EPERM, errno.EROFS),
    )


def _response(error: Exception) -> Any:
    return getattr(error, "response", None)


def _is_transport(error: Exception) -> bool:
    return any(cls.__name__ == "TransportError" for cls in type(error).__mro__)


def _retry_after(response: Any) -> float | None:
    value = response.headers.get("Retry-After", "")
    # The hub's own: `"api";r=0;t=55` says that the limit is lifted in 55 s.
    found = re.search(r"\bt=(\d+)", response.headers.get("RateLimit", ""))
    return float(value) if value.isdigit() else float(found[1]) if found else None


def _words(error: Exception) -> str:
    response = _response(error)
    if response is not None:
        return f"HTTP {response.status_code}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^\[Errno -?\d+\] ", "", lines[0]) if lines else type(error).__name__
