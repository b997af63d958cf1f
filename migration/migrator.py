"""The entrance: `Migrator.migrate` carries a program to another host and says how it went.

Checks what can be checked before anything is touched, makes sure that no program is on two ways at once, and
leaves the work to a Transaction. Different programs may be moved at the same time from different threads.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MigrationError, Refused
from .journal import Journal
from .model import App, Host
from .preflight import Plan, make_plan
from .recovery import Recovered, recover
from .report import OnEvent, Outcome, Report
from .runtime import Runtime
from .steering import Steering
from .transaction import Fault, Transaction, no_fault
from .workspace import make_folder, remove_folder

DEFAULT_FOLDER = Path("/dev/shm/p4ferry")


def ignore(_: object) -> None:
    """Listen to nothing."""


class Migrator:
    """Moves programs of one runtime through one network.

    `images` must be on a tmpfs that all hosts see. `no_hold` is the control arm of measurements: packets are
    dropped instead of held. `fault` is called before and after every step, and may raise: tests inject
    failures through it.
    """

    def __init__(
        self,
        steering: Steering,
        runtime: Runtime,
        *,
        images: Path = DEFAULT_FOLDER / "images",
        journals: Path = DEFAULT_FOLDER / "journals",
        no_hold: bool = False,
        fault: Fault = no_fault,
    ) -> None:
        self.steering = steering
        self.runtime = runtime
        self.images = images
        self.journals = journals
        self.no_hold = no_hold
        self.fault = fault
        self._lock = threading.Lock()
        self._moving: dict[int, str] = {}
        self._transactions: dict[str, Transaction] = {}

    def migrate(
        self, app: App, destination: Host, on_event: OnEvent = ignore, identity: str | None = None
    ) -> Report:
        """Carry a program to `destination`; never raises for a migration that fails, the report tells."""
        identity = identity or uuid.uuid4().hex[:12]
        report = Report(identity, app.name, app.host.name, destination.name, self.runtime.name)
        try:
            with self._claim(app, identity):
                plan = make_plan(identity, app, destination, self.runtime, self.images)
                self._run(plan, report, on_event)
        except Refused as ex:
            report.outcome, report.reason = Outcome.REFUSED, str(ex)
        except (MigrationError, OSError) as ex:
            report.outcome, report.reason = Outcome.REFUSED, f"{app.name} was not touched: {ex}"
        return report

    def cancel(self, identity: str) -> bool:
        """Ask a running migration to turn back; say whether it was there to be asked."""
        with self._lock:
            transaction = self._transactions.get(identity)
        if transaction is not None:
            transaction.cancel()
        return transaction is not None

    def recover(self) -> list[Recovered]:
        """Finish or undo what an earlier controller left unfinished; call it before the first migration."""
        return recover(self.journals, self.steering, self.runtime.is_running, self.runtime.revive)

    def _run(self, plan: Plan, report: Report, on_event: OnEvent) -> None:
        """Do one transaction, and a second one home if the first failed when the copy ran already."""
        with self._transaction(plan, report, on_event, self.fault) as transaction:
            home = transaction.run()
        if home is None:
            return
        way_back = Report(home.identity, report.app, report.destination, report.source, report.runtime)
        with self._transaction(home, way_back, ignore, no_fault) as transaction:
            transaction.run()
        report.connections = way_back.connections
        report.outcome = Outcome.ROLLED_BACK
        if way_back.outcome is not Outcome.COMPLETED:
            report.outcome = Outcome.FAILED
            report.reason = (
                f"{report.reason}; {report.app} is on {plan.app.host.name} and could not be brought back: "
                f"{way_back.reason}"
            )

    @contextmanager
    def _transaction(
        self, plan: Plan, report: Report, on_event: OnEvent, fault: Fault
    ) -> Iterator[Transaction]:
        """Make a transaction with its folder and journal; a lost program's are kept for `recover`."""
        folder = make_folder(self.images, plan.identity)
        journal = Journal(self.journals / f"{plan.identity}.jsonl")
        transaction = Transaction(
            plan, self.runtime, self.steering, folder, journal, report, on_event, fault, self.no_hold
        )
        with self._lock:
            self._transactions[plan.identity] = transaction
        try:
            yield transaction
        finally:
            with self._lock:
                del self._transactions[plan.identity]
            if transaction.is_lost:
                journal.close()
            else:
                remove_folder(folder)
                journal.remove()

    @contextmanager
    def _claim(self, app: App, identity: str) -> Iterator[None]:
        with self._lock:
            if (other := self._moving.get(app.pid)) is not None:
                raise Refused(f"{app.name} is already on the move (migration {other})")
            self._moving[app.pid] = identity
            claimed = app.pid
        try:
            yield
        finally:
            with self._lock:
                del self._moving[claimed]
