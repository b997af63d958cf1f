"""What the controller's queue calls to move a program of a testbed: migrates, and asks the measuring client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controllers.migrations import OnEvent
from migration.cancellation import Cancellation
from migration.migrator import Migrator
from migration.model import App, Host
from migration.report import Report
from migration.transfer.modes import DEFAULT_WISH, Wish
from topo.pcap import End, captured

Measure = Callable[[float, float], dict[str, Any] | None]


@dataclass
class TestbedMover:
    """A controllers.migrations.Mover; called in the migrations' own threads."""

    __test__ = False  # pytest: not a test class, in spite of its name

    app: Callable[[str], App]
    place: Callable[[App, str], Host]
    """Where on a host a program would be."""
    interface: Callable[[str], str]
    """The name of a host's interface."""
    on_moved: Callable[[], None]
    """Called when a program may be somewhere else."""
    pcap: Path | None = None
    """Where captures of both ends go."""
    migrator: Migrator | None = None
    """Joined when there is one: it needs the controller, which needs this."""
    measure: Measure | None = None
    """Called after each migration with its start and end (CLOCK_MONOTONIC): the report's `client`."""
    wish: Wish = DEFAULT_WISH
    """How memory moves where a migration leaves it open."""

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
        """Move a program; `client` of the report is what the measuring client saw, if there is one."""
        assert self.migrator is not None
        program = self.app(app)
        target = self.place(program, destination)
        ends = [self._end("source", program.host), self._end("destination", target)]
        started = time.monotonic()
        with captured(self.pcap, migration_id, *ends):
            report = self.migrator.migrate(
                program,
                target,
                lambda event: on_event(event.to_json()),
                migration_id,
                cancellation,
                wish.over(self.wish),
            )
        self.on_moved()
        if self.measure is not None:
            report.client = self.measure(started, time.monotonic())
        return report

    def _end(self, part: str, host: Host) -> End:
        return End(part, host.name, host.pid, self.interface(host.name))
