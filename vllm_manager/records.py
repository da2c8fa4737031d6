"""Records of instances that are about to begin."""

import os
from dataclasses import replace

from vllm_manager.launchers.process import title_prefix
from vllm_manager.manifest.model import Deployment
from vllm_manager.paths import fallback_dir
from vllm_manager.store import InstanceRecord, Store
from vllm_manager.types import Phase

TMP_LIMIT = 65
"""Bytes; vLLM appends a slash and a UUID for its unix sockets, whose paths end at 107 bytes."""


def blank_record(deployment: Deployment) -> InstanceRecord:
    """The record of a deployment that has no instance."""
    return InstanceRecord(
        instance="",
        deployment=deployment.name,
        fingerprint=deployment.fingerprint,
        phase=Phase.STOPPED,
        host=deployment.host,
        port=deployment.port or 0,
        cwd="",
        tmp="",
        log="",
        title="",
    )


def new_record(deployment: Deployment, store: Store, identifier: str) -> InstanceRecord:
    """The record of a new instance, with the marks by which its processes will be found."""
    instance = f"{deployment.name}-{identifier}"
    cwd = str(store.root / "run" / identifier)
    return replace(
        blank_record(deployment),
        instance=instance,
        cwd=cwd,
        # The state directory outlives a logout, unlike XDG_RUNTIME_DIR; /tmp only where it is too long.
        tmp=cwd if len(os.fsencode(cwd)) <= TMP_LIMIT else str(fallback_dir() / identifier),
        log=str(store.log_path(instance)),
        title=title_prefix(instance),
    )
