"""Migrations as they are asked for: queued, run by a limited number of workers, cancelled, remembered.

First come, first served, with one exception: a program that is on the move is not moved a second time meanwhile, so a
migration of it waits its turn, and those behind it that concern other programs overtake it. How a program is moved is
the `Mover`'s business: this module only knows that it takes long, reports progress, can be asked to turn back, and
returns a report.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from controllers.errors import Conflict, ControllerError, InvalidRequest, NotFound
from migration.cancellation import Cancellation
from migration.report import Outcome, Report
from migration.slowness import scaled
from migration.transfer.modes import DEFAULT_WISH, Wish, parse_wish

LOG = logging.getLogger(__name__)

WORKERS = 5
_KEPT = 10_000
_CLOSE_S = scaled(20.0)

OnEvent = Callable[[Mapping[str, Any]], None]
Publish = Callable[[str, Mapping[str, Any]], None]


class Mover(Protocol):
    """What moves a program; it is called in a thread of its own and returns its report."""

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
        """Move an app to a host, as `wish` says; turn back when `cancellation` says so."""


@dataclass
class Migration:
    """One migration; `state` is queued, running, cancelling, cancelled (while queued), or the report's outcome."""

    id: str
    app: str
    source: str
    destination: str
    state: str = "queued"
    report: Report | None = None
    asked: float = field(default_factory=time.monotonic)
    queued_ms: float | None = None
    """How long it waited for its turn."""
    total_ms: float | None = None
    """How long it took from its turn to its end."""
    on_event: OnEvent | None = None
    wish: Wish = DEFAULT_WISH
    cancellation: Cancellation = field(default_factory=Cancellation)
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def apps(self) -> list[str]:
        """What moves: one app, or several ("redis,app") in one migration."""
        return self.app.split(",")

    def view(self) -> dict[str, Any]:
        """Return what the API shows: the report once there is one."""
        base = {
            "app": self.app,
            "source": self.source,
            "destination": self.destination,
            "outcome": None,
            "reason": None,
        }
        times = {"queued_ms": self.queued_ms, "total_ms": self.total_ms}
        report = self.report.to_json() if self.report is not None else {}
        return {"id": self.id, "state": self.state, **base, **report, **times}

    def ended(self, outcome: Outcome, reason: str) -> Report:
        """Write the report of a migration that the mover has none of."""
        return Report(self.id, self.app, self.source, self.destination, "", outcome, reason)


class MigrationService:
    """The queue; its methods may be called from any thread."""

    def __init__(
        self,
        mover: Mover | None,
        publish: Publish,
        apps: Callable[[], Mapping[str, Any]],
        hosts: Callable[[], Mapping[str, Any]],
        *,
        workers: int = WORKERS,
        traces: Path | None = None,
        on_end: Callable[[str, Report], None] = lambda state, report: None,
    ) -> None:
        """Run up to `workers` migrations at once; tell `on_end` of each with its final state and its report."""
        self.workers = workers
        self._mover = mover
        self._publish = publish
        self._apps = apps
        self._hosts = hosts
        self._traces = traces
        self._on_end = on_end
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._all: dict[str, Migration] = {}
        self._queue: list[Migration] = []
        self._running: dict[str, Migration] = {}
        """By app: one at a time for each."""
        self._closed = False

    # ---- what is asked for

    def submit(
        self,
        app: str,
        destination: str,
        on_event: OnEvent | None = None,
        *,
        mode: str | None = None,
        transfer: str | None = None,
        pause_budget: float | str | None = None,
    ) -> Migration:
        """Queue a migration; raises when app (or one of several, "redis,app"), host, mode or transfer are unknown.

        `on_event` hears of every step, in the migration's thread, and of its end: {"phase": "over", …}.
        """
        if self._mover is None:
            raise Conflict("this controller has nothing that could move programs")
        known = self._apps()
        for name in (names := app.split(",")):
            if name not in known:
                raise NotFound(f"there is no app {name!r} (there are: {', '.join(sorted(known)) or 'none'})")
            if names.count(name) > 1:
                raise InvalidRequest(f"{name} is named twice")
        if destination not in (hosts := self._hosts()):
            raise InvalidRequest(
                f"there is no host {destination!r} (there are: {', '.join(sorted(hosts)) or 'none'})"
            )
        try:
            wish = parse_wish(mode, transfer, pause_budget)
        except ValueError as ex:
            raise InvalidRequest(str(ex)) from ex
        with self._lock:
            if self._closed:
                raise Conflict("the controller is ending")
            source = str(known[names[0]].get("host", ""))
            id = f"m{next(self._numbers)}"
            migration = Migration(id, app, source, destination, on_event=on_event, wish=wish)
            self._all[migration.id] = migration
            self._forget_old()
            self._queue.append(migration)
            self._publish("migration_queued", migration.view())
            self._start_next()
        return migration

    def get(self, id: str) -> Migration:
        """Return a migration."""
        migration = self._all.get(id)
        if migration is None:
            raise NotFound(f"there is no migration {id!r}")
        return migration

    def list(self) -> list[Migration]:
        """Return all migrations that are remembered, oldest first."""
        with self._lock:
            return list(self._all.values())

    def trace(self, id: str) -> str:
        """Return a migration's causal trace."""
        migration = self.get(id)
        path = self._traces / f"{migration.id}.log" if self._traces is not None else None
        if path is None or not path.exists():
            raise NotFound(f"migration {id} has no trace: it is {migration.state}")
        return path.read_text(encoding="utf-8")

    def cancel(self, id: str) -> Migration:
        """Take a migration out of the queue, or make it turn back; raises Conflict when it is too late."""
        migration = self.get(id)
        with self._lock:
            if migration.state == "queued":
                self._queue.remove(migration)
                migration.state = "cancelled"
                migration.report = migration.ended(Outcome.ROLLED_BACK, "cancelled while it was queued")
            elif migration.state in ("running", "cancelling"):
                if not migration.cancellation.request():
                    raise Conflict(
                        f"migration {id} cannot be cancelled any more: {migration.app} is being started on "
                        f"{migration.destination}"
                    )
                migration.state = "cancelling"
            else:
                raise Conflict(f"migration {id} is over: it is {migration.state}")
            self._publish("migration_cancelled", migration.view())
        if migration.state == "cancelled":
            self._finish(migration)
        return migration

    def wait(self, id: str, timeout: float | None = None) -> Migration:
        """Return a migration when it is over (or the time is)."""
        migration = self.get(id)
        migration.done.wait(timeout)
        return migration

    def close(self, timeout: float = _CLOSE_S) -> None:
        """Cancel what waits, turn back what runs as far as it can, and return when nothing runs any more."""
        with self._lock:
            self._closed = True
            left = [*self._queue, *self._running.values()]
        for migration in left:
            try:
                self.cancel(migration.id)
            except Conflict:  # over by now, or it will be: it cannot turn back
                continue
        deadline = time.monotonic() + timeout
        for migration in left:
            migration.done.wait(max(0.0, deadline - time.monotonic()))

    def counts(self) -> tuple[int, int]:
        """Return how many wait, and how many run."""
        with self._lock:
            return len(self._queue), self._busy()

    # ---- how it is done

    def _forget_old(self) -> None:
        over = [m.id for m in self._all.values() if m.done.is_set()]
        for id in over[: max(0, len(self._all) - _KEPT)]:
            del self._all[id]

    def _busy(self) -> int:
        """Count what runs; the caller has the lock."""
        return len({migration.id for migration in self._running.values()})

    def _start_next(self) -> None:
        """Start what may start, in the order of the queue; the caller has the lock."""
        taken = set(self._running)
        for migration in list(self._queue):
            if self._busy() >= self.workers:
                return
            if taken.isdisjoint(migration.apps):
                self._queue.remove(migration)
                self._running.update(dict.fromkeys(migration.apps, migration))
                migration.state = "running"
                threading.Thread(
                    target=self._work, args=(migration,), name=f"migrate-{migration.id}", daemon=True
                ).start()
            # A later one of the same app must not overtake it.
            taken.update(migration.apps)

    def _work(self, migration: Migration) -> None:
        """Run one migration, in its own thread."""
        started = time.monotonic()
        migration.queued_ms = _ms(started - migration.asked)
        report = self._moved(migration)
        with self._lock:
            migration.report = report
            migration.total_ms = _ms(time.monotonic() - started)
            migration.state = report.outcome.value
            for name in migration.apps:
                del self._running[name]
            self._start_next()
        self._finish(migration)

    def _finish(self, migration: Migration) -> None:
        assert migration.report is not None
        try:
            self._on_end(migration.state, migration.report)
        except Exception:  # whatever is made of it, whoever waits must hear of the end
            LOG.exception("counting migration %s", migration.id)
        self._publish("migration_ended", migration.view())
        migration.done.set()
        if migration.on_event is not None:
            migration.on_event({"phase": "over", "state": migration.state})

    def _moved(self, migration: Migration) -> Report:
        assert self._mover is not None

        def on_event(data: Mapping[str, Any]) -> None:
            self._publish("migration_progress", {"id": migration.id, "app": migration.app, **data})
            if migration.on_event is not None:
                migration.on_event(data)

        try:
            # An earlier migration may have brought it elsewhere meanwhile.
            migration.source = str(self._apps().get(migration.apps[0], {}).get("host", migration.source))
            self._publish("migration_started", migration.view())
            return self._mover(
                migration.app,
                migration.destination,
                on_event,
                migration_id=migration.id,
                cancellation=migration.cancellation,
                wish=migration.wish,
            )
        except ControllerError as ex:
            reason = str(ex)
        except Exception as ex:  # whatever the mover runs into, the queue and the report must go on
            LOG.exception("migration %s of %s", migration.id, migration.app)
            reason = f"{type(ex).__name__}: {ex}"
        return migration.ended(Outcome.FAILED, reason)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
