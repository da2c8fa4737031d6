"""Whether a ready instance goes on computing: progress counts, not politeness.

A hung vLLM answers `/health` and `/v1/models` with 200, and its gauges may show nothing running (measured);
a busy healthy one can be slow to answer anything. So an instance is hung only when its counters stood still,
then two 1-token requests in a row got no sign of life, and the counters still stand where they stood.
"""

from collections.abc import Callable

from vllm_manager.clock import Clock
from vllm_manager.errors import InstanceHung
from vllm_manager.manifest.model import LivenessSpec
from vllm_manager.probes import HttpProbe, Load
from vllm_manager.types import Task

LOOKS = 12
"""Looks at the counters within ``liveness.after``: one every 5 s with its default of 60 s."""

SHORTEST_LOOK = 0.5
"""Seconds that a look may take, at least; else half the time between two looks."""


async def watch(
    probe: HttpProbe, model: str, task: Task, spec: Callable[[], LivenessSpec], clock: Clock
) -> None:
    """Look on for as long as the instance computes, or could.

    Args:
        probe: Opened.
        model: The served name to ask for.
        task: What it is for.
        spec: When to ask, and how long to wait; may change meanwhile.
        clock: Time.

    Raises:
        InstanceHung: It doesn't; says which signals agreed.
    """

    async def look() -> Load | None:
        # Short: where nothing answers any more, looking must not put the verdict off.
        return await probe.load(max(SHORTEST_LOOK, spec().after / LOOKS / 2))

    known = load = await look()
    moved_at = clock.monotonic()
    while True:
        await clock.sleep(spec().after / LOOKS)
        known, load = load or known, await look()
        if _moved(known, load) or (load is not None and load.asleep) or not spec().enabled:
            moved_at = clock.monotonic()
        elif clock.monotonic() - moved_at >= spec().after:
            for _ in range(2):
                alive = await probe.canary(model, task, spec().timeout)
                known, load = load or known, await look()
                if alive or _moved(known, load):
                    break
            else:
                raise _hung(clock.monotonic() - moved_at, load)
            moved_at = clock.monotonic()


def _hung(silent: float, load: Load | None) -> InstanceHung:
    shown = (
        "its metrics don't answer"
        if load is None
        else f"its counters stand still ({load.requests:g} requests running or queued, it says)"
    )
    return InstanceHung(
        cause=f"it hung: nothing computed for {silent:.0f} s, two 1-token requests failed, and {shown}",
        hint="its log may say why; `nvidia-smi` and `dmesg` show GPU faults",
        silent=silent,
    )


def _moved(before: Load | None, after: Load | None) -> bool:
    return before is not None and after is not None and before.progress != after.progress
