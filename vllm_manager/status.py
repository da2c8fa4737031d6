"""How a deployment looks from outside, made from its manifest and its instance's record. Pure."""

from vllm_manager import command
from vllm_manager.errors import from_payload
from vllm_manager.manifest.model import Deployment
from vllm_manager.store import InstanceRecord
from vllm_manager.types import Endpoint, Phase, Status

STARTING = frozenset({Phase.STARTING, Phase.LOADING, Phase.WARMING})


def root_url(host: str, port: int) -> str:
    """The address that this machine's programs use for an instance that listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - replaced, not bound
    return f"http://{f'[{reachable}]' if ':' in reachable else reachable}:{port}"


def endpoint_of(deployment: Deployment, record: InstanceRecord) -> Endpoint:
    """How clients reach it, without its key."""
    step = record.steps[-1] if record.steps and record.phase in STARTING else None
    error = from_payload(record.error) if record.error and record.phase is not Phase.READY else None
    return Endpoint(
        deployment=deployment.name,
        model=deployment.names[0],
        names=deployment.names,
        root_url=root_url(record.host, record.port) if record.port else None,
        phase=record.phase,
        task=record.task,
        max_model_len=record.max_model_len,
        tool_call_parser=deployment.tool_call_parser,
        reasoning_parser=deployment.reasoning_parser,
        step=" ".join(filter(None, (step.name, step.detail))) if step else None,
        cause=error.cause if error else None,
        hint=error.hint if error else None,
    )


def status_of(
    deployment: Deployment,
    record: InstanceRecord,
    *,
    source: str,
    pid: int | None,
    restarts: int,
    now: float,
) -> Status:
    """The deployment as ``ps`` shows it; ``now`` is wall-clock time."""
    starting = record.phase in STARTING and record.spawned_at is not None
    return Status(
        name=deployment.name,
        source=source,
        endpoint=endpoint_of(deployment, record),
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
        error=record.error if record.phase is not Phase.READY else None,
        log=record.log or None,
        notes=command.notes(deployment),
    )
