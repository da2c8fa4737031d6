"""The life of an instance as a table: (phase, event) gives the next phase and what to do.

Pure. The supervisor executes the effects and feeds back what came of them as events::

    pending ──fetched, placed──▶ starting ──weights──▶ loading ──answers──▶ warming ──warmed──▶ READY
       ▲                            └───────── failed ────┴────────┬──────────┘                 │ died, failed
       │                                                           ▼                            │
       └──due── backoff ◀──retry── sweeping ◀──────────────────────┴────────────────────────────┘
                                      └──give up──▶ failed

    any of them ──stop──▶ stopping ──swept──▶ stopped ──start──▶ pending
"""

from dataclasses import dataclass
from enum import StrEnum

from vllm_manager.types import Phase


class Event(StrEnum):
    """What can happen to an instance."""

    START = "start"  # somebody wants it running
    STOP = "stop"  # somebody wants it stopped
    FETCHED = "fetched"  # its weights are on the disk
    PLACED = "placed"  # it has its GPUs, its port, its turn
    FAILED = "failed"  # fetching, placing, starting or warming failed, or it hangs; the supervisor knows why
    WEIGHTS = "weights"  # the engine began to load weights
    ANSWERS = "answers"  # HTTP lists every served name, on a socket of ours
    WARMED = "warmed"  # the 1-token request produced a token
    DIED = "died"  # one of its processes ended, unasked
    SWEPT = "swept"  # nothing of it is left
    RETRY = "retry"  # swept, and to be started again
    AGAIN = "again"  # swept, and wanted again meanwhile: started without a delay
    GIVE_UP = "give-up"  # not to be started again; or a process that can't be ended
    DUE = "due"  # the backoff is over


class Effect(StrEnum):
    """What the supervisor does on entering the new phase, one thing at a time."""

    FETCH = "fetch"  # get the weights onto the disk; ends in FETCHED or FAILED
    PLACE = "place"  # get a turn, GPUs and a port; ends in PLACED or FAILED
    SPAWN = "spawn"  # start the process and watch it come up; ends in WEIGHTS, ANSWERS, FAILED or DIED
    WARM_UP = "warm-up"  # ends in WARMED or FAILED
    WATCH = "watch"  # see that it goes on computing; ends in FAILED where it doesn't
    SWEEP = "sweep"  # end what is left and free what it held; ends in RETRY, AGAIN or GIVE_UP
    END = "end"  # drain, terminate, sweep, free; ends in SWEPT or GIVE_UP
    WAIT = "wait"  # sit the backoff out; ends in DUE
    REST = "rest"  # nothing runs, and nothing is to be done


@dataclass(frozen=True, slots=True)
class Transition:
    """The new phase, and the effect that replaces whatever was being done; None lets it go on."""

    phase: Phase
    effect: Effect | None


_P, _E = Phase, Event

TABLE: dict[tuple[Phase, Event], Transition] = {
    (_P.PENDING, _E.FETCHED): Transition(_P.PENDING, Effect.PLACE),
    (_P.PENDING, _E.PLACED): Transition(_P.STARTING, Effect.SPAWN),
    (_P.PENDING, _E.FAILED): Transition(_P.SWEEPING, Effect.SWEEP),
    (_P.PENDING, _E.STOP): Transition(_P.STOPPED, Effect.REST),
    (_P.STARTING, _E.WEIGHTS): Transition(_P.LOADING, None),
    (_P.STARTING, _E.ANSWERS): Transition(_P.WARMING, Effect.WARM_UP),
    (_P.LOADING, _E.ANSWERS): Transition(_P.WARMING, Effect.WARM_UP),
    (_P.WARMING, _E.WARMED): Transition(_P.READY, Effect.WATCH),
    **{
        (phase, event): Transition(_P.SWEEPING, Effect.SWEEP)
        for phase in (_P.STARTING, _P.LOADING, _P.WARMING)
        for event in (_E.FAILED, _E.DIED)
    },
    (_P.READY, _E.DIED): Transition(_P.SWEEPING, Effect.SWEEP),
    (_P.READY, _E.FAILED): Transition(_P.SWEEPING, Effect.SWEEP),
    **{
        (phase, _E.STOP): Transition(_P.STOPPING, Effect.END)
        for phase in (_P.STARTING, _P.LOADING, _P.WARMING, _P.READY, _P.SWEEPING)
    },
    (_P.STOPPING, _E.SWEPT): Transition(_P.STOPPED, Effect.REST),
    (_P.STOPPING, _E.GIVE_UP): Transition(_P.FAILED, Effect.REST),
    (_P.SWEEPING, _E.RETRY): Transition(_P.BACKOFF, Effect.WAIT),
    (_P.SWEEPING, _E.AGAIN): Transition(_P.PENDING, Effect.FETCH),
    (_P.SWEEPING, _E.GIVE_UP): Transition(_P.FAILED, Effect.REST),
    (_P.BACKOFF, _E.DUE): Transition(_P.PENDING, Effect.FETCH),
    (_P.BACKOFF, _E.START): Transition(_P.PENDING, Effect.FETCH),
    (_P.BACKOFF, _E.STOP): Transition(_P.STOPPED, Effect.REST),
    (_P.FAILED, _E.START): Transition(_P.PENDING, Effect.FETCH),
    (_P.FAILED, _E.STOP): Transition(_P.STOPPED, Effect.REST),
    (_P.STOPPED, _E.START): Transition(_P.PENDING, Effect.FETCH),
}
"""Every pair that isn't here changes nothing: the event came late, or asks for what is so already."""


def step(phase: Phase, event: Event) -> Transition | None:
    """What an event means in a phase; None when it means nothing there."""
    return TABLE.get((phase, event))
