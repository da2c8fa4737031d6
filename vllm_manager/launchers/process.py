"""Runs instances as processes of this machine.

No pipe, no shell, no preexec_fn: an instance is its own session with its output in a file, so it neither
notices nor depends on the supervisor's life. One code path serves launched and adopted ones: a pidfd each.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from vllm_manager import proc
from vllm_manager.errors import ExecutableNotFound, IdentityMismatch, InstanceGone, SpawnFailed
from vllm_manager.launchers.base import Death, Swept
from vllm_manager.types import Handle, LaunchSpec

VERSION = 1
SWEEP_TIMEOUT = 10.0
SWEEP_POLL = 0.02

RESOURCE_TRACKER = "multiprocessing.resource_tracker"
TRACKER_TIME = 2.0
"""Seconds that Python's resource tracker has to remove the shared memory of the processes that it serves once
they are dead. Killed before, it leaves what nobody else knows of."""


def title_prefix(instance: str) -> str:
    """What the titles of the instance's processes begin with; vLLM adds ``::EngineCore`` and so on."""
    return f"vm-{instance}"


class ProcessLauncher:
    """The ``process`` launcher."""

    name = "process"

    def __init__(self) -> None:
        # Our own children must be waited for, or they stay zombies; adopted ones are init's.
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def launch(self, spec: LaunchSpec) -> Handle:
        """Start the process in a session of its own, its output appended to the log."""
        try:
            for directory in (spec.cwd, spec.tmp):
                Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            log = os.open(spec.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise SpawnFailed(
                cause=f"can't create {error.filename}: {error.strerror}", errno=error.errno
            ) from error
        try:
            child = subprocess.Popen(
                spec.argv,
                env=dict(spec.env),
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise ExecutableNotFound(
                cause=f"can't execute {spec.argv[0]}: {error.strerror}",
                hint="check `engine` in the manifest; `vllm-manager engine list` shows what is installed",
                permanent=True,
            ) from error
        except OSError as error:
            raise SpawnFailed(
                cause=f"can't start a process: {error.strerror}",
                hint="the limits on processes, files or memory may be too low (ulimit -a)",
                errno=error.errno,
            ) from error
        finally:
            os.close(log)
        self._children[child.pid] = child
        process = proc.stat(child.pid)
        # A child is at least a zombie until it is waited for, so its stat is there.
        assert process is not None  # noqa: S101
        return Handle(
            launcher=self.name,
            version=VERSION,
            data={
                "pid": child.pid,
                "start_time": process.start_time,
                "boot_id": proc.boot_id(),
                "pid_namespace": proc.pid_namespace(),
                "log": spec.log,
                "cwd": spec.cwd,
                "title": title_prefix(spec.instance),
            },
        )

    def attach(self, handle: Handle) -> "ProcessInstance":
        """Take hold of it through a pidfd, after checking that it is the one."""
        data = handle.data
        if handle.version != VERSION:
            raise IdentityMismatch(cause=f"a handle of layout {handle.version} can't be read by this version")
        if data["boot_id"] != proc.boot_id():
            raise InstanceGone(cause="the machine was restarted since")
        if data["pid_namespace"] != proc.pid_namespace():
            raise IdentityMismatch(cause="it was started in another pid namespace (a container's, say)")
        pid = int(data["pid"])
        pidfd = proc.open_pidfd(pid, int(data["start_time"]))
        return ProcessInstance(pid, pidfd, _marks(handle), self._reap)

    async def sweep(self, *, log: str, cwd: str, title: str, handle: Handle | None) -> Swept:
        """Kill whatever carries a mark of the instance, until nothing does or 10 s have passed."""
        marks = proc.Marks(session=None, log=log, cwd=cwd, title=title)
        if handle is not None and _session_is_ours(handle):
            marks = _marks(handle)
        shared: frozenset[str] = frozenset()
        clock = asyncio.get_running_loop().time
        began = clock()
        while left := await asyncio.to_thread(proc.members, marks):
            if clock() - began >= SWEEP_TIMEOUT:
                return Swept(stuck=tuple(process.pid for process in left), shared_memory=shared)
            if clock() - began < TRACKER_TIME:
                left = [process for process in left if RESOURCE_TRACKER not in proc.title(process.pid)]
            shared |= await asyncio.to_thread(_kill, left)
            for process in left:
                self._reap(process.pid)
            await asyncio.sleep(SWEEP_POLL)
        if handle is not None:
            self._reap(int(handle.data["pid"]))
        return Swept(shared_memory=shared)

    def _reap(self, pid: int) -> int | None:
        child = self._children.get(pid)
        if child is None:
            return None
        status = child.poll()
        if status is not None:
            del self._children[pid]
        return status


def _kill(processes: Sequence[proc.ProcessStat]) -> frozenset[str]:
    # Stopped before it is looked at: what still ran could create files that nobody knows of after its end.
    for process in processes:
        proc.send_signal(process, signal.SIGSTOP)
    shared = proc.shared_memory(process.pid for process in processes)
    for process in processes:
        proc.send_signal(process, signal.SIGKILL)
    return shared


def _marks(handle: Handle) -> proc.Marks:
    data = handle.data
    # The launcher starts every instance as the leader of its own session: session id == pid.
    return proc.Marks(session=int(data["pid"]), log=data["log"], cwd=data["cwd"], title=data["title"])


def _session_is_ours(handle: Handle) -> bool:
    # A session id is a pid: it means nothing after a reboot or in another namespace, and once the session is
    # empty it may be given to a stranger, who leads a session of that number then.
    data = handle.data
    if data["boot_id"] != proc.boot_id() or data["pid_namespace"] != proc.pid_namespace():
        return False
    leader = proc.stat(int(data["pid"]))
    return leader is None or leader.start_time == data["start_time"]


class ProcessInstance:
    """A running instance, held by a pidfd."""

    def __init__(
        self,
        pid: int,
        pidfd: int,
        marks: proc.Marks,
        reap: Callable[[int], int | None],
    ) -> None:
        self._pid = pid
        self._leader = pidfd
        self._marks = marks
        self._reap = reap
        self._watched: dict[int, tuple[int, str]] = {}
        self._loop = asyncio.get_running_loop()
        self._death: asyncio.Future[Death] = self._loop.create_future()
        self._end: asyncio.Future[None] = self._loop.create_future()
        self._watch(pidfd, pid, "vllm")

    @property
    def pid(self) -> int:
        """The main process."""
        return self._pid

    async def died(self) -> Death:
        """Wait for the first death of the main process or of a watched one."""
        return await asyncio.shield(self._death)

    async def ended(self) -> None:
        """Wait for the end of the main process."""
        await asyncio.shield(self._end)

    def _watch(self, pidfd: int, pid: int, who: str) -> None:
        self._watched[pidfd] = (pid, who)
        self._loop.add_reader(pidfd, self._on_death, pidfd)

    def _on_death(self, pidfd: int) -> None:
        pid, who = self._watched[pidfd]
        self._loop.remove_reader(pidfd)
        status = None
        if pid == self._pid:
            status = self._reap(pid)
            self._end.set_result(None)
        if not self._death.done():
            self._death.set_result(Death(who=who, pid=pid, exit_status=status))

    async def watch_engine(self) -> None:
        """Watch every process that titles itself as one of vLLM's own (EngineCore, workers).

        Other children, such as a compiler's, come and go.
        """
        known = {pid for pid, _ in self._watched.values()}
        for process in await asyncio.to_thread(proc.members, self._marks):
            name = proc.title(process.pid)
            if process.pid in known or not name.startswith(self._marks.title):
                continue
            with suppress(InstanceGone, IdentityMismatch):
                pidfd = proc.open_pidfd(process.pid, process.start_time)
                self._watch(pidfd, process.pid, name.rpartition("::")[2])

    def pids(self) -> Sequence[int]:
        """All living processes with one of its marks."""
        return [process.pid for process in proc.members(self._marks)]

    def serves(self, port: int) -> bool:
        """Whether one of its processes holds a socket that listens on the port."""
        inodes = proc.listening_inodes(port)
        return bool(inodes) and bool(proc.holders(self.pids(), inodes))

    def shared_memory(self) -> frozenset[str]:
        """The /dev/shm files that its processes use."""
        return proc.shared_memory(self.pids())

    def terminate(self) -> None:
        """SIGTERM to the main process: sent to the group, vLLM's teardown can hang (measured, 0.32)."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._leader, signal.SIGTERM)

    def close(self) -> None:
        """Close the pidfds."""
        for pidfd in self._watched:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._watched = {}
        self._death.cancel()
        self._end.cancel()
