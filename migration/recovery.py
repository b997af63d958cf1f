"""After a crash of the controller: read the journals, look at what is there, and finish or undo what they tell of.

The keeper and its programs have outlived the controller (or the controller had no such keeper: then all of them are
dead, and only images are left, in the tmpfs). CRIU workers that lost their controller let go by themselves: a dump
thaws the original, a restore kills what it had built. When they have ended, what counts is who lives:

- the copy lives and has run: the migration is finished. It can only have run after "commit", when the original was
  ended for good; in post-copy it stands still for its pages, and is ended now;
- the original lives: a copy that is still there has not run, and is destroyed; the original goes on;
- neither lives: the original is restored from its untouched image, unless the copy had run ("running"). Then it
  ended by itself, and has a history that no image holds: the program is reported lost.

What is done here is written into the journal as well, so that a crash in the middle of it changes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from . import terminals
from .errors import MigrationError
from .groups import Party, member_folder, members
from .images import INVENTORY_IMAGE
from .journal import WAY_BACK, Journal, Note, app_from_json, host_from_json, move_from_json, read
from .model import App, Host
from .steering import Move, Steering, SteeringError
from .transfer import home


class Programs(Protocol):
    """What a recovery sees of a runtime.Runtime."""

    def end_leftovers(self) -> None:
        """End everything but programs that the migrations of a controller that was killed have left at work."""

    def is_running(self, app: App) -> bool:
        """Say whether the program runs."""

    def end_copy(self, pid: int, *, if_half_built: bool) -> None:
        """End a copy: in any case, or only if it has not run yet."""

    def wake(self, app: App) -> None:
        """Let a program run on that is still stopped for a migration whose controller was killed."""

    def revive(self, app: App, host: Host, images: Path, note: Note) -> int:
        """Restore a program at its source from the images that a crashed migration left; return its PID."""

    def tidy(self, app: App, other: Host) -> None:
        """Remove what a migration whose controller was killed has left on the host that a program is not on."""


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
    is_committed: bool  # the original was to be ended
    has_run: bool  # the copy has, or was just about to
    copy_pids: tuple[int, ...]
    was_revived: bool = False  # and what was taken from its terminals is there again


@dataclass(frozen=True)
class Recovered:
    """The end of a recovery; `app` tells where the program is now, if it is."""

    identity: str
    app: App
    verdict: Verdict
    reason: str | None = None

    def __str__(self) -> str:
        said = {
            Verdict.FINISHED: "was finished: it runs on {}",
            Verdict.UNDONE: "was undone: it runs on {}",
            Verdict.REVIVED: "was undone: it was restored on {} from its image",
            Verdict.LOST: "ended with the program lost; it was on {}",
        }[self.verdict].format(self.app.host.name)
        return f"migration {self.identity} of {self.app.name} {said}" + (
            f" ({self.reason})" if self.reason else ""
        )


def understand(records: list[dict[str, Any]]) -> Unfinished | None:
    """Sum up a journal; None if its migration has ended or never began."""
    facts = {record["record"]: record for record in records}
    if "begin" not in facts or "end" in facts:
        return None
    begin = facts["begin"]
    app = app_from_json(begin["app"])
    if "revived" in facts:
        for member, pid in zip(members(app), facts["revived"]["pids"], strict=True):
            member.pid = pid
    return Unfinished(
        identity=begin["id"],
        app=app,
        destination=host_from_json(begin["destination"]),
        folder=Path(begin["folder"]),
        move=move_from_json(facts["move"]["move"]) if "move" in facts else None,
        is_committed="commit" in facts,
        has_run="running" in facts or "resumed" in facts,
        copy_pids=next((tuple(facts[name]["pids"]) for name in ("commit", "copy") if name in facts), ()),
        was_revived="revived" in facts,
    )


def recover(
    journals: Path, steering: Steering, programs: Programs, settled: Callable[[App], None] = lambda app: None
) -> list[Recovered]:
    """Finish or undo every migration that a journal in the folder tells of, and remove the journals.

    `settled` is told where each program is before its journal goes.
    """
    paths = sorted(journals.glob("*.jsonl"))
    if paths:
        programs.end_leftovers()
    recovered = []
    for path in paths:
        unfinished = understand(read(path))
        is_on_its_way_back = path.with_stem(f"{path.stem}{WAY_BACK}") in paths
        if unfinished is not None and not is_on_its_way_back:  # else the other journal tells where it is
            recovered.append(settle(unfinished, steering, programs, path))
            app = recovered[-1].app
            at_home = app.host.name == unfinished.app.host.name
            for member in members(app):
                programs.tidy(member, unfinished.destination if at_home else unfinished.app.host)
            settled(recovered[-1].app)
        if unfinished is not None:
            shutil.rmtree(unfinished.folder, ignore_errors=True)
        path.unlink()
    return recovered


def settle(found: Unfinished, steering: Steering, programs: Programs, path: Path) -> Recovered:
    """Bring one program and its network to a consistent end."""
    app = found.app
    copy = copy_of(found)
    for member, pid in zip(members(app), found.copy_pids, strict=False):
        is_over = home.is_post_copy(found.folder) or not programs.is_running(member)
        programs.end_copy(pid, if_half_built=found.is_committed and is_over)
    if found.copy_pids and all(map(programs.is_running, members(copy))):
        _end_kept(app, programs)
        for member in members(copy):
            programs.wake(member)  # post-copy may have been pacing it
        problem = _steer(steering, ("switch_over", "release", "finish"), found.move)
        return Recovered(found.identity, copy, Verdict.FINISHED, problem)
    if found.has_run or (found.copy_pids and any(map(programs.is_running, members(copy)))):
        if found.has_run:
            _end_kept(app, programs)
        problem = _steer(steering, ("switch_back", "release"), found.move)
        return Recovered(found.identity, copy, Verdict.LOST, problem)
    verdict, reason = Verdict.UNDONE, None
    gone = [member for member in members(app) if not programs.is_running(member)]
    if gone:  # what goes wrong here is said below
        _steer(steering, ("disown",), found.move)
    for member in gone:
        if verdict is not Verdict.LOST:
            verdict, reason = _revive(member, found, programs, path)
    for member in members(app):
        if member not in gone:  # only now, when its peers are there again
            if not found.was_revived:
                folder = _folder_of(member, found)
                terminals.read_back(folder).give_back(member.pid, folder)
            programs.wake(member)
    problem = _steer(steering, ("switch_back", "release"), found.move)
    return Recovered(found.identity, app, verdict, "; ".join(filter(None, (reason, problem))) or None)


def _end_kept(app: App, programs: Programs) -> None:
    """End an original that post-copy has kept frozen for its pages, and whose copy has run."""
    for member in members(app):
        if programs.is_running(member):
            programs.end_copy(member.pid, if_half_built=False)


def copy_of(found: Unfinished) -> App:
    """Return the program as it is at its destination, if it has come there."""
    pids = found.copy_pids or (0,) * len(members(found.app))
    copies = [
        replace(member, host=found.destination, pid=pid)
        for member, pid in zip(members(found.app), pids, strict=True)
    ]
    return Party(copies) if isinstance(found.app, Party) else copies[0]


def _folder_of(app: App, found: Unfinished) -> Path:
    return member_folder(found.folder, app) if isinstance(found.app, Party) else found.folder


def _revive(app: App, found: Unfinished, programs: Programs, path: Path) -> tuple[Verdict, str | None]:
    images = _folder_of(app, found) / "images"
    # CRIU writes the inventory last: without it the image is not complete.
    if not (images / INVENTORY_IMAGE).exists():
        return Verdict.LOST, f"{app.name} ended before its image was complete"
    journal = Journal(path)
    try:

        def note(pid: int) -> None:
            app.pid = pid
            journal.write("revived", pids=[member.pid for member in members(found.app)])

        app.pid = programs.revive(app, app.host, images, note)
    except (MigrationError, OSError) as ex:
        return Verdict.LOST, f"{app.name} could not be restored on {app.host.name}: {ex}"
    finally:
        journal.close()
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
