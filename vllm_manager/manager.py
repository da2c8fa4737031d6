"""All deployments of one supervisor: brings them up and down, takes them over, publishes their endpoints."""

import asyncio
import logging
import os
import random
import secrets as random_secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from vllm_manager import reconcile
from vllm_manager.clock import Clock
from vllm_manager.command import inherited
from vllm_manager.engines.find import engine_for
from vllm_manager.engines.introspect import engine_flags
from vllm_manager.errors import (
    ManifestError,
    ManifestFieldError,
    NotFound,
    StateUnwritable,
)
from vllm_manager.launchers.base import Launcher
from vllm_manager.ledger import GpuLedger
from vllm_manager.manifest.model import Deployment
from vllm_manager.near import near_names
from vllm_manager.notifier import Notifier
from vllm_manager.ports import choose
from vllm_manager.reconcile import Known
from vllm_manager.store import DeploymentRecord, Desired, InstanceRecord, Secrets, Store, endpoints_path
from vllm_manager.supervisor import Services, Supervisor
from vllm_manager.types import Action, Decision, Engine, GpuInventory, Phase, Status

log = logging.getLogger(__name__)

MEMORY_PER_START = 8 << 30
"""Bytes of RAM that one start may need at its peak; more starts at once wait for each other."""


def default_max_starts() -> int:
    """``$VLLM_MANAGER_MAX_STARTS``, else one per 8 GiB of RAM, 1 to 8."""
    configured = os.environ.get("VLLM_MANAGER_MAX_STARTS", "")
    if configured.isdigit() and int(configured) > 0:
        return int(configured)
    return max(1, min(8, psutil.virtual_memory().total // MEMORY_PER_START))


class Manager:
    """Owns the supervisors of all deployments.

    Args:
        store: The state directory, whose lock is held.
        launcher: How instances run.
        clock: Time.
        read_gpus: Takes the GPU inventory.
        engines_dir: Where provisioned engines are.
    """

    def __init__(
        self,
        store: Store,
        launcher: Launcher,
        clock: Clock,
        read_gpus: Callable[[], Awaitable[GpuInventory]],
        engines_dir: Path,
    ) -> None:
        self._store = store
        self._clock = clock
        self._engines_dir = engines_dir
        self._supervisors: dict[str, Supervisor] = {}
        self._desired: dict[str, Desired] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._unclaimed: dict[str, InstanceRecord] = {}  # instances whose deployment's record was damaged
        self._finishing: list[asyncio.Task[None]] = []
        self.changed = Notifier()
        self.ledger = GpuLedger(read_gpus, default_max_starts())
        self._services = Services(
            store=store,
            ledger=self.ledger,
            launcher=launcher,
            clock=clock,
            engine_for=self._engine_for,
            flags_of=partial(engine_flags, engines_dir=engines_dir, only_cached=True),
            taken_ports=self._taken_ports,
            changed=self._publish,
            jitter=random.Random(),  # noqa: S311 - spreads restarts, guards nothing
        )

    # --- start and end of the supervisor

    async def adopt_all(self) -> None:
        """Take over what the records of an earlier supervisor tell of."""
        deployments, damaged = self._store.deployments()
        instances, damaged_instances = self._store.instances()
        for error in (*damaged, *damaged_instances):
            log.error("%s", error)
        for name, wanted in deployments.items():
            try:
                deployment = Deployment.from_json(wanted.manifest)
            except ManifestError as error:  # written by a version with other fields
                log.error("%s: its stored manifest can't be read: %s", name, error)
                continue
            self._supervisors[name] = Supervisor(
                self._services, deployment, wanted.source, self._store.secrets(name), instances.get(name)
            )
            self._desired[name] = wanted.desired
        for name, supervisor in self._supervisors.items():
            await supervisor.adopt(wanted=self._desired[name] is Desired.RUNNING)
            if self._desired[name] is Desired.GONE:
                self._finishing.append(asyncio.create_task(self.down(name), name=f"{name}: down"))
        self._unclaimed = {name: i for name, i in instances.items() if name not in self._supervisors}
        self._publish()

    async def close(self, *, stop: bool, now: asyncio.Event | None = None) -> None:
        """End supervising: stop all instances, or leave them to the next supervisor.

        Args:
            stop: Whether to stop them.
            now: When set, stopping skips what is left of drains and grace periods.
        """
        if stop:
            stopping = asyncio.gather(*(s.stop() for s in self._supervisors.values()))
            hurry = asyncio.create_task(self._hurry(now))
            try:
                await stopping
            finally:
                hurry.cancel()
        for supervisor in self._supervisors.values():
            await supervisor.detach()

    async def _hurry(self, now: asyncio.Event | None) -> None:
        if now is not None:
            await now.wait()
            await asyncio.gather(*(s.stop(now=True) for s in self._supervisors.values()))

    def heal(self) -> None:
        """Publish the endpoints anew where somebody removed their file."""
        if not endpoints_path(self._store.root).exists():
            self._publish()

    @property
    def empty(self) -> bool:
        """Whether nothing runs or is to run; what was stopped is kept in its records."""
        return all(
            supervisor.phase is Phase.STOPPED and self._desired[name] is Desired.STOPPED
            for name, supervisor in self._supervisors.items()
        )

    def stopped(self, name: str) -> bool:
        """Whether somebody stopped that deployment and wants it to stay so."""
        return self._desired.get(name) is Desired.STOPPED

    # --- what is asked of it

    async def up(
        self,
        deployment: Deployment,
        *,
        source: str,
        api_key: str | None,
        environment: Mapping[str, str],
        recreate: bool = False,
    ) -> Decision:
        """Want a deployment running as the manifest says.

        Args:
            deployment: The manifest.
            source: Its path.
            api_key: The key that the manifest refers to or holds, resolved by the caller.
            environment: The caller's; the part that ``command.inherited`` lets through goes to the instance,
                a running one's at its next start.
            recreate: Replace its instance also where nothing changed.

        Raises:
            ManifestError: Another deployment has that port, or this version can't do what it asks for.
            PlacementError: No GPU can take it.
            StartFailed: Its engine is missing or its port is in use.
            StateUnwritable: The state directory can't be written.
        """
        name = deployment.name
        self._check_supported(deployment)
        async with self._lock(name):
            self._check_port(deployment)
            stored = self._store.secrets(name)
            wanted_key = self._key_for(deployment, api_key, stored)
            secrets = Secrets(api_key=wanted_key, environment=inherited(environment))
            if (left := self._unclaimed.pop(name, None)) is not None:
                lost = Supervisor(self._services, deployment, source, stored, left)
                await lost.adopt(wanted=False)
                await self._end(lost)
            known = await self._after_stopping(name)
            decision = reconcile.decide(
                deployment,
                self._known().get(name),
                key_changed=known is not None and known.secrets.api_key != wanted_key,
                recreate=recreate,
            )
            if decision.action is Action.START:
                await self._precheck(deployment, secrets.environment)
            self._store.save_secrets(name, secrets)
            self._save(deployment, source, Desired.RUNNING)
            if known is not None and not decision.changes and decision.action is not Action.RESTART:
                # What needs no new instance applies to the one that runs.
                known.deployment, known.source, known.secrets = deployment, source, secrets
                if decision.action is Action.RESUME:
                    known.start()
                return decision
            if known is not None:
                await self._end(known)
            self._begin(deployment, source, secrets, port=known.port if known else None)
            return decision

    async def start(self, name: str) -> Decision:
        """Want a deployment running that was brought up before, as its manifest said then.

        Raises:
            NotFound: There is none of that name, or it is being taken down.
            StateUnwritable: The state directory can't be written.
        """
        async with self._lock(name):
            await self._after_stopping(name)
            supervisor = self._kept(name)
            self._save(supervisor.deployment, supervisor.source, Desired.RUNNING)
            if supervisor.phase not in (Phase.STOPPED, Phase.FAILED, Phase.BACKOFF):
                return Decision(name=name, action=Action.UNCHANGED)
            supervisor.start()
            return Decision(name=name, action=Action.RESUME)

    async def restart(self, name: str) -> Decision:
        """Replace a deployment's instance, on the same port; one that doesn't run is started.

        Raises:
            NotFound: There is none of that name, or it is being taken down.
            ManagerError: A process of it can't be ended.
        """
        async with self._lock(name):
            old = self._kept(name)
            self._save(old.deployment, old.source, Desired.RUNNING)
            await self._end(old)
            self._begin(old.deployment, old.source, old.secrets, port=old.port)
            return Decision(name=name, action=Action.RESTART)

    async def stop(self, name: str, *, now: bool = False) -> None:
        """Stop a deployment without forgetting it.

        Raises:
            NotFound: There is none of that name, or it is being taken down.
            ManagerError: A process of it can't be ended.
        """
        supervisor = self._kept(name)
        self._note(supervisor, Desired.STOPPED)
        await self._halt(supervisor, now=now)

    async def down(self, name: str, *, now: bool = False) -> None:
        """Stop a deployment and forget it, files and all.

        Raises:
            NotFound: There is none of that name.
            ManagerError: A process of it can't be ended.
        """
        supervisor = self._find(name)
        self._note(supervisor, Desired.GONE)
        # Stopping needn't wait for an `up` of the same name that is still stopping the old one.
        await self._end(supervisor, now=now)
        async with self._lock(name):
            if self._supervisors.get(name) is not supervisor:
                return
            self._forget(name)
        self._locks.pop(name, None)
        self._publish()

    def status(self, name: str) -> Status:
        """One deployment. Raises NotFound."""
        return self._find(name).status()

    def statuses(self) -> list[Status]:
        """All deployments, by name."""
        return [self._supervisors[name].status() for name in sorted(self._supervisors)]

    # --- helpers

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _begin(self, deployment: Deployment, source: str, secrets: Secrets, port: int | None) -> None:
        supervisor = Supervisor(self._services, deployment, source, secrets)
        if deployment.port is None:
            supervisor.prefer_port(port)
        self._supervisors[deployment.name] = supervisor
        supervisor.start()

    async def _after_stopping(self, name: str) -> Supervisor | None:
        """The deployment once a `down` or `stop` of it is through; None where it is unknown or forgotten."""
        known = self._supervisors.get(name)
        if known is None or known.phase not in (Phase.STOPPING, Phase.STOPPED):
            return known
        await self._end(known)
        if self._desired[name] is Desired.GONE:
            self._forget(name)
            return None
        # Another supervisor for what follows: whoever waits for the end of this one is to see it.
        fresh = Supervisor(self._services, known.deployment, known.source, known.secrets)
        fresh.prefer_port(known.port)
        self._supervisors[name] = fresh
        return fresh

    def _save(self, deployment: Deployment, source: str, desired: Desired) -> None:
        self._store.save_deployment(
            DeploymentRecord(
                name=deployment.name, manifest=deployment.to_json(), source=source, desired=desired
            )
        )
        self._desired[deployment.name] = desired

    def _note(self, supervisor: Supervisor, desired: Desired) -> None:
        # Should this supervisor end before the instance, the next one goes on. A full disk is no reason to
        # let anything run.
        name = supervisor.deployment.name
        self._desired[name] = desired
        with suppress(StateUnwritable):
            self._save(supervisor.deployment, supervisor.source, desired)

    def _forget(self, name: str) -> None:
        self._store.forget(name)
        del self._supervisors[name]
        self._desired.pop(name, None)

    @staticmethod
    async def _halt(supervisor: Supervisor, *, now: bool = False) -> None:
        await supervisor.stop(now=now)
        if supervisor.phase is Phase.FAILED and supervisor.error is not None:
            raise supervisor.error

    async def _end(self, supervisor: Supervisor, *, now: bool = False) -> None:
        await self._halt(supervisor, now=now)
        await supervisor.detach()

    def _find(self, name: str) -> Supervisor:
        try:
            return self._supervisors[name]
        except KeyError:
            known = tuple(sorted(self._supervisors))
            raise NotFound(
                cause=f"there is no deployment named {name}",
                hint=near_names(name, known),
                name=name,
                known=known,
            ) from None

    def _kept(self, name: str) -> Supervisor:
        supervisor = self._find(name)
        if self._desired[name] is Desired.GONE:
            raise NotFound(
                cause=f"{name} is being taken down",
                hint=f"`vllm-manager up {supervisor.source}` brings it up again",
                name=name,
            )
        return supervisor

    def _publish(self) -> None:
        try:
            self._store.save_endpoints(tuple(s.endpoint() for s in self._supervisors.values()))
        except StateUnwritable as error:
            log.error("%s", error)
        self.changed.notify()

    def _engine_for(self, deployment: Deployment, environment: Mapping[str, str]) -> Engine:
        return engine_for(deployment, environment, self._engines_dir)

    def _taken_ports(self, name: str) -> set[int]:
        others = (s for other, s in self._supervisors.items() if other != name)
        return {port for s in others for port in (s.port, s.deployment.port) if port}

    def _check_port(self, deployment: Deployment) -> None:
        if conflict := reconcile.port_conflict(deployment, self._known()):
            raise conflict

    def _known(self) -> dict[str, Known]:
        return {
            name: Known(deployment=each.deployment, source=each.source, phase=each.phase)
            for name, each in self._supervisors.items()
        }

    async def _precheck(self, deployment: Deployment, environment: Mapping[str, str]) -> None:
        # What can be known to fail is said before anything is written or started.
        await asyncio.to_thread(self._engine_for, deployment, environment)
        await self.ledger.check(deployment.name, deployment.request)
        choose(deployment.host, deployment.port, None, self._taken_ports(deployment.name))

    @staticmethod
    def _check_supported(deployment: Deployment) -> None:
        if found := reconcile.unsupported(deployment):
            field, cause, hint = found
            raise ManifestFieldError(cause=cause, hint=hint, field=".".join(field))

    @staticmethod
    def _key_for(deployment: Deployment, given: str | None, stored: Secrets) -> str | None:
        if deployment.api_key == "generate":
            return stored.api_key or f"sk-{random_secrets.token_urlsafe(24)}"
        return given
