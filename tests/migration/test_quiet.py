"""Events of a standing program are told late, in their order, and never too late."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from migration.quiet import Quiet
from migration.report import Event, Phase
from migration.transaction import STEPS


def event(step: str, phase: Phase) -> Event:
    return Event("m1", step, phase)


def test_between_hold_and_release_nothing_is_told() -> None:
    """Then all is, in its order."""
    told: list[Event] = []
    quiet = Quiet(told.append, patience=60)
    events = [event(step, phase) for step in STEPS for phase in (Phase.STARTED, Phase.ENDED)]
    for one in events:
        quiet(one)
        before = events[: events.index(one) + 1]
        begun, ended = event("hold", Phase.STARTED) in before, event("release", Phase.ENDED) in before
        if not begun or ended:
            assert told == before
        else:
            assert told == before[: before.index(event("hold", Phase.STARTED)) + 1]
    assert told == events


def test_a_failure_is_told_at_once() -> None:
    """With all that came before it."""
    told: list[Event] = []
    quiet = Quiet(told.append, patience=60)
    events = [event("hold", Phase.STARTED), event("hold", Phase.ENDED), event("checkpoint", Phase.FAILED)]
    for one in events:
        quiet(one)
    assert told == events


def test_patience_ends() -> None:
    """A step that takes long is seen to take long."""
    told: list[Event] = []
    waited = threading.Event()

    def listen(one: Event) -> None:
        told.append(one)
        if one.step == "checkpoint":
            waited.set()

    quiet = Quiet(listen, patience=0.05)
    events = [event("hold", Phase.STARTED), event("hold", Phase.ENDED), event("checkpoint", Phase.STARTED)]
    for one in events:
        quiet(one)
    assert waited.wait(10)
    assert told == events
    quiet(after := event("checkpoint", Phase.ENDED))
    assert told[-1] is after


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(Phase))))
def test_whatever_comes_is_told_once_and_in_order(pairs: list[tuple[str, Phase]]) -> None:
    """At the latest with the end."""
    told: list[Event] = []
    quiet = Quiet(told.append, patience=60)
    events = [event(step, phase) for step, phase in pairs]
    for one in events:
        quiet(one)
    quiet.flush()
    assert told == events
