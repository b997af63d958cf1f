"""A mover that moves nothing, but takes as long as a test wants, and turns back when it is asked to."""

from __future__ import annotations

import threading

from controllers.migrations import OnEvent
from migration.cancellation import Cancellation
from migration.errors import Cancelled
from migration.report import CriuFigures, Outcome, Report, StepTime
from migration.transfer.modes import Wish


class Mover:
    """Goes on when `go` is set, ends when `end` is (it is, at first)."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.end = threading.Event()
        self.end.set()
        self.committed = threading.Event()
        self.asked = threading.Event()
        """Somebody wishes it to turn back."""
        self.moving: list[str] = []
        self.moved: list[tuple[str, str]] = []

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
        self._listen(cancellation)
        report = Report(migration_id, app, "h2", destination, "process", Outcome.COMPLETED)
        self.moving.append(app)
        try:
            on_event({"step": "hold", "phase": "started"})
            assert self.go.wait(10)
            cancellation.check("restore")
            on_event({"step": "hold", "phase": "ended", "ms": 0.9})
            cancellation.commit("release")
            self.committed.set()
            assert self.end.wait(10)
        except Cancelled as ex:
            report.outcome, report.reason = Outcome.ROLLED_BACK, str(ex)
            return report
        finally:
            self.moving.remove(app)
        self.moved.append((app, destination))
        if app == "cursed":
            raise OSError("no such luck")
        if app == "shy":
            report.outcome = Outcome.ROLLED_BACK
        report.steps = [StepTime("hold", 0.9)]
        report.criu = CriuFigures(8.0, 17.0, 3 << 20)
        report.client = {"gap_ms": 21.4}
        return report

    def go_when_asked(self, then: threading.Event, timeout: float = 10) -> None:
        """Set an event of ours as soon as somebody has asked to turn back."""

        def wait() -> None:
            if self.asked.wait(timeout):
                then.set()

        threading.Thread(target=wait, daemon=True).start()

    def _listen(self, cancellation: Cancellation) -> None:
        request = cancellation.request

        def requested() -> bool:
            answer = request()
            self.asked.set()
            return answer

        cancellation.request = requested  # type: ignore[method-assign]
