"""The command inspect."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import click

from vllm_manager import command, proc
from vllm_manager.cli.command_line import masked_command, masked_environment, shell_lines
from vllm_manager.cli.connect import all_statuses, control, marks, records, unknown_name
from vllm_manager.cli.options import JSON, NAME
from vllm_manager.cli.output import ago, duration, fields, gibibytes, phase_text, print_json, style
from vllm_manager.cli.waiting import startup_text
from vllm_manager.engines.introspect import engine_flags
from vllm_manager.errors import NoSupervisor, from_payload
from vllm_manager.manifest.model import Deployment
from vllm_manager.paths import engines_dir, state_dir
from vllm_manager.redact import MASK, redact, redact_variable
from vllm_manager.store import (
    DeploymentRecord,
    InstanceRecord,
    Secrets,
    logs_of,
    read_deployments,
    read_secrets,
)
from vllm_manager.types import Lease, Status

TITLE = 60
"""Characters of a process's title that are shown on a terminal; the main process has its command there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of an instance, with its title."""

    pid: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Everything about one deployment, without secrets.

    Attributes:
        desired: ``running``, ``stopped`` or ``gone``.
        manifest: As stored; values of ``env`` masked where they may be secret.
        status: As `ps` has it.
        leases: What the supervisor promised to its instance; empty where none answers.
        command: Of the running or last instance; empty where there was none.
        logs: The newest last.
    """

    name: str
    desired: str
    manifest: Mapping[str, Any]
    status: Status
    record: InstanceRecord | None
    processes: tuple[Process, ...] = ()
    leases: tuple[Lease, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    logs: tuple[str, ...] = ()


@click.command()
@NAME
@JSON
def inspect(name: str, as_json: bool) -> None:
    """Show everything about a deployment: manifest, engine, command, processes, GPUs, what went wrong last.

    Secrets are masked. It works without a supervisor too.

    \b
    Examples:
      vllm-manager inspect tiny
      vllm-manager inspect tiny --json | jq .manifest
    """
    found = _look(name)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _look(name: str) -> Inspection:
    known, statuses = read_deployments(state_dir()), {status.name: status for status in all_statuses()}
    if name not in known or name not in statuses:
        raise unknown_name(name, statuses)
    wanted, record = known[name], records().get(name)
    secrets = read_secrets(state_dir(), name) or Secrets()
    found = Inspection(
        name=name,
        desired=wanted.desired,
        manifest=_masked_manifest(wanted.manifest, secrets.values),
        status=statuses[name],
        record=record,
        logs=tuple(map(str, logs_of(state_dir(), name))),
    )
    return found if record is None or not record.instance else _with_instance(found, wanted, record, secrets)


def _masked_manifest(manifest: Mapping[str, Any], secrets: tuple[str, ...]) -> dict[str, Any]:
    # Below these, names are people's and tell what is secret; `api_key` itself says only where a key is from.
    return {
        field: _masked("", value, secrets) if field in ("args", "env") else value
        for field, value in manifest.items()
    }


def _masked(name: str, value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return redact_variable(name, value, secrets)
    if isinstance(value, Mapping):
        return {key: _masked(key, item, secrets) for key, item in value.items()}
    return [_masked(name, item, secrets) for item in value] if isinstance(value, list) else value


def _with_instance(
    found: Inspection, wanted: DeploymentRecord, record: InstanceRecord, secrets: Secrets
) -> Inspection:
    if record.engine is None:
        return found
    deployment = Deployment.from_json(wanted.manifest)
    environment = command.environment(
        deployment,
        engine=record.engine,
        placement=record.placement,
        api_key=None if secrets.api_key is None else MASK,
        base=secrets.environment,
        tmp=record.tmp,
        title=record.title,
    )
    flags = engine_flags(record.engine, engines_dir(), only_cached=True)
    argv = (record.engine.executable, *command.arguments(deployment, record.placement, record.port, flags))
    return replace(
        found,
        processes=tuple(
            Process(pid=each.pid, title=redact(proc.title(each.pid), secrets.values))
            for each in proc.members(marks(record))
        ),
        leases=_leases(found.name),
        command=masked_command(argv, secrets.values),
        environment=masked_environment(environment, secrets.values),
    )


def _leases(name: str) -> tuple[Lease, ...]:
    try:
        return tuple(lease for lease in control().gpus()[1] if lease.deployment == name)
    except NoSupervisor:
        return ()


# --- for people --------------------------------------------------------------------------------------


def _print(found: Inspection) -> None:
    status = found.status
    click.echo(f"{style(found.name, bold=True)}: {phase_text(status)}")
    fields([*_endpoint(found), *_run(found), *_instance(found)])
    if found.processes:
        click.echo("  processes")
        for process in found.processes:
            title = process.title
            if len(title) > TITLE and sys.stdout.isatty():
                title = f"{title[:TITLE]} …"
            click.echo(f"    {process.pid}  {title}")
    click.echo("  manifest")
    for line in _manifest(found):
        click.echo(f"    {line}")
    if found.command:
        click.echo("  command")
        for line in shell_lines(found.command, found.environment):
            click.echo(f"    {line}")


def _endpoint(found: Inspection) -> Iterator[tuple[str, str]]:
    endpoint = found.status.endpoint
    yield "address", endpoint.base_url or ""
    yield "model names", ", ".join(endpoint.names)
    yield "task", endpoint.task or ""
    yield "context", f"{endpoint.max_model_len} tokens" if endpoint.max_model_len else ""
    tokens = found.status.kv_cache_tokens
    yield "kv cache", f"{tokens} tokens" if tokens else ""
    key = found.manifest.get("api_key")
    yield "key", f"`vllm-manager env {found.name}` prints it" if key is not None else "none"


def _run(found: Inspection) -> Iterator[tuple[str, str]]:
    status = found.status
    yield "wanted", found.desired
    if status.phase_since:
        at = datetime.fromtimestamp(status.phase_since).astimezone()
        yield "since", f"{at:%Y-%m-%d %H:%M:%S} ({ago(status.phase_since)} ago)"
    yield "ready after", startup_text(status)
    yield "restarts", f"{status.restarts}, failed starts in a row: {status.failed_starts}"
    if status.retry_in is not None:
        yield "next start", f"in {duration(status.retry_in)}"
    if status.error:
        error = from_payload(status.error)
        yield "error", error.cause
        yield "hint", error.hint or ""


def _instance(found: Inspection) -> Iterator[tuple[str, str]]:
    status, record = found.status, found.record
    yield "manifest of", status.source
    yield "instance", status.instance or ""
    if record is not None and record.engine is not None:
        version = record.engine.version or "(version unknown)"
        yield "engine", f"vLLM {version}, {record.engine.executable}"
        yield "port", str(record.port or "")
    gpus = record.placement.gpus if record is not None else ()
    leased = {lease.gpu_uuid: lease for lease in found.leases}
    for gpu in gpus:
        used = leased[gpu.uuid].used if gpu.uuid in leased else None
        text = f"{gpu.index}: {gibibytes(gpu.memory)} of {gibibytes(gpu.memory_total)} GiB leased"
        yield "gpu", text if used is None else f"{text}, {gibibytes(used)} GiB used"
    if record is not None and record.instance and not gpus:
        yield "gpu", "none, runs on the CPU"
    for path in found.logs:
        yield "log", path


def _manifest(found: Inspection) -> list[str]:
    """What differs from a manifest that says nothing but what it must."""
    must = {key: found.manifest[key] for key in ("name", "model")}
    told = must | _told(found.manifest, Deployment.from_json(must).to_json())
    return json.dumps(told, indent=2, ensure_ascii=False).splitlines()


def _told(values: Mapping[str, Any], bare: Mapping[str, Any]) -> dict[str, Any]:
    told = {}
    for key, value in values.items():
        usual = bare.get(key)
        if value != usual:
            both = isinstance(value, Mapping) and isinstance(usual, Mapping)
            told[key] = _told(value, usual or {}) if both else value
    return told
