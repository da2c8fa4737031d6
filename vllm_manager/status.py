"""How a deployment looks from outside, made from its manifest and its instance's record. Pure."""

from collections.abc import Mapping
from typing import Any

from vllm_manager import command
from vllm_manager.errors import from_payload
from vllm_manager.manifest.model import Deployment
from vllm_manager.store import InstanceRecord
from vllm_manager.types import Download, Endpoint, Phase, Status

STARTING = frozenset({Phase.STARTING, Phase.LOADING, Phase.WARMING})


def root_url(deployment: Deployment, record: InstanceRecord) -> str:
    """The address that this machine's programs use for the instance."""
    host, scheme = record.host, "https" if deployment.certificate else "http"
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - replaced, not bound
    return f"{scheme}://{f'[{reachable}]' if ':' in reachable else reachable}:{record.port}"


def endpoint_of(deployment: Deployment, record: InstanceRecord, download: Download | None = None) -> Endpoint:
    """How clients reach it, without its key."""
    step = record.steps[-1] if record.steps and record.phase in STARTING else None
    at = " ".join(filter(None, (step.name, step.detail))) if step else None
    if download is not None:
        at = f"download {download.done * 100 // max(1, download.total)} %"
    failure = _failure(record)
    error = from_payload(failure) if failure else None
    return Endpoint(
        deployment=deployment.name,
        model=deployment.names[0],
        names=deployment.names,
        adapters=tuple(deployment.lora_modules),
        certificate=deployment.certificate,
        root_url=root_url(deployment, record) if record.port else None,
        phase=record.phase,
        task=record.task,
        max_model_len=record.max_model_len,
        tool_call_parser=deployment.tool_call_parser,
        reasoning_parser=deployment.reasoning_parser,
        step=at,
        cause=error.cause if error else None,
        hint=error.hint if error else None,
    )


def _failure(record: InstanceRecord) -> Mapping[str, Any] | None:
    # What runs has nothing to explain, nor what was stopped as asked.
    return None if record.phase in (Phase.READY, Phase.STOPPED) else record.error


def status_of(
    deployment: Deployment,
    record: InstanceRecord,
    *,
    source: str,
    pid: int | None,
    restarts: int,
    now: float,
    download: Download | None = None,
) -> Status:
    """The deployment as ``ps`` shows it; ``now`` is wall-clock time."""
    starting = record.phase in STARTING and record.spawned_at is not None
    return Status(
        name=deployment.name,
        source=source,
        endpoint=endpoint_of(deployment, record, download),
        instance=record.instance or None,
        pid=pid,
        gpus=tuple(gpu.index for gpu in record.placement.gpus),
        engine=record.engine.name if record.engine else None,
        phase_since=record.phase_since,
        steps=record.steps,
        elapsed=now - record.spawned_at if starting and record.spawned_at is not None else None,
        ready_after=record.ready_after,
        kv_cache_tokens=record.kv_cache_tokens,
        failed_starts=record.failed_starts,
        restarts=restarts,
        retry_in=max(0.0, record.retry_at - now) if record.retry_at is not None else None,
        error=_failure(record),
        log=record.log or None,
        notes=command.notes(deployment),
        download=download,
    )
