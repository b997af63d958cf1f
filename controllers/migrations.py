"""Migrations as they are asked for: queued, run in threads, remembered.

One migration per app at a time; those of different apps run side by side. How a program is moved is the `Mover`'s
business: this module only knows that it takes long, reports progress, and returns a report.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from controllers.errors import Conflict, ControllerError, InvalidRequest, NotFound

LOG = logging.getLogger(__name__)

OUTCOMES = ("completed", "rolled_back", "failed", "refused")
_KEPT = 1000

Report = Mapping[str, Any]
OnEvent = Callable[[Mapping[str, Any]], None]


class Mover(Protocol):
    """What moves a program; it is called in a thread of its own and returns a report (outcome, reason, …)."""

    def __call__(self, app: str, destination: str, on_event: OnEvent, *, migration_id: str) -> Report:
        """Move an app to a host."""


@dataclass
class Migration:
    """One migration; `state` is queued, running, cancelled, or the report's outcome."""

    id: str
    app: str
    destination: str
    state: str = "queued"
    report: Report | None = None
    seconds: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)

    def view(self) -> dict[str, Any]:
        """Return what the API shows: the report once there is one."""
        base = {
            "id": self.id,
            "app": self.app,
            "destination": self.destination,
            "outcome": None,
            "reason": None,
        }
        return {**base, **(self.report or {}), "id": self.id, "state": self.state}


class MigrationService:
    """The queue; its methods may be called from any thread."""

    def __init__(
        self,
        mover: Mover | None,
        publish: Callable[[str, Mapping[str, Any]], None],
        apps: Callable[[], Mapping[str, Any]],
        hosts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._mover = mover
        self._publish = publish
        self._apps = apps
        self._hosts = hosts
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._all: dict[str, Migration] = {}
        self._waiting: dict[str, deque[Migration]] = {}
        self.outcomes: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.seconds = 0.0

    def submit(self, app: str, destination: str) -> Migration:
        """Queue a migration; raises when app or host are unknown."""
        if self._mover is None:
            raise Conflict("this controller has nothing that could move programs")
        if app not in (known := self._apps()):
            raise NotFound(f"there is no app {app!r} (there are: {', '.join(sorted(known)) or 'none'})")
        if destination not in (hosts := self._hosts()):
            raise InvalidRequest(
                f"there is no host {destination!r} (there are: {', '.join(sorted(hosts)) or 'none'})"
            )
        with self._lock:
            migration = Migration(f"m{next(self._numbers)}", app, destination)
            self._all[migration.id] = migration
            self._drop_old()
            queue = self._waiting.get(app)
            if queue is not None:
                queue.append(migration)
            else:
                self._waiting[app] = deque([migration])
                threading.Thread(target=self._work, args=(app,), name=f"migrate-{app}", daemon=True).start()
        self._publish("migration_queued", migration.view())
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

    def cancel(self, id: str) -> Migration:
        """Take a migration out of the queue; one that runs or is over stays."""
        migration = self.get(id)
        with self._lock:
            if migration.state != "queued":
                raise Conflict(f"migration {id} is {migration.state}: only a queued one can be cancelled")
            migration.state = "cancelled"
            self._waiting[migration.app].remove(migration)
        migration.done.set()
        self._publish("migration_cancelled", migration.view())
        return migration

    def wait(self, id: str, timeout: float | None = None) -> Migration:
        """Return a migration when it is over (or the time is)."""
        migration = self.get(id)
        migration.done.wait(timeout)
        return migration

    def _drop_old(self) -> None:
        over = [m.id for m in self._all.values() if m.done.is_set()]
        for id in over[: max(0, len(self._all) - _KEPT)]:
            del self._all[id]

    def _work(self, app: str) -> None:
        """Run one app's migrations, one after another, until none waits."""
        while True:
            with self._lock:
                queue = self._waiting[app]
                if not queue:
                    del self._waiting[app]
                    return
                migration = queue.popleft()
                migration.state = "running"
            self._run(migration)

    def _run(self, migration: Migration) -> None:
        self._publish("migration_started", migration.view())
        started = time.monotonic()
        report = self._moved(migration)
        migration.seconds = time.monotonic() - started
        outcome = str(report.get("outcome", "failed"))
        with self._lock:
            migration.report = report
            migration.state = outcome
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            self.seconds += migration.seconds
        migration.done.set()
        self._publish("migration_ended", migration.view())

    def _moved(self, migration: Migration) -> Report:
        assert self._mover is not None

        def on_event(data: Mapping[str, Any]) -> None:
            self._publish("migration_progress", {"id": migration.id, "app": migration.app, **data})

        try:
            return self._mover(migration.app, migration.destination, on_event, migration_id=migration.id)
        except ControllerError as ex:
            reason = str(ex)
        except Exception as ex:  # whatever the mover runs into, the queue and the report must go on
            LOG.exception("migration %s of %s", migration.id, migration.app)
            reason = f"{type(ex).__name__}: {ex}"
        return {
            "app": migration.app,
            "destination": migration.destination,
            "outcome": "failed",
            "reason": reason,
        }
