import asyncio

import pytest

from vllm_manager import farewell
from vllm_manager.launchers.base import Death
from vllm_manager.manifest.model import StopSpec
from vllm_manager.probes import Load

DRAIN = 30.0


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


class Probe:
    """An instance's gauges: requests under way at each look."""

    def __init__(self, *running: float | None) -> None:
        self.left = list(running)

    async def __aenter__(self) -> "Probe":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def load(self) -> Load | None:
        requests = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return None if requests is None else Load(requests=requests, progress=0)


class Running:
    """An instance that dies when it was asked often enough."""

    def __init__(self, *, ends_after: int | None, engine_dies_after: int | None = None) -> None:
        self.asked = 0
        self.ends_after, self.engine_dies_after = ends_after, engine_dies_after
        self.changed = asyncio.Event()

    def terminate(self) -> None:
        self.asked += 1
        self.changed.set()

    async def _until(self, asked: int | None) -> None:
        while asked is None or self.asked < asked:
            self.changed.clear()
            await self.changed.wait()

    async def ended(self) -> None:
        await self._until(self.ends_after)

    async def died(self) -> Death:
        await self._until(self.engine_dies_after or self.ends_after)
        return Death(who="vllm", pid=1)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENGINE_GONE", "SECOND_SIGTERM"):
        monkeypatch.setattr(farewell, name, 0.05)
    monkeypatch.setattr(farewell, "START_UP_GRACE", 0.1)


def end(
    running_arguments: dict,
    *gauges: float | None,
    was_ready: bool = True,
    hurry: bool = False,
    drain: float = DRAIN,
    grace: float = 0.05,
) -> tuple[Running, Clock]:
    async def scene() -> tuple[Running, Clock]:
        running, clock, hurried = Running(**running_arguments), Clock(), asyncio.Event()
        if hurry:
            hurried.set()
        spec = StopSpec(drain=drain, grace=grace)
        await farewell.end(running, Probe(*gauges), spec, was_ready, clock, hurried)
        return running, clock

    return asyncio.run(asyncio.wait_for(scene(), 10))


def test_an_idle_instance_is_asked_at_once_and_once():
    running, clock = end({"ends_after": 1}, 0.0)
    assert (running.asked, clock.now) == (1, 0.0)


def test_running_requests_are_waited_for():
    running, clock = end({"ends_after": 1}, 2.0, 1.0, 1.0, 0.0)
    assert running.asked == 1
    assert clock.now == pytest.approx(3 * farewell.DRAIN_POLL)


def test_the_drain_ends_when_its_time_is_over():
    _, clock = end({"ends_after": 1}, 1.0)
    assert DRAIN <= clock.now <= DRAIN + 2 * farewell.DRAIN_POLL


def test_without_a_drain_it_is_asked_at_once():
    running, clock = end({"ends_after": 1}, 5.0, drain=0.0)
    assert (running.asked, clock.now) == (1, 0.0)


def test_an_instance_whose_gauges_cannot_be_read_is_not_waited_for():
    assert end({"ends_after": 1}, None)[1].now == 0.0


def test_an_instance_that_is_starting_is_asked_twice_since_vllm_swallows_the_first():
    assert end({"ends_after": 2}, None, was_ready=False)[0].asked == 2


def test_a_deaf_instance_is_given_up_after_the_grace():
    assert end({"ends_after": None}, 0.0)[0].asked == 1


def test_an_api_server_that_stays_behind_its_dead_engine_is_not_waited_for():
    """With a stream under way, vLLM's API server can wait for that stream's client for ever."""
    assert end({"ends_after": None, "engine_dies_after": 1}, 0.0, grace=3600.0)[0].asked == 1


def test_in_a_hurry_nothing_is_waited_for():
    _, clock = end({"ends_after": None}, 1.0, hurry=True, grace=3600.0)
    assert clock.now < DRAIN
