import random

import pytest

from vllm_manager.backoff import GiveUp, RestartPolicy, decide


class Middle(random.Random):
    """No jitter: the middle of every range."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def delay(policy=None, *, failed_starts=0, restarts=(), now=10_000.0, permanent=False, jitter=None):
    return decide(
        policy or RestartPolicy(),
        failed_starts=failed_starts,
        restarts=restarts,
        now=now,
        permanent=permanent,
        jitter=jitter or Middle(),
    )


def test_failed_starts_double_the_delay_and_the_fifth_ends_it():
    assert [delay(failed_starts=n) for n in range(1, 5)] == [1, 2, 4, 8]
    assert delay(failed_starts=5) == GiveUp(reason="5 starts in a row failed")


def test_the_delay_is_capped():
    policy = RestartPolicy(max_failed_starts=50)
    assert delay(policy, failed_starts=40) == 60


def test_jitter_stays_within_a_quarter():
    for seed in range(200):
        assert 0.75 <= delay(failed_starts=1, jitter=random.Random(seed)) <= 1.25


def test_a_first_death_after_ready_restarts_after_a_second():
    assert delay(restarts=(10_000.0,)) == 1


def test_deaths_in_quick_succession_lengthen_the_delay():
    assert delay(restarts=(9_800.0, 9_900.0, 10_000.0)) == 4


def test_ten_minutes_of_calm_reset_the_delay():
    assert delay(restarts=(9_000.0, 9_399.0, 10_000.0)) == 1


def test_the_eleventh_restart_within_half_an_hour_ends_it():
    dying = [10_000.0 - 120 * n for n in range(11)]
    assert isinstance(delay(restarts=tuple(dying[:10])), float)
    assert delay(restarts=tuple(dying)) == GiveUp(reason="it died 11 times within 30 minutes")


def test_dying_every_quarter_of_an_hour_never_ends_it():
    assert delay(restarts=tuple(10_000.0 - 900 * n for n in range(100))) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"permanent": True}, "the same start would fail again"),
        ({"policy": RestartPolicy(enabled=False)}, "restart.policy is never"),
    ],
)
def test_no_restart(arguments, reason):
    assert delay(failed_starts=1, **arguments) == GiveUp(reason=reason)
