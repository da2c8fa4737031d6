"""The supervisor as a process: its lock, its socket, its signals."""

import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vllm_manager.clock import SystemClock
from vllm_manager.control.server import ControlServer
from vllm_manager.errors import AlreadyRunning, ControlError, ManagerError, StateUnwritable
from vllm_manager.gpus.inventory import GpuReader
from vllm_manager.launchers.process import ProcessLauncher
from vllm_manager.manager import Manager
from vllm_manager.paths import engines_dir, socket_path, state_dir
from vllm_manager.store import Store

log = logging.getLogger(__name__)

EMPTY_FOR = 3.0
"""Seconds without a deployment and without a request after which a supervisor that `up` started ends."""

LOOK_EVERY = 1.0


def run(manifests: Sequence[Path] = (), *, exit_when_empty: bool = False) -> None:
    """Supervise until told to end: SIGTERM and SIGINT stop the instances, SIGUSR1 leaves them running.

    Args:
        manifests: Brought up at the start, with this process's own environment.
        exit_when_empty: Run as the one that `up` starts: end by itself once nothing is wanted, and leave the
            instances running at SIGTERM, since whoever kills it didn't ask for their end.

    Raises:
        AlreadyRunning: Another supervisor has this state directory.
        StateUnwritable: The state directory can't be used.
        ControlError: The socket can't be made.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    store = Store(state_dir())
    with lock(store.root):
        asyncio.run(_Daemon(store).supervise(manifests, exit_when_empty=exit_when_empty))


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Hold the state directory's lock. The kernel frees it when the holder dies, however it dies.

    Raises:
        AlreadyRunning: Another supervisor holds it.
        StateUnwritable: It can't be opened.
    """
    path = root / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnwritable(
            cause=f"can't open {path}: {error.strerror}",
            hint="give this user rights there, or set $VLLM_MANAGER_STATE_DIR",
            path=str(path),
            errno=error.errno,
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip()
            raise AlreadyRunning(
                cause=f"another supervisor{f', pid {holder},' if holder else ''} has {root}",
                hint="`vllm-manager ps` talks to it; to run a second one, give it another "
                "$VLLM_MANAGER_STATE_DIR and $VLLM_MANAGER_SOCKET",
                pid=int(holder) if holder.isdigit() else None,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class _Daemon:
    def __init__(self, store: Store) -> None:
        self._ending = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stop_instances = False
        self._manager = Manager(store, ProcessLauncher(), SystemClock(), GpuReader().read, engines_dir())
        self._server = ControlServer(self._manager, self._end)

    def _end(self, stop_instances: bool) -> None:
        if self._ending.is_set():
            self._hurry.set()
        self._stop_instances = stop_instances
        self._ending.set()

    async def supervise(self, manifests: Sequence[Path], *, exit_when_empty: bool) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._end, True)
        loop.add_signal_handler(signal.SIGTERM, self._end, not exit_when_empty)
        loop.add_signal_handler(signal.SIGUSR1, self._end, False)
        path = socket_path()
        await self._manager.adopt_all()
        try:
            await self._server.start(path)
            log.info("supervising as pid %d, socket %s", os.getpid(), path)
            await self._bring_up(manifests)
            await self._serve(path, exit_when_empty=exit_when_empty)
        finally:
            # The socket answers until the last instance is gone: `ps` shows them stopping.
            await self._manager.close(stop=self._stop_instances, now=self._hurry)
            await self._server.close()
            if _is_socket(path):
                path.unlink()
        log.info("ended")

    async def _bring_up(self, manifests: Sequence[Path]) -> None:
        if not manifests:
            return
        from vllm_manager.manifest.load import in_order, load_manifests
        from vllm_manager.manifest.secrets import resolve_key

        for loaded in in_order(load_manifests(manifests, os.environ)):
            name = loaded.deployment.name
            if self._manager.stopped(name):
                log.info("%s stays stopped, as asked for; `vllm-manager start %s` starts it", name, name)
                continue
            try:
                await self._manager.up(
                    loaded.deployment,
                    source=str(loaded.source),
                    api_key=resolve_key(loaded, os.environ),
                    environment=os.environ,
                )
            except ManagerError as error:  # one bad deployment takes no other down
                log.error("%s: %s%s", loaded.source, error, f" (hint: {error.hint})" if error.hint else "")

    async def _serve(self, path: Path, *, exit_when_empty: bool) -> None:
        empty_for, requests = 0.0, self._server.requests
        while not self._ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_EVERY)
            # XDG_RUNTIME_DIR may vanish at logout, and cleaners of /tmp don't know us.
            if not _is_socket(path):
                log.warning("the socket %s is gone; making it anew", path)
                with suppress(ControlError, OSError):  # somebody's file is in its place: try again later
                    await self._server.listen(path)
            self._manager.heal()
            idle = self._manager.empty and requests == self._server.requests
            empty_for, requests = (empty_for + LOOK_EVERY if idle else 0.0), self._server.requests
            if exit_when_empty and empty_for >= EMPTY_FOR:
                log.info("nothing is up any more")
                return


def _is_socket(path: Path) -> bool:
    return path.is_socket()
