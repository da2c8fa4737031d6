"""Time, injectable: decisions use the monotonic clock, people read the wall clock."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the supervisor needs of time; tests substitute one that they move by hand."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never jumps."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch, for display and records only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Suspend the calling task for that many seconds."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never jumps."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the Unix epoch, for display and records only."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Suspend the calling task for that many seconds."""
        await asyncio.sleep(seconds)
