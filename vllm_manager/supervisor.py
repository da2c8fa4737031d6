"""One instance's supervisor: executes the lifecycle table, and is the only writer of the instance's record.

Every effect is one task at a time that returns the event it ended in; a death is watched beside it. All of it
runs on one event loop, so a transition and the record that it writes are never seen half done.
"""

import asyncio
import logging
import os
import random
import secrets as random_secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from vllm_manager import backoff, command, farewell, lifecycle, liveness, ports
from vllm_manager.aftermath import Aftermath, explain_death
from vllm_manager.clock import Clock
from vllm_manager.errors import (
    HandleError,
    InstanceGone,
    ManagerError,
    ModelNotFound,
    StartFailed,
    StateUnwritable,
    from_payload,
)
from vllm_manager.launchers.base import Death, Launcher, Running
from vllm_manager.ledger import GpuLedger
from vllm_manager.lifecycle import Effect, Event
from vllm_manager.logs import last_lines
from vllm_manager.manifest.model import Deployment
from vllm_manager.notifier import Notifier
from vllm_manager.probes import HttpProbe
from vllm_manager.records import blank_record, new_record
from vllm_manager.redact import redact_error
from vllm_manager.startup_watch import StartupWatch
from vllm_manager.status import endpoint_of, root_url, status_of
from vllm_manager.store import InstanceRecord, Secrets, Store
from vllm_manager.types import Download, Endpoint, Engine, EngineFlags, Phase, Status, Step, StepName
from vllm_manager.weights import fetch as weights

log = logging.getLogger(__name__)

LOOK_AGAIN = 30.0
"""Seconds between two looks at which processes and shared memory a ready instance has."""

TAIL = 10
"""Lines of the log that go with a failed start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the supervisors of all instances share.

    Attributes:
        engine_for: The engine that a deployment runs on, in an environment. Blocking.
        flags_of: What that engine's `vllm serve` understands, where it was read before. Blocking.
        taken_ports: The ports of all deployments but the named one.
        changed: Called after every change of any instance.
    """

    store: Store
    ledger: GpuLedger
    launcher: Launcher
    clock: Clock
    engine_for: Callable[[Deployment, Mapping[str, str]], Engine]
    flags_of: Callable[[Engine], EngineFlags | None]
    taken_ports: Callable[[str], Collection[int]]
    changed: Callable[[], None]
    jitter: random.Random


class Supervisor:
    """Keeps one deployment's instance as it is wanted."""

    def __init__(
        self,
        services: Services,
        deployment: Deployment,
        source: str,
        secrets: Secrets,
        record: InstanceRecord | None = None,
    ) -> None:
        self._services = services
        self.deployment = deployment
        self.source = source
        self.secrets = secrets
        self._record = record or blank_record(deployment)
        self._changed = Notifier()
        self._work: asyncio.Task[None] | None = None
        self._death_watch: asyncio.Task[None] | None = None
        self._running: Running | None = None
        self._death: Death | None = None
        self._error: ManagerError | None = None
        self._supported_tasks: tuple[str, ...] = ()
        self._hurry = asyncio.Event()
        self._download: Download | None = None
        self._delay = 0.0
        self._start_again = False
        # Restart times on the monotonic clock; the record keeps them on the wall clock, for the next boot.
        now, wall = services.clock.monotonic(), services.clock.wall()
        self._restarts = [now - (wall - at) for at in self._record.restarts_at]

    # --- what is asked of it

    @property
    def phase(self) -> Phase:
        """Where the instance is."""
        return self._record.phase

    @property
    def port(self) -> int | None:
        """The port that it has or had; 0 and None are no port."""
        return self._record.port or None

    @property
    def error(self) -> ManagerError | None:
        """What went wrong last."""
        return from_payload(self._record.error) if self._record.error else None

    def prefer_port(self, port: int | None) -> None:
        """Take that port again if it is free and the manifest names none."""
        self._record = replace(self._record, port=port or 0)

    def start(self) -> None:
        """Want it running: at once, or as soon as what is left of the last instance is gone."""
        if self.phase in (Phase.FAILED, Phase.STOPPED):
            self._restarts = []
            self._record = replace(self._record, failed_starts=0, restarts_at=(), error=None)
        self._start_again = self.phase is Phase.SWEEPING
        self._on(Event.START)

    async def stop(self, *, now: bool = False) -> None:
        """Want it stopped, and wait until nothing of it is left.

        Args:
            now: Skip the drain and the grace periods.
        """
        if now:
            self._hurry.set()
        self._start_again = False
        self._on(Event.STOP)
        seen = self._changed.version
        while self.phase not in (Phase.STOPPED, Phase.FAILED):
            seen = await self._changed.wait(seen)
        self._hurry.clear()

    async def adopt(self, *, wanted: bool) -> None:
        """Take over what the record tells of, after a supervisor's restart.

        Args:
            wanted: Whether it should be running.
        """
        record = self._record
        if not record.instance:
            await self._clear_unrecorded()
        if record.phase.live:
            await self._take_over(record)
        elif wanted and record.phase in (Phase.PENDING, Phase.BACKOFF):
            self._enter(Phase.PENDING)
            self._perform(Effect.FETCH)
        elif wanted and record.phase is Phase.STOPPED:
            # By the end of the last supervisor, which is no `down`; or the record of its start was lost.
            self._on(Event.START)
        if not wanted:
            self._start_again = False
            self._on(Event.STOP)
        elif record.phase is Phase.STOPPING or (
            record.phase.live and record.fingerprint != self.deployment.fingerprint
        ):
            # The last supervisor ended while it was ending itself, or acting on a changed manifest.
            self._start_again = True
            self._on(Event.STOP)

    async def _clear_unrecorded(self) -> None:
        # The record was lost or damaged. Each instance has a log that is named after it, and by that and its
        # other marks whatever runs is found and ended, so that nothing runs twice.
        aftermath = Aftermath(self._services.launcher, self._services.ledger, self._services.clock)
        for path in self._services.store.logs_of(self.deployment.name):
            await aftermath.clear(
                new_record(self.deployment, self._services.store, path.stem.rpartition("-")[2]), None
            )

    async def _take_over(self, record: InstanceRecord) -> None:
        services = self._services
        starting = record.phase in (Phase.STARTING, Phase.LOADING, Phase.WARMING)
        await services.ledger.adopt(record.instance, record.deployment, record.placement, ready=not starting)
        try:
            if record.handle is None:
                raise InstanceGone(cause="the supervisor ended while it was being started")
            self._running = services.launcher.attach(record.handle)
        except HandleError as error:
            log.warning("%s: can't be taken over: %s", record.instance, error)
            self._error = ManagerError(cause=f"it was lost while no supervisor ran: {error}")
            if record.phase is Phase.STOPPING:
                self._perform(Effect.END)
            else:
                # It is no failed start, so nothing is waited for.
                self._start_again = self.deployment.restart.policy != "never"
                self._enter(Phase.SWEEPING)
                self._perform(Effect.SWEEP)
            return
        log.info("%s: taken over in phase %s, pid %s", record.instance, record.phase, self._running.pid)
        self._watch_for_death()
        if starting:
            if record.phase is Phase.WARMING:
                self._enter(Phase.LOADING)  # the warm-up that was under way is simply made again
            self._perform(Effect.SPAWN)
        elif record.phase is Phase.READY:
            self._perform(Effect.WATCH)
        else:
            self._perform(Effect.END if record.phase is Phase.STOPPING else Effect.SWEEP)
        self._services.changed()

    async def detach(self) -> None:
        """Let go of it: the instance runs on, for the next supervisor to take over."""
        for task in (self._work, self._death_watch):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        if self._running is not None:
            self._running.close()
            self._running = None

    # --- the table, executed

    def _on(self, event: Event) -> None:
        transition = lifecycle.step(self.phase, event)
        if transition is None:
            return
        if transition.phase is not self.phase:
            self._enter(transition.phase)
        if transition.effect is not None:
            self._perform(transition.effect)

    def _enter(self, phase: Phase) -> None:
        clock, ended = self._services.clock, self.phase is Phase.SWEEPING
        wall = clock.wall()
        if phase is Phase.READY:
            self._error = None
            self._record = replace(self._record, ready_at=wall, failed_starts=0, error=None)
        self._record = replace(
            self._record,
            phase=phase,
            phase_since=wall,
            restarts_at=tuple(wall - (clock.monotonic() - at) for at in self._restarts),
        )
        self._save()
        # What ended the last instance is told once, when all of it is known: after the sweep.
        told = phase is Phase.FAILED or ended
        cause = self._record.error["cause"] if told and self._record.error else None
        log.info(
            "%s: %s%s", self._record.instance or self.deployment.name, phase, f": {cause}" if cause else ""
        )
        self._services.store.append_event(
            {
                "at": wall,
                "deployment": self.deployment.name,
                "instance": self._record.instance,
                "phase": phase,
                "cause": cause,
            }
        )
        self._notify()

    def _save(self) -> None:
        # A record that can't be written must not end a model that runs; the next change tries again.
        try:
            self._services.store.save_instance(self._record)
        except StateUnwritable as error:
            log.error("%s", error)

    def _notify(self) -> None:
        self._changed.notify()
        self._services.changed()

    def _perform(self, effect: Effect) -> None:
        if self._work is not None and self._work is not asyncio.current_task():
            self._work.cancel()
        self._work = asyncio.create_task(self._run(effect), name=f"{self.deployment.name}: {effect}")

    async def _run(self, effect: Effect) -> None:
        effects = {
            Effect.FETCH: self._fetch,
            Effect.PLACE: self._place,
            Effect.SPAWN: self._spawn,
            Effect.WARM_UP: self._warm_up,
            Effect.WATCH: self._watch,
            Effect.SWEEP: self._sweep,
            Effect.END: self._end,
            Effect.WAIT: self._wait,
            Effect.REST: self._rest,
        }
        try:
            event = await effects[effect]()
        except ManagerError as error:
            event = self._fail(effect, error)
        except Exception as error:
            log.exception("%s: %s failed", self._record.instance, effect)
            event = self._fail(effect, ManagerError(cause=f"internal error during {effect}: {error!r}"))
        if event is not None:
            self._on(event)

    def _fail(self, effect: Effect, error: ManagerError) -> Event:
        if isinstance(error, StartFailed) and effect in (Effect.SPAWN, Effect.WARM_UP):
            tail = error.log_tail or tuple(last_lines(self._record.log, TAIL))
            error = replace(error, deployment=self.deployment.name, log_tail=tail, log_path=self._record.log)
        self._error = error
        if effect in (Effect.SWEEP, Effect.END):
            self._record = replace(self._record, error=error.payload())
            return Event.GIVE_UP
        return Event.FAILED

    # --- effects

    async def _fetch(self) -> Event:
        self._error = self._death = None
        deployment, environment = self.deployment, self.secrets.environment
        _check_model(deployment)
        # A crash is no occasion to ask the hub whether a branch has moved.
        if bool(self._restarts) and await asyncio.to_thread(weights.cached, deployment, environment):
            return Event.FETCHED
        try:
            await weights.fetch(deployment, environment, self._on_download)
        finally:
            self._download = None
        return Event.FETCHED

    def _on_download(self, download: Download) -> None:
        self._download = download
        self._notify()

    async def _place(self) -> Event:
        services, deployment = self._services, self.deployment
        engine = await asyncio.to_thread(services.engine_for, deployment, self.secrets.environment)
        fresh = new_record(deployment, services.store, random_secrets.token_hex(4))
        instance = fresh.instance
        placement = await services.ledger.reserve(instance, deployment.name, deployment.request)
        try:
            port = ports.choose(
                deployment.host, deployment.port, self.port, services.taken_ports(deployment.name)
            )
        except ManagerError:
            await services.ledger.release(instance)
            raise
        self._record = replace(
            fresh,
            port=port,
            engine=engine,
            placement=placement,
            phase=Phase.PENDING,
            failed_starts=self._record.failed_starts,
            error=self._record.error,
        )
        return Event.PLACED

    async def _spawn(self) -> Event:
        services, record = self._services, self._record
        assert record.engine is not None  # noqa: S101 - set by _place
        if record.handle is None:
            flags = await asyncio.to_thread(services.flags_of, record.engine)
            spec = command.launch_spec(
                self.deployment,
                engine=record.engine,
                flags=flags,
                placement=record.placement,
                api_key=self.secrets.api_key,
                base=self.secrets.environment,
                instance=record.instance,
                title=record.title,
                port=record.port,
                cwd=record.cwd,
                tmp=record.tmp,
                log=record.log,
            )
            # No await from the spawn to the record, so that only a crash can come between them.
            handle = services.launcher.launch(spec)
            self._record = record = replace(record, handle=handle, spawned_at=services.clock.wall())
            self._save()
            try:
                self._running = services.launcher.attach(handle)
            except InstanceGone:
                return Event.DIED
            self._watch_for_death()
        assert self._running is not None  # noqa: S101
        assert record.spawned_at is not None  # noqa: S101
        watch = StartupWatch(
            self.deployment,
            self._running,
            log=record.log,
            port=record.port,
            elapsed=services.clock.wall() - record.spawned_at,
            known_steps=record.steps,
            clock=services.clock,
            on_step=self._on_step,
        )
        async with self._probe() as probe:
            models = await watch.until_it_answers(probe)
        self._supported_tasks = watch.startup.supported_tasks
        self._record = replace(
            self._record,
            max_model_len=models.max_model_len,
            kv_cache_tokens=watch.startup.kv_cache_tokens,
        )
        watch.startup.begin(StepName.WARM_UP, watch.elapsed())
        self._on_step(watch.steps(), loading=True)
        return Event.ANSWERS

    def _on_step(self, steps: tuple[Step, ...], *, loading: bool) -> None:
        self._record = replace(self._record, steps=steps)
        if loading:
            self._on(Event.WEIGHTS)
        self._notify()

    async def _warm_up(self) -> Event:
        if self.deployment.readiness.warm_up:
            async with self._probe() as probe:
                task = await probe.warm_up(self.deployment.names[0], self._supported_tasks)
            self._record = replace(self._record, task=task)
        assert self._record.spawned_at is not None  # noqa: S101
        self._record = replace(
            self._record, ready_after=self._services.clock.wall() - self._record.spawned_at
        )
        return Event.WARMED

    async def _watch(self) -> None:
        await self._services.ledger.ready(self._record.instance)
        self._prune_logs()
        tasks = [asyncio.create_task(self._look_after()), asyncio.create_task(self._see_progress())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def _see_progress(self) -> None:
        task = self._record.task
        if task is None:
            return  # it wasn't warmed up, so nobody knows what to ask
        async with self._probe() as probe:
            model, clock = self.deployment.names[0], self._services.clock
            await liveness.watch(probe, model, task, lambda: self.deployment.liveness, clock)

    async def _look_after(self) -> None:
        running = self._running
        assert running is not None  # noqa: S101
        while True:
            await running.watch_engine()
            self._services.ledger.seen(self._record.instance, await asyncio.to_thread(running.pids))
            shared = await asyncio.to_thread(running.shared_memory)
            if not shared <= set(self._record.shared_memory):
                kept = tuple(sorted(shared.union(self._record.shared_memory)))
                self._record = replace(self._record, shared_memory=kept)
                self._save()
            await self._services.clock.sleep(LOOK_AGAIN)

    async def _sweep(self) -> Event:
        was_ready = self._record.ready_at is not None
        error = self._error or await explain_death(self._death, self._record, was_ready=was_ready)
        error = redact_error(error, self.secrets.values)
        now = self._services.clock.monotonic()
        if was_ready:
            self._restarts.append(now)
        failed_starts = 0 if was_ready else self._record.failed_starts + 1
        self._record = replace(self._record, error=error.payload(), failed_starts=failed_starts)
        self._notify()
        await self._clear()
        if self._start_again:
            self._start_again = False
            return Event.AGAIN
        decision = backoff.decide(
            backoff.RestartPolicy.of(self.deployment.restart),
            failed_starts=failed_starts,
            restarts=tuple(self._restarts),
            now=now,
            permanent=bool(getattr(error, "permanent", False)),
            jitter=self._services.jitter,
        )
        if isinstance(decision, backoff.GiveUp):
            log.info("%s: not started again: %s", self._record.instance, decision.reason)
            return Event.GIVE_UP
        self._delay = decision
        self._record = replace(self._record, retry_at=self._services.clock.wall() + decision)
        return Event.RETRY

    async def _end(self) -> Event:
        running = self._running
        if running is not None:
            was_ready = self._record.ready_at is not None
            await farewell.end(
                running, self._probe(), self.deployment.stop, was_ready, self._services.clock, self._hurry
            )
        await self._clear()
        self._record = replace(self._record, error=None)
        return Event.SWEPT

    async def _clear(self) -> None:
        """End all that is left of the instance and free what it held.

        Raises:
            ManagerError: A process can't be ended; then its leases stay.
        """
        running, self._running = self._running, None
        if self._death_watch is not None and self._death_watch is not asyncio.current_task():
            self._death_watch.cancel()
        aftermath = Aftermath(self._services.launcher, self._services.ledger, self._services.clock)
        try:
            await aftermath.clear(self._record, running)
        finally:
            if running is not None:
                running.close()
        self._record = replace(self._record, handle=None, shared_memory=())

    async def _wait(self) -> Event:
        await self._services.clock.sleep(self._delay)
        self._record = replace(self._record, retry_at=None)
        return Event.DUE

    async def _rest(self) -> Event | None:
        self._prune_logs()
        again, self._start_again = self._start_again, False
        return Event.START if again else None

    # --- helpers

    def _probe(self) -> HttpProbe:
        return HttpProbe(root_url(self.deployment, self._record), self.secrets.api_key)

    def _watch_for_death(self) -> None:
        running = self._running
        assert running is not None  # noqa: S101

        async def watch() -> None:
            self._death = await running.died()
            self._on(Event.DIED)

        self._death_watch = asyncio.create_task(watch(), name=f"{self.deployment.name}: death watch")

    def _prune_logs(self) -> None:
        # This start's log and the one before it are kept.
        for path in self._services.store.logs_of(self.deployment.name)[:-2]:
            path.unlink(missing_ok=True)

    def status(self) -> Status:
        """The deployment as ``ps`` shows it."""
        return status_of(
            self.deployment,
            self._record,
            source=self.source,
            pid=self._running.pid if self._running is not None else None,
            restarts=len(self._restarts),
            now=self._services.clock.wall(),
            download=self._download,
        )

    def endpoint(self) -> Endpoint:
        """How clients reach it."""
        return endpoint_of(self.deployment, self._record, self._download)


def _check_model(deployment: Deployment) -> None:
    if deployment.model.startswith("/") and not os.path.isdir(deployment.model):
        raise ModelNotFound(
            cause=f"the model's directory {deployment.model} isn't there",
            hint="restore it, or correct `model` in the manifest",
            deployment=deployment.name,
            permanent=True,
        )
