"""When to start again, and when to give up. Pure: times come in, a decision goes out."""

import random
from dataclasses import dataclass
from typing import Self

from vllm_manager.manifest.model import RestartSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """The numbers of a manifest's ``restart``; seconds.

    Attributes:
        enabled: False never restarts.
        initial: The first delay; each further failure in a row doubles it.
        maximum: The longest delay.
        max_failed_starts: Starts that fail in a row before giving up.
        max_restarts: Restarts of a model that had been ready, within ``window``, before giving up.
        window: Seconds.
    """

    enabled: bool = True
    initial: float = 1.0
    maximum: float = 60.0
    max_failed_starts: int = 5
    max_restarts: int = 10
    window: float = 1800.0

    @classmethod
    def of(cls, spec: RestartSpec) -> Self:
        """The policy that a manifest asks for."""
        return cls(
            enabled=spec.policy != "never",
            initial=spec.backoff_initial,
            maximum=spec.backoff_max,
            max_failed_starts=spec.max_failed_starts,
            max_restarts=spec.max_restarts,
            window=spec.within,
        )


RESET_AFTER = 600.0
"""Seconds of being ready after which earlier failures no longer lengthen the delay."""

JITTER = 0.25
"""A delay is up to this share shorter or longer, so that many crashed at once don't start at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """No further start, and why, for people."""

    reason: str


def decide(
    policy: RestartPolicy,
    *,
    failed_starts: int,
    restarts: tuple[float, ...],
    now: float,
    permanent: bool,
    jitter: random.Random,
) -> float | GiveUp:
    """Seconds until the next start, or why there is none.

    Args:
        policy: The manifest's numbers.
        failed_starts: Starts that failed in a row, this one included; 0 when it had been ready.
        restarts: Times of restarts after READY, this one included, on the clock of ``now``.
        now: Seconds.
        permanent: The cause would fail every start in the same way.
        jitter: Source of randomness.
    """
    if permanent:
        return GiveUp(reason="the same start would fail again")
    if not policy.enabled:
        return GiveUp(reason="restart.policy is never")
    if failed_starts >= policy.max_failed_starts:
        return GiveUp(reason=f"{failed_starts} starts in a row failed")
    recent = sum(1 for at in restarts if now - at <= policy.window)
    if recent > policy.max_restarts:
        minutes = policy.window / 60
        return GiveUp(reason=f"it died {recent} times within {minutes:g} minutes")
    in_a_row = max(failed_starts, _since_calm(restarts, now), 1)
    delay = min(policy.initial * 2.0 ** (in_a_row - 1), policy.maximum)
    return delay * jitter.uniform(1 - JITTER, 1 + JITTER)


def _since_calm(restarts: tuple[float, ...], now: float) -> int:
    """How many of the latest restarts followed each other within RESET_AFTER."""
    count, later = 0, now
    for at in sorted(restarts, reverse=True):
        if later - at > RESET_AFTER:
            break
        count, later = count + 1, at
    return count
