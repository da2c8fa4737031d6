"""``CUDA_VISIBLE_DEVICES`` of the supervisor's own environment limits what it places on (Slurm sets it)."""

from collections.abc import Sequence
from dataclasses import replace

from vllm_manager.types import Gpu


def mark_hidden(gpus: Sequence[Gpu], setting: str | None) -> tuple[Gpu, ...]:
    """The same GPUs, with a ``problem`` on those that the variable's value leaves out.

    As the CUDA Programming Guide has it, the value lists indices or beginnings of UUIDs, and ends at the
    first entry that names no GPU; None means that the variable isn't set. An index is taken as NVML's. A MIG
    UUID names no whole GPU, so it ends the list as well.
    """
    if setting is None:
        return tuple(gpus)
    visible: set[int] = set()
    for entry in setting.split(","):
        named = _named(gpus, entry.strip())
        if named is None:
            break
        visible.add(named.index)
    note = f"hidden by CUDA_VISIBLE_DEVICES={setting}"
    return tuple(gpu if gpu.index in visible or gpu.problem else replace(gpu, problem=note) for gpu in gpus)


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.isdecimal():
        matches = [gpu for gpu in gpus if gpu.index == int(entry)]
    elif entry.startswith("GPU-"):
        matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    else:
        matches = []
    return matches[0] if len(matches) == 1 else None
