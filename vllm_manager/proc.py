"""Processes as Linux's /proc shows them: identity, membership, listening sockets, signals through pidfds.

psutil isn't used here since it has neither pidfds nor sessions by scan, and a start time as a float of wall
time, which moves when the clock is set; identity needs the kernel's own ticks (proc_pid_stat(5), field 22).
"""

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_manager.errors import IdentityMismatch, InstanceGone


def boot_id() -> str:
    """The kernel's id of this boot; a pid from another boot means nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def pid_namespace() -> str:
    """The pid namespace that this process sees, such as ``pid:[4026531836]``."""
    return os.readlink("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessStat:
    """One process, from /proc/PID/stat.

    Attributes:
        state: ``R``, ``S``, ``D``, ``Z``, … of its main thread.
        threads: How many there are; a zombie with more than one is still being taken apart.
        start_time: Clock ticks after boot; with the pid and the boot id it names one process for good.
    """

    pid: int
    name: str
    state: str
    parent: int
    session: int
    start_time: int
    threads: int

    @property
    def dead(self) -> bool:
        """A zombie only waits for its parent to look: it holds no memory, socket or GPU.

        Unless only its first thread has ended: the others, one stuck in a driver say, still hold all that.
        """
        return self.state in "ZX" and self.threads <= 1


def stat(pid: int) -> ProcessStat | None:
    """The process, or None where there is none of that pid."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may hold any character, also ")": split at the last one.
    name, _, rest = text.partition("(")[2].rpartition(")")
    values = rest.split()
    return ProcessStat(
        pid=pid,
        name=name,
        state=values[0],
        parent=int(values[1]),
        session=int(values[3]),
        start_time=int(values[19]),
        threads=int(values[17]),
    )


def all_pids() -> Iterator[int]:
    """Every pid that this pid namespace shows."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a process of one instance carries, whatever became of its parents.

    vLLM's setproctitle wipes /proc/PID/environ of EngineCore and workers, so the environment is no mark.

    Attributes:
        session: The session id that the launcher gave.
        log: The file that is its stdout or stderr.
        cwd: Its private working directory.
        title: The prefix of its process title (``VLLM_PROCESS_NAME_PREFIX``).
    """

    session: int | None
    log: str
    cwd: str
    title: str


def members(marks: Marks) -> list[ProcessStat]:
    """The living processes of an instance, found by any of its marks (this process excluded)."""
    log = _file_id(marks.log)
    found = []
    for pid in all_pids():
        if pid == os.getpid():
            continue
        process = stat(pid)
        if process is None or process.dead:
            continue
        if process.session == marks.session or _carries(pid, marks, log):
            found.append(process)
    return found


def _carries(pid: int, marks: Marks, log: tuple[int, int] | None) -> bool:
    directory = f"/proc/{pid}"
    with suppress(OSError):
        if os.readlink(f"{directory}/cwd") == marks.cwd:
            return True
        if log is not None and log in (_file_id(f"{directory}/fd/1"), _file_id(f"{directory}/fd/2")):
            return True
    return title(pid).startswith(marks.title)


def _file_id(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def title(pid: int) -> str:
    """The process's command line, or the title that it gave itself; empty where it can't be read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def open_pidfd(pid: int, start_time: int) -> int:
    """A pidfd for exactly that process.

    Raises:
        InstanceGone: There is no such process any more, or it is a zombie.
        IdentityMismatch: The pid is another process's now.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise InstanceGone(cause=f"process {pid} isn't there any more") from error
    # The pidfd pins whichever process has the pid now, so the check below can't be outrun by reuse.
    process = stat(pid)
    if process is not None and process.start_time == start_time and not process.dead:
        return pidfd
    os.close(pidfd)
    if process is None or process.start_time == start_time:
        raise InstanceGone(cause=f"process {pid} has ended")
    raise IdentityMismatch(cause=f"pid {pid} belongs to another process now ({process.name})")


def send_signal(process: ProcessStat, number: signal.Signals) -> bool:
    """Signal exactly that process, never a later owner of its pid; False when it was gone already."""
    try:
        pidfd = open_pidfd(process.pid, process.start_time)
    except (InstanceGone, IdentityMismatch):
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def bytes_read(pids: Iterable[int]) -> int:
    """Bytes that the processes have read so far, from files and from disk (mapped files count at fault)."""
    total = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            text = Path(f"/proc/{pid}/io").read_text()
            total += sum(int(value) for value in re.findall(r"^(?:rchar|read_bytes): (\d+)$", text, re.M))
    return total


_LISTEN = "0A"


def listening_inodes(port: int) -> frozenset[int]:
    """The inodes of the TCP sockets of this network namespace that listen on the port, on any address."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                    inodes.add(int(columns[9]))
    return frozenset(inodes)


def holders(pids: Iterable[int], inodes: frozenset[int]) -> list[int]:
    """Those of the processes that hold one of the sockets."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return [pid for pid in pids if any(link in wanted for link in _open_files(pid))]


def shared_memory(pids: Iterable[int]) -> frozenset[str]:
    """The files under /dev/shm that the processes have open or mapped."""
    found: set[str] = set()
    for pid in pids:
        found.update(link for link in _open_files(pid) if link.startswith("/dev/shm/"))  # noqa: S108
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            found.update(re.findall(r"(/dev/shm/\S+)$", maps, re.M))
    return frozenset(found)


def _open_files(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{number}")
