"""What an install reports while it runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallProgress:
    """Where an install is; reported at each change, and every second in between.

    Attributes:
        step: From 1; 0 while waiting for another install.
        total: How many steps there are.
        what: The step, such as ``torch 2.13.0+cpu``.
        detail: What is happening in it, or None.
        elapsed: Seconds since the install began.
    """

    step: int
    total: int
    what: str
    detail: str | None
    elapsed: float


class Progress:
    """Turns what happens into reports."""

    def __init__(self, report: Callable[[InstallProgress], None], *, total: int) -> None:
        self._report = report
        self._total = total
        self._began = time.monotonic()
        self._step = 0
        self._what = ""
        self._detail: str | None = None

    def waiting(self, what: str) -> None:
        """Report that another install is waited for."""
        self._what = what
        self._send(self._detail)

    def begin(self, what: str, detail: str | None = None) -> None:
        """Report the next step."""
        self._step += 1
        self._what = what
        self.say(detail)

    def say(self, detail: str | None) -> None:
        """Report what is happening in the step."""
        self._detail = detail
        self._send(detail)

    def tick(self, fetched: int) -> None:
        """Report that it goes on; ``fetched`` is how many bytes downloads have brought so far."""
        downloading = self._detail is not None and self._detail.startswith("Downloading")
        self._send(f"{self._detail}, {fetched / 1e6:.0f} MB so far" if downloading else self._detail)

    def _send(self, detail: str | None) -> None:
        self._report(
            InstallProgress(
                step=self._step,
                total=self._total,
                what=self._what,
                detail=detail,
                elapsed=time.monotonic() - self._began,
            )
        )
