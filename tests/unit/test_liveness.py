import asyncio

import pytest

from vllm_manager import liveness
from vllm_manager.errors import InstanceHung
from vllm_manager.manifest.model import LivenessSpec
from vllm_manager.probes import Load
from vllm_manager.types import Task

SPEC = LivenessSpec()


class Clock:
    """Time that passes by sleeping; ends the watch after a while."""

    def __init__(self, until: float) -> None:
        self.now, self.until = 0.0, until

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.until:
            raise asyncio.CancelledError


class Probe:
    """An instance: its counter as a function of time, and what its canaries come to."""

    def __init__(self, clock: Clock, progress, canaries=lambda: False, *, asleep=False, takes=None) -> None:
        self.clock, self.progress, self.canaries, self.asleep = clock, progress, canaries, asleep
        self.takes = takes
        self.asked: list[float] = []

    async def load(self, timeout: float) -> Load | None:
        progress = self.progress(self.clock.now)
        self.clock.now += timeout if progress is None else 0
        return None if progress is None else Load(requests=0, progress=progress, asleep=self.asleep)

    async def canary(self, model: str, task: Task, timeout: float) -> bool:
        assert (model, task) == ("tiny", Task.CHAT)
        self.asked.append(self.clock.now)
        alive = self.canaries()
        self.clock.now += (0 if alive else timeout) if self.takes is None else self.takes
        return alive


def watched(probe: Probe, spec: LivenessSpec = SPEC) -> InstanceHung | None:
    """What the watch ends in; None where it was content until its time was over."""
    try:
        asyncio.run(liveness.watch(probe, "tiny", Task.CHAT, lambda: spec, probe.clock))
    except InstanceHung as error:
        return error
    except asyncio.CancelledError:
        return None
    raise AssertionError("it watches for ever")


def test_a_hung_instance_is_found_within_130_seconds_though_its_gauges_show_nothing():
    probe = Probe(clock := Clock(1000), lambda now: 7.0)
    error = watched(probe)
    assert error is not None
    assert 60 + 2 * 30 <= clock.now <= 130
    assert error.silent == clock.now
    assert "two 1-token requests failed" in error.cause
    assert "0 requests running" in error.cause


def test_an_instance_that_hangs_later_is_found_from_its_last_progress_on():
    clock = Clock(1000)
    assert watched(Probe(clock, lambda now: min(now, 300.0))) is not None
    assert 300 + 120 <= clock.now <= 300 + 130


def test_a_busy_instance_is_never_asked():
    probe = Probe(Clock(1000), lambda now: now)
    assert watched(probe) is None
    assert probe.asked == []


def test_an_idle_instance_is_asked_once_a_minute_and_left_alone():
    probe = Probe(Clock(1000), lambda now: 7.0, lambda: True)
    assert watched(probe) is None
    assert 14 <= len(probe.asked) <= 16


def test_one_slow_answer_is_no_reason():
    answers = iter([False, True] * 100)
    assert watched(Probe(Clock(1000), lambda now: 7.0, lambda: next(answers))) is None


def test_counters_that_move_while_the_request_waits_are_a_sign_of_life():
    # Slow: nothing for 70 s at a time.
    assert watched(Probe(Clock(3000), lambda now: now // 70)) is None


def test_an_instance_that_sleeps_is_left_alone():
    probe = Probe(Clock(1000), lambda now: 7.0, asleep=True)
    assert watched(probe) is None
    assert probe.asked == []


def test_without_metrics_the_requests_alone_decide():
    assert watched(Probe(Clock(1000), lambda now: None, lambda: True)) is None
    error = watched(Probe(Clock(1000), lambda now: None))
    assert error is not None
    assert "metrics don't answer" in error.cause


def test_a_server_that_answers_nothing_at_all_is_found_within_130_seconds():
    clock = Clock(1000)
    assert watched(Probe(clock, lambda now: None if now > 100 else now)) is not None
    assert 220 <= clock.now <= 230


def test_one_look_without_an_answer_forgets_nothing():
    # It computes, and every other look fails.
    probe = Probe(Clock(1000), lambda now: None if int(now) % 2 else now, lambda: False)
    assert watched(probe) is None


def test_switched_off_nothing_is_asked():
    probe = Probe(Clock(1000), lambda now: 7.0)
    assert watched(probe, LivenessSpec(enabled=False)) is None
    assert probe.asked == []


@pytest.mark.parametrize(("after", "timeout"), [(6.0, 1.0), (600.0, 60.0)])
def test_the_times_are_the_manifests(after: float, timeout: float):
    clock = Clock(5000)
    assert watched(Probe(clock, lambda now: 7.0), LivenessSpec(after=after, timeout=timeout)) is not None
    assert after + 2 * timeout <= clock.now <= after * (1 + 2 / liveness.LOOKS) + 2 * timeout
