"""Watches an instance come up: reads its log, keeps the clocks, asks until its socket lists its models."""

import asyncio
from collections.abc import Callable

from vllm_manager.clock import Clock
from vllm_manager.errors import PortInUse, Stalled, StartFailed, StartupTimeout
from vllm_manager.launchers.base import Running
from vllm_manager.logs import LogTail
from vllm_manager.manifest.model import Deployment
from vllm_manager.ports import owner
from vllm_manager.probes import HttpProbe, Models
from vllm_manager.proc import bytes_read
from vllm_manager.startup_log import StartupLog
from vllm_manager.types import Phase, Step

NEAR = 0.03
"""Seconds between two looks once the log says that the HTTP server starts: each delays READY."""

FAR = 0.25
PROBE_EVERY = 1.0
"""Without that line (another log format, another version) the port is asked this often."""

READ_EVERY = 5.0
READ_PROGRESS = 1 << 20
"""Bytes read between two looks that count as progress. CPU time doesn't count: a hung NCCL spins."""

DEAF_AFTER = 15.0
"""Seconds from vLLM's word that it is up to our verdict that it doesn't listen."""


class StartupWatch:
    """One start, from the spawn (or the adoption) to the first HTTP answer.

    Args:
        deployment: Its names and its ``readiness``.
        running: The instance.
        log: Its log.
        port: Where it will listen.
        elapsed: Seconds since the spawn.
        known_steps: What an earlier supervisor saw of the same start.
        clock: Time.
        on_step: Called with all steps when one begins or moves; ``loading`` once weights are being loaded.
    """

    def __init__(
        self,
        deployment: Deployment,
        running: Running,
        *,
        log: str,
        port: int,
        elapsed: float,
        known_steps: tuple[Step, ...],
        clock: Clock,
        on_step: Callable[..., None],
    ) -> None:
        self._deployment = deployment
        self._running = running
        self._log = LogTail(log)
        self._port = port
        self._clock = clock
        self._on_step = on_step
        self._began = clock.monotonic() - elapsed
        # Lines that an earlier supervisor saw already keep the times that it saw them at.
        self._seen_at = {step.name: step.began for step in known_steps}
        self._progress_at = clock.monotonic()
        self._bytes_read = 0
        self._bytes_looked_at = clock.monotonic()
        self._http_started_at: float | None = None
        self.startup = StartupLog()

    def elapsed(self) -> float:
        """Seconds since the spawn."""
        return self._clock.monotonic() - self._began

    async def until_it_answers(self, probe: HttpProbe) -> Models:
        """Wait until the instance's own socket lists every served name.

        Raises:
            StartupTimeout: ``readiness.timeout`` is over.
            Stalled: No progress for ``readiness.stall``.
            PortInUse: Somebody else listens on the port.
            StartFailed: It serves other names.
        """
        probe_at = 0.0
        self._on_step(self.steps(), loading=False)
        while True:
            self._read_log()
            now = self._clock.monotonic()
            if self.startup.http_started or now >= probe_at:
                probe_at = now + PROBE_EVERY
                if models := await self._ask(probe):
                    return models
            await self._check_clocks()
            await self._clock.sleep(NEAR if self.startup.http_started else FAR)

    def _read_log(self) -> None:
        lines = self._log.lines()
        moved = False
        for line in lines:
            step = self.startup.feed(line, self.elapsed())
            moved = moved or step is not None
        if lines:
            self._progress_at = self._clock.monotonic()
        if moved:
            self._on_step(self.steps(), loading=self.startup.phase_hint is Phase.LOADING)
        if self.startup.http_started and self._http_started_at is None:
            self._http_started_at = self._clock.monotonic()

    def steps(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(
            Step(
                name=step.name,
                began=self._seen_at.get(step.name, step.began),
                progress=step.progress,
                detail=step.detail,
            )
            for step in self.startup.steps
        )

    async def _ask(self, probe: HttpProbe) -> Models | None:
        models = await probe.models()
        if models is None:
            return None
        # vLLM can log that it is up while a stranger holds its port: the answer must come from ours.
        if not await asyncio.to_thread(self._running.serves, self._port):
            raise self._stolen()
        wanted = (*self._deployment.names, *self._deployment.lora_modules)
        missing = [name for name in wanted if name not in models.names]
        if missing:
            raise StartFailed(
                cause=f"it serves {', '.join(models.names) or 'nothing'}, not {', '.join(missing)}",
                hint="check `served_model_name` and `args` in the manifest",
            )
        return models

    def _stolen(self) -> PortInUse:
        holder = owner(self._port)
        return PortInUse(
            cause=f"port {self._port} was taken by {holder or 'another program'} while the model loaded",
            hint="stop that program, or leave `port` out to get a free one",
            port=self._port,
            owner=holder,
        )

    def _at(self) -> str:
        return self.startup.current.name

    async def _check_clocks(self) -> None:
        now = self._clock.monotonic()
        readiness = self._deployment.readiness
        if self._http_started_at is not None and now - self._http_started_at > DEAF_AFTER:
            raise StartFailed(
                cause=f"vLLM says that it is up, but nothing answers on port {self._port}",
                hint="another program may have held the port for a moment; the next start looks again",
            )
        if self.elapsed() > readiness.timeout:
            raise StartupTimeout(
                cause=f"it wasn't ready after {readiness.timeout:g} s (it was at: {self._at()})",
                hint="raise `readiness: {timeout: …}` if the model needs longer; the log shows where it was",
            )
        if now - self._bytes_looked_at >= READ_EVERY:
            self._bytes_looked_at = now
            total = await asyncio.to_thread(lambda: bytes_read(self._running.pids()))
            if abs(total - self._bytes_read) >= READ_PROGRESS:
                self._progress_at = now
            self._bytes_read = total
        if now - self._progress_at > readiness.stall:
            raise Stalled(
                cause=f"no sign of progress for {readiness.stall:g} s (it was at: {self._at()})",
                hint="a hung start often means NCCL or a GPU driver; if it is only slow, raise "
                "`readiness: {stall: …}`",
            )
