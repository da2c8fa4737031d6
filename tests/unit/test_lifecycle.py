import itertools

import pytest

from vllm_manager.lifecycle import TABLE, Effect, Event, step
from vllm_manager.types import Phase

# Every (phase, event) that means something, written out once more, by hand: the table's whole meaning.
EXPECTED = {
    Phase.PENDING: {
        Event.FETCHED: (Phase.PENDING, Effect.PLACE),
        Event.PLACED: (Phase.STARTING, Effect.SPAWN),
        Event.FAILED: (Phase.SWEEPING, Effect.SWEEP),
        Event.STOP: (Phase.STOPPED, Effect.REST),
    },
    Phase.STARTING: {
        Event.WEIGHTS: (Phase.LOADING, None),
        Event.ANSWERS: (Phase.WARMING, Effect.WARM_UP),
        Event.FAILED: (Phase.SWEEPING, Effect.SWEEP),
        Event.DIED: (Phase.SWEEPING, Effect.SWEEP),
        Event.STOP: (Phase.STOPPING, Effect.END),
    },
    Phase.LOADING: {
        Event.ANSWERS: (Phase.WARMING, Effect.WARM_UP),
        Event.FAILED: (Phase.SWEEPING, Effect.SWEEP),
        Event.DIED: (Phase.SWEEPING, Effect.SWEEP),
        Event.STOP: (Phase.STOPPING, Effect.END),
    },
    Phase.WARMING: {
        Event.WARMED: (Phase.READY, Effect.WATCH),
        Event.FAILED: (Phase.SWEEPING, Effect.SWEEP),
        Event.DIED: (Phase.SWEEPING, Effect.SWEEP),
        Event.STOP: (Phase.STOPPING, Effect.END),
    },
    Phase.READY: {
        Event.DIED: (Phase.SWEEPING, Effect.SWEEP),
        Event.FAILED: (Phase.SWEEPING, Effect.SWEEP),
        Event.STOP: (Phase.STOPPING, Effect.END),
    },
    Phase.STOPPING: {
        Event.SWEPT: (Phase.STOPPED, Effect.REST),
        Event.GIVE_UP: (Phase.FAILED, Effect.REST),
    },
    Phase.SWEEPING: {
        Event.RETRY: (Phase.BACKOFF, Effect.WAIT),
        Event.AGAIN: (Phase.PENDING, Effect.FETCH),
        Event.GIVE_UP: (Phase.FAILED, Effect.REST),
        Event.STOP: (Phase.STOPPING, Effect.END),
    },
    Phase.BACKOFF: {
        Event.DUE: (Phase.PENDING, Effect.FETCH),
        Event.START: (Phase.PENDING, Effect.FETCH),
        Event.STOP: (Phase.STOPPED, Effect.REST),
    },
    Phase.FAILED: {
        Event.START: (Phase.PENDING, Effect.FETCH),
        Event.STOP: (Phase.STOPPED, Effect.REST),
    },
    Phase.STOPPED: {Event.START: (Phase.PENDING, Effect.FETCH)},
}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product(Phase, Event)))
def test_every_pair_means_what_is_written_here_and_nothing_else(phase: Phase, event: Event):
    transition = step(phase, event)
    found = (transition.phase, transition.effect) if transition else None
    assert found == EXPECTED[phase].get(event)


def test_only_a_warm_up_leads_to_ready():
    leading = {(phase, event) for (phase, event), to in TABLE.items() if to.phase is Phase.READY}
    assert leading == {(Phase.WARMING, Event.WARMED)}


def test_processes_are_swept_before_a_live_phase_ends():
    """No way leads from a phase with processes to one without, but through the effects that sweep."""
    for (phase, _), to in TABLE.items():
        if phase.live and not to.phase.live:
            assert phase in (Phase.SWEEPING, Phase.STOPPING)


def test_every_phase_can_be_left_and_stop_leads_to_an_end():
    for phase in Phase:
        assert any(at is phase for at, _ in TABLE), phase
        if phase in (Phase.STOPPED, Phase.STOPPING):
            continue
        to = step(phase, Event.STOP)
        assert to is not None
        assert to.phase in (Phase.STOPPING, Phase.STOPPED)
