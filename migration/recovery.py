"""After a crash of the controller: read the journals, and finish or undo what they tell of.

A crash takes the keeper and every program of it along, so all that can be there of a migrated program is its
image, which outlives everybody in the tmpfs. The rule is that of the transaction: before "commit" the program
belongs to its source, where it is restored from the untouched image if the freeze had come that far; after
"running" it has a history that no image holds, so the network is finished and the program is reported lost.
The same holds when the program was not in the keeper's hands and lives on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from .errors import MigrationError
from .images import INVENTORY_IMAGE
from .journal import app_from_json, host_from_json, move_from_json, read
from .model import App, Host
from .steering import Move, Steering, SteeringError

# Restores a program at a host from a folder of images, and returns its PID.
Revive = Callable[[App, Host, Path], int]
IsRunning = Callable[[App], bool]


class Verdict(str, Enum):
    """What became of a migration that was found unfinished."""

    FINISHED = "finished"  # runs at the destination
    UNDONE = "undone"  # runs at the source
    REVIVED = "revived"  # restored at the source from its image
    LOST = "lost"  # the program is gone; the network is as if it had never moved


@dataclass(frozen=True)
class Unfinished:
    """What a journal says of a migration whose controller did not end it."""

    identity: str
    app: App
    destination: Host
    folder: Path
    move: Move | None
    is_committed: bool
    copy_pid: int


@dataclass(frozen=True)
class Recovered:
    """The end of a recovery; `app` tells where the program is now, if it is."""

    identity: str
    app: App
    verdict: Verdict
    reason: str | None = None


def understand(records: list[dict[str, Any]]) -> Unfinished | None:
    """Sum up a journal; None if its migration has ended or never began."""
    facts = {record["record"]: record for record in records}
    if "begin" not in facts or "end" in facts:
        return None
    begin = facts["begin"]
    return Unfinished(
        identity=begin["id"],
        app=app_from_json(begin["app"]),
        destination=host_from_json(begin["destination"]),
        folder=Path(begin["folder"]),
        move=move_from_json(facts["move"]["move"]) if "move" in facts else None,
        is_committed="running" in facts,
        copy_pid=facts["commit"]["pid"] if "commit" in facts else 0,
    )


def recover(journals: Path, steering: Steering, is_running: IsRunning, revive: Revive) -> list[Recovered]:
    """Finish or undo every migration that a journal in the folder tells of, and remove the journals."""
    recovered = []
    for path in sorted(journals.glob("*.jsonl")):
        unfinished = understand(read(path))
        if unfinished is not None:
            recovered.append(settle(unfinished, steering, is_running, revive))
            shutil.rmtree(unfinished.folder, ignore_errors=True)
        path.unlink()
    return recovered


def settle(found: Unfinished, steering: Steering, is_running: IsRunning, revive: Revive) -> Recovered:
    """Bring one program and its network to a consistent end."""
    app = found.app
    copy = App(app.name, found.destination, found.copy_pid, app.log)
    if found.is_committed:
        verdict = Verdict.FINISHED if is_running(copy) else Verdict.LOST
        calls = (
            ("switch_over", "release", "finish")
            if verdict is Verdict.FINISHED
            else ("switch_back", "release")
        )
        return Recovered(found.identity, copy, verdict, _steer(steering, calls, found.move))
    verdict, reason = Verdict.UNDONE, None
    if not is_running(app):
        verdict, reason = _revive(found, revive)
    problem = _steer(steering, ("switch_back", "release"), found.move)
    return Recovered(found.identity, app, verdict, "; ".join(filter(None, (reason, problem))) or None)


def _revive(found: Unfinished, revive: Revive) -> tuple[Verdict, str | None]:
    images = found.folder / "images"
    # CRIU writes the inventory last: without it the image is not complete.
    if not (images / INVENTORY_IMAGE).exists():
        return Verdict.LOST, f"{found.app.name} ended with its controller, before its image was complete"
    try:
        found.app.pid = revive(found.app, found.app.host, images)
    except (MigrationError, OSError) as ex:
        return Verdict.LOST, f"{found.app.name} could not be restored on {found.app.host.name}: {ex}"
    return Verdict.REVIVED, None


def _steer(steering: Steering, calls: tuple[str, ...], move: Move | None) -> str | None:
    """Make the network's calls; return what went wrong."""
    problems = []
    for call in calls if move is not None else ():
        try:
            getattr(steering, call)(move)
        except SteeringError as ex:
            problems.append(f"the network could not be put in order: {ex}")
    return problems[0] if problems else None
