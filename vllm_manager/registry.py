"""Finds models by name, from any process of their user, also while the supervisor is down.

::

    from vllm_manager import registry

    print(registry.client("llama").chat("hello"))

A name is a deployment's, or one that it serves (a LoRA adapter's too); a deployment's own name wins. What is
known comes from ``endpoints.json`` in the state directory, which is read again when it changed.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from vllm_manager import paths, store
from vllm_manager.errors import AmbiguousName, NotFound, StateError, WaitTimeout
from vllm_manager.types import Phase

if TYPE_CHECKING:
    from pathlib import Path

    from vllm_manager.client import AsyncClient, Client
    from vllm_manager.types import Endpoint

__all__ = ["async_client", "client", "endpoint", "endpoints", "wait"]

_POLL_INTERVAL = 0.05  # seconds; an unchanged file costs one stat()


def endpoints() -> tuple[Endpoint, ...]:
    """All deployments' endpoints, ready or not, with their keys.

    Raises:
        StateError: The state directory can't be read.
    """
    known = _snapshot()
    return tuple(known.with_key(found) for found in known.endpoints)


def endpoint(name: str) -> Endpoint:
    """How to reach a deployment, and whether it can answer.

    Raises:
        NotFound: Nothing has that name; the hint has near ones.
        AmbiguousName: Several deployments serve that name.
        StateError: The state directory can't be read.
    """
    known = _snapshot()
    return known.with_key(_find(name, known.endpoints))


def wait(name: str, timeout: float | None = None) -> Endpoint:
    """Returns when the deployment is READY.

    Args:
        name: As for ``endpoint``.
        timeout: Seconds, or None to wait as long as it takes.

    Raises:
        WaitTimeout: It isn't, after ``timeout``; it goes on starting.
        ModelNotReady: It has failed or was stopped, with the cause and a hint.
        NotFound, AmbiguousName, StateError: As for ``endpoint``.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while not (found := endpoint(name)).phase.settled:
        if deadline is not None and time.monotonic() >= deadline:
            step = f" ({found.step})" if found.step else ""
            raise WaitTimeout(
                cause=f"{found.deployment} isn't ready after {timeout:g} s: {found.phase}{step}",
                hint=f"it goes on starting; `vllm-manager logs -f {found.deployment}` shows how far it is",
                seconds=timeout or 0.0,
            )
        time.sleep(_POLL_INTERVAL)
    if found.phase is not Phase.READY:
        from vllm_manager.client.wire import not_ready  # loads httpx, which a lookup can do without

        raise not_ready(found)
    return found


def client(name: str) -> Client:
    """The client of a deployment: one per name and process, to be shared by threads.

    It looks the endpoint up at each request, so it may be had before the deployment is READY. After its
    ``close()`` this returns a new one.

    Raises:
        NotFound, AmbiguousName, StateError: As for ``endpoint``.
    """
    from vllm_manager.client import Client

    endpoint(name)
    with _clients.lock:
        found = _clients.sync.get(name)
        if found is None or found.closed:
            found = _clients.sync[name] = Client(partial(endpoint, name))
        return found


def async_client(name: str) -> AsyncClient:
    """The asyncio client of a deployment: one per name and process, for any event loop.

    It looks the endpoint up at each request, so it may be had before the deployment is READY.

    Raises:
        NotFound, AmbiguousName, StateError: As for ``endpoint``.
    """
    from vllm_manager.client import AsyncClient

    endpoint(name)
    with _clients.lock:
        found = _clients.asynchronous.get(name)
        if found is None:
            found = _clients.asynchronous[name] = AsyncClient(partial(endpoint, name))
        return found


# --- lookup ------------------------------------------------------------------------------------------


def _find(name: str, known: tuple[Endpoint, ...]) -> Endpoint:
    for found in known:
        if found.deployment == name:
            return found
    serving = [found for found in known if name in (*found.names, *found.adapters)]
    if len(serving) == 1:
        (found,) = serving
        return replace(found, model=name) if name in found.adapters else found
    if serving:
        owners = tuple(found.deployment for found in serving)
        raise AmbiguousName(
            cause=f"several deployments serve the name {name}: {', '.join(owners)}",
            hint="use the deployment's own name",
            name=name,
            deployments=owners,
        )
    raise _not_found(name, known)


def _not_found(name: str, known: tuple[Endpoint, ...]) -> NotFound:
    from difflib import get_close_matches

    every = ((found.deployment, *found.names, *found.adapters) for found in known)
    names = tuple(dict.fromkeys(itertools.chain.from_iterable(every)))
    if near := get_close_matches(name, names):
        hint = f"did you mean {' or '.join(near)}?"
    elif known:
        hint = f"there are: {', '.join(found.deployment for found in known)}"
    else:
        hint = "nothing is deployed; `vllm-manager up` with a manifest deploys a model"
    return NotFound(
        cause=f"no deployment is called {name}, or serves that name", hint=hint, name=name, known=names
    )


# --- endpoints.json, read when it changed ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The endpoints at one moment; keys are read when first asked for.

    A key changes only with a restart, which changes ``endpoints.json`` too, after the key was written.
    """

    directory: Path
    stamp: tuple[int, int, int]
    endpoints: tuple[Endpoint, ...]
    keys: dict[str, str | None] = field(default_factory=dict, repr=False)

    def with_key(self, found: Endpoint) -> Endpoint:
        if found.deployment not in self.keys:
            secrets = store.read_secrets(self.directory, found.deployment)
            self.keys[found.deployment] = secrets.api_key if secrets else None
        return replace(found, api_key=self.keys[found.deployment])


_last: _Snapshot | None = None


def _snapshot() -> _Snapshot:
    global _last
    directory = paths.state_dir()
    path = store.endpoints_path(directory)
    try:
        status = path.stat()
    except FileNotFoundError:
        return _Snapshot(directory, (0, 0, 0), ())
    except OSError as error:
        raise StateError(
            cause=f"{path} can't be read: {error.strerror}",
            hint="$VLLM_MANAGER_STATE_DIR names the state directory to look in",
            path=str(path),
        ) from error
    # Taken before reading: a file that is replaced in between is read again at the next look-up.
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    known = _last
    if known is None or (known.directory, known.stamp) != (directory, stamp):
        known = _last = _Snapshot(directory, stamp, store.read_endpoints(directory))
    return known


# --- clients -----------------------------------------------------------------------------------------


class _Clients:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sync: dict[str, Client] = {}
        self.asynchronous: dict[str, AsyncClient] = {}


_clients = _Clients()


def _forget_clients() -> None:
    global _clients
    _clients = _Clients()


# A connection can't be shared with a forked child, nor a lock that another thread held at the fork.
os.register_at_fork(after_in_child=_forget_clients)
