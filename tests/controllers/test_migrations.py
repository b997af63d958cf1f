"""The queue of migrations: order, number of workers, one at a time for a program, cancellation, events."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.errors import Conflict, InvalidRequest
from controllers.migrations import Migration, MigrationService, OnEvent
from migration.cancellation import Cancellation
from migration.errors import Cancelled
from migration.report import Outcome, Report
from migration.transfer.modes import Wish
from tests.controllers.conftest import eventually
from tests.controllers.mover import Mover

HOSTS = {"h2": None, "h3": None}


class Recorder:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, data))

    def of(self, kind: str) -> list[str]:
        """Return the ids of all events of a kind."""
        return [data["id"] for name, data in self.events if name == kind]


def service(mover: Any, workers: int = 5, publish: Any = lambda kind, data: None) -> MigrationService:
    """Make a queue for the apps a to z, all on h2."""
    apps = {letter: {"host": "h2"} for letter in "abcdefghijklmnopqrstuvwxyz"}
    return MigrationService(mover, publish, lambda: apps, lambda: HOSTS, workers=workers)


def test_as_many_run_as_there_are_workers() -> None:
    """The others wait in the order in which they were asked for."""
    mover, heard = Mover(), Recorder()
    queue = service(mover, 2, heard)
    asked = [queue.submit(app, "h3") for app in "abcd"]
    eventually(lambda: sorted(mover.moving) == ["a", "b"], "starting two")
    assert [m.state for m in asked] == ["running", "running", "queued", "queued"]
    assert queue.counts() == (2, 2)
    since = time.monotonic()
    time.sleep(0.02)
    waited_ms = (time.monotonic() - since) * 1000
    mover.go.set()
    for migration in asked:
        assert queue.wait(migration.id, 5).state == "completed"
    assert sorted(heard.of("migration_started")[2:]) == ["m3", "m4"]
    assert all(m.queued_ms is not None and m.total_ms is not None for m in asked)
    assert all((m.queued_ms or 0) >= waited_ms for m in asked[2:])


def test_a_busy_program_keeps_no_worker_from_others() -> None:
    """A second migration of the same program waits; one of another, asked for later, goes first."""
    mover, heard = Mover(), Recorder()
    queue = service(mover, 2, heard)
    asked = [queue.submit(app, "h3") for app in "aaab"]
    eventually(lambda: sorted(mover.moving) == ["a", "b"], "starting")
    assert [m.state for m in asked] == ["running", "queued", "queued", "running"]
    mover.go.set()
    for migration in asked:
        queue.wait(migration.id, 5)
    assert [id for id in heard.of("migration_ended") if id != "m4"] == ["m1", "m2", "m3"]


class Crowd:
    """A mover that notes which programs are on the move together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: list[str] = []
        self.most = 0
        self.order: list[str] = []

    def __call__(
        self,
        app: str,
        destination: str,
        on_event: OnEvent,
        *,
        migration_id: str,
        cancellation: Cancellation,
        wish: Wish,
    ) -> Report:
        with self.lock:
            assert app not in self.now
            self.now.append(app)
            self.most = max(self.most, len(self.now))
            self.order.append(migration_id)
        time.sleep(0.001)
        with self.lock:
            self.now.remove(app)
        return Report(migration_id, app, "h2", destination, "process", Outcome.COMPLETED)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=14), st.integers(1, 4))
def test_any_crowd_gets_through(apps: list[str], workers: int) -> None:
    """Never two of one program at a time, never more than the workers, each program's in order, all of them."""
    mover = Crowd()
    queue = service(mover, workers)
    asked = [queue.submit(app, "h3") for app in apps]
    assert [queue.wait(m.id, 10).state for m in asked] == ["completed"] * len(apps), (
        "see the mover's assertion"
    )
    assert mover.most <= workers
    for app in set(apps):
        mine = [m.id for m in asked if m.app == app]
        assert [id for id in mover.order if id in mine] == mine
    if workers == 1:
        assert mover.order == [m.id for m in asked]
    assert queue.counts() == (0, 0)


def test_cancelling_in_the_queue() -> None:
    """It ends at once, with a report; what waits behind it moves up."""
    mover, heard = Mover(), Recorder()
    queue = service(mover, 1, heard)
    _, second, third = (queue.submit(app, "h3") for app in "abc")
    cancelled = queue.cancel(second.id)
    assert cancelled.done.is_set() and cancelled.state == "cancelled"
    assert cancelled.report is not None
    assert (cancelled.report.outcome, cancelled.report.source) == (Outcome.ROLLED_BACK, "h2")
    mover.go.set()
    assert queue.wait(third.id, 5).state == "completed"
    assert [app for app, _ in mover.moved] == ["a", "c"]
    with pytest.raises(Conflict, match="m2 is over: it is cancelled"):
        queue.cancel(second.id)
    assert heard.of("migration_ended") == ["m2", "m1", "m3"]


@pytest.mark.parametrize("committed", [False, True])
def test_the_end_turns_back_what_it_can(committed: bool) -> None:
    """`close` empties the queue, cancels what runs, and waits for what cannot turn back any more."""
    mover = Mover()
    queue = service(mover, 1)
    running, waiting = queue.submit("a", "h3"), queue.submit("b", "h3")
    eventually(lambda: mover.moving, "starting")
    if committed:
        mover.end.clear()
        mover.go.set()
        assert mover.committed.wait(5)
    mover.go_when_asked(mover.end if committed else mover.go)
    queue.close(5)
    assert running.state == ("completed" if committed else "rolled_back")
    assert waiting.state == "cancelled"
    with pytest.raises(Conflict, match="the controller is ending"):
        queue.submit("a", "h3")


def test_a_listener_that_fails_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is made of the end, `wait` returns."""

    def fail(state: str, report: Report) -> None:
        raise RuntimeError("no such counter")

    mover = Mover()
    mover.go.set()
    queue = MigrationService(
        mover, Recorder(), lambda: {"a": {"host": "h2"}}, lambda: HOSTS, workers=1, on_end=fail
    )
    assert queue.wait(queue.submit("a", "h3").id, 5).state == "completed"
    assert queue.wait(queue.submit("a", "h3").id, 5).state == "completed"
    assert "no such counter" in caplog.text


def test_what_is_asked_in_time_is_granted() -> None:
    """Of a request and a commit at the same moment one wins, and both sides know which."""
    for _ in range(200):
        cancellation, answers, barrier = Cancellation(), [], threading.Barrier(2)

        def ask(
            c: Cancellation = cancellation, a: list[bool] = answers, b: threading.Barrier = barrier
        ) -> None:
            b.wait()
            a.append(c.request())

        thread = threading.Thread(target=ask)
        thread.start()
        barrier.wait()
        try:
            cancellation.commit("release")
            turned_back = False
        except Cancelled:
            turned_back = True
        thread.join()
        assert answers == [turned_back]


def test_a_view_has_the_reports_fields_from_the_start() -> None:
    """Who reads it need not know how far it has come."""
    view = Migration("m1", "echo", "h2", "h3").view()
    assert [view[key] for key in ("id", "state", "app", "source", "destination", "outcome", "reason")] == [
        "m1", "queued", "echo", "h2", "h3", None, None,
    ]  # fmt: skip


class Wished:
    """A mover that notes how memory was to move."""

    def __init__(self) -> None:
        self.wishes: list[Wish] = []

    def __call__(
        self,
        app: str,
        destination: str,
        on_event: OnEvent,
        *,
        migration_id: str,
        cancellation: Cancellation,
        wish: Wish,
    ) -> Report:
        self.wishes.append(wish)
        return Report(migration_id, app, "h2", destination, "process", Outcome.COMPLETED)


def test_the_pause_budget_is_passed_on_or_refused() -> None:
    """Zero counts as said; what is no time is answered with one sentence, and nothing is queued."""
    mover = Wished()
    queue = service(mover, 1)
    for asked in (None, 0, 2.5, "0.5"):
        queue.wait(queue.submit("a", "h3", pause_budget=asked).id, 5)
    assert [wish.pause_budget for wish in mover.wishes] == [None, 0, 2.5, 0.5]
    for wrong in (-1, "soon", float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="is not a pause budget: give seconds, from 0 up"):
            queue.submit("a", "h3", pause_budget=wrong)
    assert len(mover.wishes) == 4
