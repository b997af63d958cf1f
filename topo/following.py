"""`migrate` of the CLI: asks for a migration, shows its steps, and takes Ctrl-C for a change of mind."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from controllers.progress import Progress

if TYPE_CHECKING:
    from migration.report import Report
    from topo.testbed import Testbed

PATIENCE = 0.3  # seconds without an event after which a display is brought up to date all the same

Events = queue.SimpleQueue[Mapping[str, Any]]


def migrate(
    bed: Testbed,
    app: str | Sequence[str],
    to: str,
    console: Console,
    mode: str | None = None,
    transfer: str | None = None,
    pause_budget: float | str | None = None,
) -> Report:
    """Carry a program to another host and return the report; Ctrl-C cancels, which the report then says."""
    events: Events = queue.SimpleQueue()
    id = bed.queue_migration(app, to, events.put, mode=mode, transfer=transfer, pause_budget=pause_budget)
    with Progress(
        console, f"{id}: {app if isinstance(app, str) else ','.join(app)} to {to}", gentle=True
    ) as progress:
        while True:
            try:
                progress.begin()
                if _take(events, progress):
                    break
            except KeyboardInterrupt:
                progress.say(bed.cancel_migration(id) or f"cancelling {id}")
    return bed.wait_for_migration(id)


def _take(events: Events, progress: Progress) -> bool:
    """Show what happens next; say whether the migration is over."""
    try:
        event = events.get(timeout=PATIENCE)
    except queue.Empty:
        progress.refresh()
        return False
    if event["phase"] == "over":
        return True
    progress.show(event)
    return False
