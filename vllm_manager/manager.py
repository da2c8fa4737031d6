"""All deployments of one supervisor: brings them up and down, takes them over, publishes their endpoints."""

import asyncio
import logging
import os
import random
import secrets as random_secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from vllm_manager.clock import Clock
from vllm_manager.command import inherited
from vllm_manager.engines.find import engine_for
from vllm_manager.errors import ManifestConflictError, ManifestError, NotFound, StateUnwritable
from vllm_manager.launchers.base import Launcher
from vllm_manager.ledger import GpuLedger
from vllm_manager.manifest.model import Deployment
from vllm_manager.near import near_names
from vllm_manager.notifier import Notifier
from vllm_manager.ports import choose
from vllm_manager.store import DeploymentRecord, InstanceRecord, Secrets, Store, endpoints_path
from vllm_manager.supervisor import Services, Supervisor
from vllm_manager.types import Engine, GpuInventory, Phase, Status

log = logging.getLogger(__name__)

MEMORY_PER_START = 8 << 30
"""Bytes of RAM that one start may need at its peak; more starts at once wait for each other."""

UpAction = Literal["started", "restarted", "resumed", "unchanged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpResult:
    """What ``up`` did.

    Attributes:
        changes: The manifest's fields that differ from what ran before.
    """

    action: UpAction
    changes: tuple[str, ...] = ()


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
        for name, supervisor in self._supervisors.items():
            await supervisor.adopt(wanted=deployments[name].wanted)
            if not deployments[name].wanted:
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
        """Whether there is no deployment at all."""
        return not self._supervisors

    # --- what is asked of it

    async def up(
        self,
        deployment: Deployment,
        *,
        source: str,
        api_key: str | None,
        environment: Mapping[str, str],
    ) -> UpResult:
        """Want a deployment running as the manifest says.

        Args:
            deployment: The manifest.
            source: Its path.
            api_key: The key that the manifest refers to or holds, resolved by the caller.
            environment: The caller's; the part that ``command.inherited`` lets through goes to the instance,
                a running one's at its next start.

        Raises:
            ManifestConflictError: Another deployment has that port.
            PlacementError: No GPU can take it.
            StartFailed: Its engine is missing or its port is in use.
            StateUnwritable: The state directory can't be written.
        """
        name = deployment.name
        async with self._locks.setdefault(name, asyncio.Lock()):
            self._check_port(deployment)
            stored = self._store.secrets(name)
            wanted_key = self._key_for(deployment, api_key, stored)
            secrets = Secrets(api_key=wanted_key, environment=inherited(environment))
            known = self._supervisors.get(name)
            if (left := self._unclaimed.pop(name, None)) is not None:
                lost = Supervisor(self._services, deployment, source, stored, left)
                await lost.adopt(wanted=False)
                await self._end(lost)
            if known is not None and known.phase is Phase.STOPPING:
                # A `down` is under way, whose end forgets what it stopped: this is a new beginning.
                await self._end(known)
                self._store.forget(name)
                del self._supervisors[name]
                known = None
            if known is not None and known.deployment.fingerprint == deployment.fingerprint:
                if known.secrets.api_key == wanted_key:
                    return self._resume(known, deployment, source, secrets)
                changes: tuple[str, ...] = ("api_key",)
            elif known is not None:
                changes = deployment.changes(known.deployment)
            else:
                await self._precheck(deployment, secrets.environment)
                changes = ()
            self._save(deployment, source, secrets)
            if known is not None:
                await self._end(known)
            supervisor = Supervisor(self._services, deployment, source, secrets)
            if known is not None:
                supervisor.prefer_port(known.port)
            self._supervisors[name] = supervisor
            supervisor.start()
            return UpResult(action="restarted" if known is not None else "started", changes=changes)

    def _resume(
        self, supervisor: Supervisor, deployment: Deployment, source: str, secrets: Secrets
    ) -> UpResult:
        # What the fingerprint leaves out (readiness, restart) applies without a restart.
        supervisor.deployment, supervisor.source, supervisor.secrets = deployment, source, secrets
        self._save(deployment, source, secrets)
        if supervisor.phase not in (Phase.FAILED, Phase.STOPPED, Phase.BACKOFF):
            return UpResult(action="unchanged")
        supervisor.start()
        return UpResult(action="resumed")

    def _save(self, deployment: Deployment, source: str, secrets: Secrets) -> None:
        self._store.save_secrets(deployment.name, secrets)
        self._save_deployment(deployment, source, wanted=True)

    def _save_deployment(self, deployment: Deployment, source: str, *, wanted: bool) -> None:
        self._store.save_deployment(
            DeploymentRecord(
                name=deployment.name, manifest=deployment.to_json(), source=source, wanted=wanted
            )
        )

    async def down(self, name: str, *, now: bool = False) -> None:
        """Stop a deployment and forget it, files and all.

        Raises:
            NotFound: There is none of that name.
            ManagerError: A process of it can't be ended.
        """
        supervisor = self._find(name)
        # Should this supervisor end before the instance, the next one goes on. A full disk is no reason to
        # let anything run.
        with suppress(StateUnwritable):
            self._save_deployment(supervisor.deployment, supervisor.source, wanted=False)
        # Stopping needn't wait for an `up` of the same name that is still stopping the old one.
        await self._end(supervisor, now=now)
        async with self._locks.setdefault(name, asyncio.Lock()):
            if self._supervisors.get(name) is not supervisor:
                return
            del self._supervisors[name]
            self._store.forget(name)
        self._locks.pop(name, None)
        self._publish()

    def status(self, name: str) -> Status:
        """One deployment. Raises NotFound."""
        return self._find(name).status()

    def statuses(self) -> list[Status]:
        """All deployments, by name."""
        return [self._supervisors[name].status() for name in sorted(self._supervisors)]

    # --- helpers

    @staticmethod
    async def _end(supervisor: Supervisor, *, now: bool = False) -> None:
        await supervisor.stop(now=now)
        if supervisor.phase is Phase.FAILED and supervisor.error is not None:
            raise supervisor.error
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
        for name, supervisor in self._supervisors.items():
            if name != deployment.name and deployment.port and deployment.port == supervisor.deployment.port:
                raise ManifestConflictError(
                    cause=f"port {deployment.port} belongs to the deployment {name} already",
                    hint="choose another `port`, or leave it out to get a free one",
                    path=supervisor.source,
                    field="port",
                )

    async def _precheck(self, deployment: Deployment, environment: Mapping[str, str]) -> None:
        # What can be known to fail is said before anything is written or started.
        await asyncio.to_thread(self._engine_for, deployment, environment)
        await self.ledger.check(deployment.name, deployment.request)
        choose(deployment.host, deployment.port, None, self._taken_ports(deployment.name))

    @staticmethod
    def _key_for(deployment: Deployment, given: str | None, stored: Secrets) -> str | None:
        if deployment.api_key == "generate":
            return stored.api_key or f"sk-{random_secrets.token_urlsafe(24)}"
        return given
