"""The entrance: `Migrator.migrate` carries a program to another host and says how it went.

Checks what can be checked before anything is touched, makes sure that no program is on two ways at once, and
leaves the work to a Transaction. Different programs may be moved at the same time from different threads.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .cancellation import Cancellation
from .deadline import Timeouts
from .engines.runtime import Runtimes
from .errors import MigrationError, Refused
from .groups import Party, members
from .journal import Journal
from .model import App, Host
from .neighbours import NOWHERE, Surroundings
from .party import PartyRuntime
from .preflight import Plan, make_plan
from .process import ProcessRuntime
from .quiet import Quiet
from .recovery import Recovered, recover
from .report import OnEvent, Outcome, Report
from .runtime import Runtime
from .steering import Steering
from .tracing import TraceFolder, Tracer
from .transaction import Fault, Transaction, no_fault
from .transfer.modes import DEFAULT_WISH, Wish
from .workspace import make_folder, remove_folder

DEFAULT_FOLDER = Path("/dev/shm/p4ferry")


def ignore(_: object) -> None:
    """Listen to nothing."""


class Migrator:
    """Moves programs of one runtime through one network.

    `images` must be on a tmpfs that all hosts see. `traces` gets each migration's causal trace. `no_hold`
    is the control arm of measurements: packets are dropped instead of held. `fault` is called before and after every
    step, and may raise: tests inject failures through it. `surroundings` is the testbed around the programs, for
    what is refused. `settled` is told where a program is when its migration is over, before the journal goes.
    """

    def __init__(
        self,
        steering: Steering,
        runtime: Runtime,
        *,
        images: Path = DEFAULT_FOLDER / "images",
        journals: Path = DEFAULT_FOLDER / "journals",
        traces: TraceFolder | None = None,
        no_hold: bool = False,
        fault: Fault = no_fault,
        surroundings: Surroundings = NOWHERE,
        timeouts: Timeouts | None = None,
        settled: Callable[[App], None] = ignore,
    ) -> None:
        self.steering = steering
        self._runtime = Runtimes(runtime) if isinstance(runtime, ProcessRuntime) else runtime
        self.images = images
        self.journals = journals
        self.traces = traces
        self.no_hold = no_hold
        self.fault = fault
        self.surroundings = surroundings
        self.timeouts = timeouts or Timeouts()
        self.settled = settled
        self._lock = threading.Lock()
        self._moving: dict[int, str] = {}
        self._cancellations: dict[str, Cancellation] = {}

    def migrate(
        self,
        app: App,
        destination: Host,
        on_event: OnEvent = ignore,
        identity: str | None = None,
        cancellation: Cancellation | None = None,
        wish: Wish = DEFAULT_WISH,
    ) -> Report:
        """Carry a program to `destination`; never raises for a migration that fails, the report tells."""
        identity = identity or uuid.uuid4().hex[:12]
        kind = (
            "runc" if app.container is not None else app.engine.engine if app.engine else self._runtime.name
        )
        report = Report(identity, app.name, app.host.name, destination.name, kind)
        if self.traces is not None:
            self.traces.begin(identity)
        try:
            with self._claim(app, identity):
                plan = make_plan(
                    identity, app, destination, self._runtime_of(app), self.images, wish, self.surroundings
                )
                tracer = Tracer(plan)
                try:
                    self._run(plan, report, on_event, cancellation or Cancellation(), tracer)
                finally:
                    tracer.end(report)
                    if self.traces is not None:
                        self.traces.save(identity, tracer.trace)
        except Refused as ex:
            report.outcome, report.reason = Outcome.REFUSED, str(ex)
        except (MigrationError, OSError) as ex:
            report.outcome, report.reason = Outcome.REFUSED, f"{app.name} was not touched: {ex}"
        return report

    def cancel(self, identity: str) -> bool:
        """Ask a running migration to turn back; say whether it was there to be asked, and in time."""
        with self._lock:
            cancellation = self._cancellations.get(identity)
        return cancellation is not None and cancellation.request()

    def recover(self) -> list[Recovered]:
        """Finish or undo what an earlier controller left unfinished; call it before the first migration."""
        return recover(self.journals, self.steering, self._runtime, self.settled)

    def _run(
        self, plan: Plan, report: Report, on_event: OnEvent, cancellation: Cancellation, tracer: Tracer
    ) -> None:
        """Do one transaction, and a second one home if the first failed when the copy ran already."""
        with self._transaction(plan, report, on_event, self.fault, cancellation, tracer) as transaction:
            home = transaction.run()
            if home is None:
                return
            way_back = Report(home.identity, report.app, report.destination, report.source, report.runtime)
            # Its journal begins before that of the way there ends: at every moment one says where the program is.
            returning = self._transaction(home, way_back, ignore, no_fault, Cancellation(), tracer)
            with returning as transaction:
                transaction.run()
        report.connections, report.ended = way_back.connections, way_back.ended
        report.outcome = Outcome.ROLLED_BACK
        if way_back.outcome is not Outcome.COMPLETED:
            report.outcome = Outcome.FAILED
            report.reason = (
                f"{report.reason}; {report.app} is on {plan.app.host.name} and could not be brought back: "
                f"{way_back.reason}"
            )

    @contextmanager
    def _transaction(
        self,
        plan: Plan,
        report: Report,
        on_event: OnEvent,
        fault: Fault,
        cancellation: Cancellation,
        tracer: Tracer,
    ) -> Iterator[Transaction]:
        """Make a transaction with its folder and journal; a lost program's are kept for `recover`."""
        folder = make_folder(self.images, plan.identity)
        journal = Journal(self.journals / f"{plan.identity}.jsonl")
        transaction = Transaction(
            plan,
            tracer.runtime(self._runtime_of(plan.app), plan),
            tracer.steering(self.steering),
            folder,
            journal,
            report,
            tracer.on_event(Quiet(on_event)),
            fault,
            self.no_hold,
            cancellation,
            self.timeouts,
        )
        with self._lock:
            self._cancellations[plan.identity] = cancellation
        try:
            yield transaction
        finally:
            with self._lock:
                del self._cancellations[plan.identity]
            if transaction.is_lost:
                journal.close()
            else:
                self.settled(plan.app)
                remove_folder(folder)
                journal.remove()

    def _runtime_of(self, app: App) -> Runtime:
        """Return what runs a program, or the programs of a party."""
        if not isinstance(app, Party):
            return self._runtime
        if len({None if one.engine is None else one.engine.engine for one in app.members}) > 1:
            raise Refused(
                f"{app.name} cannot be moved together: not all of them are containers of one engine"
            )
        if not isinstance(self._runtime, Runtimes):
            raise Refused(f"{app.name}: these programs can only be moved one by one")
        return PartyRuntime(self._runtime)

    @contextmanager
    def _claim(self, app: App, identity: str) -> Iterator[None]:
        claimed = {member.pid: member.name for member in members(app)}
        with self._lock:
            for pid, name in claimed.items():
                if (other := self._moving.get(pid)) is not None:
                    raise Refused(f"{name} is already on the move (migration {other})")
            self._moving.update(dict.fromkeys(claimed, identity))
        try:
            yield
        finally:
            with self._lock:
                for pid in claimed:
                    del self._moving[pid]
