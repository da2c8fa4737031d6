"""What the supervisor needs of a launcher; ``process`` is the one there is, ``docker`` is to follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm_manager.types import Handle, LaunchSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The end of one of an instance's processes.

    Attributes:
        who: Its name, such as ``vllm`` or ``EngineCore``.
        exit_status: As from ``subprocess``: negative for a signal; None where it can't be known. It doesn't
            tell a crash from a stop: vLLM exits 0 when its engine dies.
    """

    who: str
    pid: int
    exit_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep came to.

    Attributes:
        stuck: The pids that could not be ended (stuck in the kernel).
        shared_memory: Files outside the private directories that the ended processes used.
    """

    stuck: tuple[int, ...] = ()
    shared_memory: frozenset[str] = frozenset()


class Running(Protocol):
    """A running instance, launched here or taken over."""

    @property
    def pid(self) -> int | None:
        """The main process, where this machine's pids show it."""
        ...

    async def died(self) -> Death:
        """Wait for the first death of a process of the engine."""
        ...

    async def ended(self) -> None:
        """Wait for the end of its main process."""
        ...

    async def watch_engine(self) -> None:
        """Let ``died`` see the engine's other processes too, as they are by now."""
        ...

    def pids(self) -> Sequence[int]:
        """All of its living processes. Blocking (scans /proc)."""
        ...

    def serves(self, port: int) -> bool:
        """Whether the listening socket of that port is the instance's own. Blocking."""
        ...

    def shared_memory(self) -> frozenset[str]:
        """Files outside its private directories that outlive a hard kill. Blocking."""
        ...

    def terminate(self) -> None:
        """Ask its main process, and only that, to end; no effect when it is gone."""
        ...

    def close(self) -> None:
        """Let go of it; it runs on."""
        ...


class Launcher(Protocol):
    """A way to run instances."""

    def launch(self, spec: LaunchSpec) -> Handle:
        """Start an instance, and return what finds it again. Blocking, but short.

        Raises:
            ExecutableNotFound: The program isn't there or isn't executable.
            SpawnFailed: The operating system refused.
        """
        ...

    def attach(self, handle: Handle) -> Running:
        """Take hold of a launched instance, by whichever supervisor.

        Raises:
            InstanceGone: It has ended.
            IdentityMismatch: What is there under its pid is something else.
        """
        ...

    async def sweep(self, *, log: str, cwd: str, title: str, handle: Handle | None) -> Swept:
        """End every process that carries a mark of the instance, with SIGKILL."""
        ...
