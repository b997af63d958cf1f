"""What a killed testbed has left behind, for one that takes it over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topo import paths
from topo.errors import CannotRecover
from topo.runs import JOURNALS, dead_runs
from topo.state import STATE, RunState


@dataclass(frozen=True)
class Left:
    """A dead run that can be taken over."""

    folder: Path
    state: RunState


def find_left(folder: Path | None = None, root: Path = paths.RUNS) -> Left:
    """Return the dead run in `folder`, or the latest; raises CannotRecover."""
    if folder is None:
        dead = dead_runs(root)
        if not dead:
            raise CannotRecover("there is no run to recover: none was killed, or it was cleaned up")
        folder = next((run for run in reversed(dead) if (run / STATE).exists()), dead[-1])
    state = RunState.load(folder)
    living = {**state.holders, **{name: pod.sandbox for name, pod in state.pods.items()}}
    gone = [name for name, process in living.items() if not process.is_alive]
    if gone:
        raise CannotRecover(
            f"run {folder.name} cannot be recovered: its host {gone[0]} is gone, and all its programs with it "
            "(lb.py --clean removes the rest)"
        )
    return Left(folder, state)


def is_in_the_middle(run: Path) -> bool:
    """Say whether a dead run was in the middle of a migration, and can be taken over."""
    if not any((run / JOURNALS).glob("*.jsonl")):
        return False
    try:
        find_left(run)
    except CannotRecover:
        return False
    return True
