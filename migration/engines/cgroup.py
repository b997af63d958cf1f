"""The freezer of a container's control group, of version 1 and 2, found by one of its processes.

A frozen process does not run, and does not notice; its sockets are the kernel's and stay. A signal, SIGKILL included,
acts when it is thawed (version 1) or at once (version 2).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ..cgroups import UNIFIED, groups_of, paths_of
from ..errors import MigrationError
from ..slowness import scaled

TIMEOUT = scaled(5.0)


@dataclass(frozen=True, slots=True)
class Freezer:
    """The control files of one group."""

    switch: Path
    state: Path
    frozen: str
    thawed: str
    is_frozen_line: str

    def freeze(self) -> None:
        """Stop every process; raises MigrationError if one cannot be."""
        self._write(self.frozen)
        deadline = time.monotonic() + TIMEOUT
        while not self.is_frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise MigrationError(f"the control group {self.switch.parent} could not be frozen")
            time.sleep(0.001)
            self._write(self.frozen)  # version 1 asks to be told again when it says FREEZING

    def thaw(self) -> None:
        """Let them run on; a group that is gone has none."""
        try:
            self._write(self.thawed)
        except MigrationError:
            if self.switch.exists():
                raise

    def is_frozen(self) -> bool:
        """Say whether all stand still."""
        try:
            return self.is_frozen_line in self.state.read_text().splitlines()
        except OSError:
            return False

    def _write(self, word: str) -> None:
        try:
            self.switch.write_text(word)
        except OSError as ex:
            raise MigrationError(f"{self.switch} cannot be written: {ex.strerror}") from ex


def freezer_of(pid: int) -> Freezer:
    """Return the freezer of a process's control group; raises MigrationError."""
    groups = _groups(pid)
    if (folder := groups.get("freezer")) is not None:
        state = folder / "freezer.state"
        return Freezer(state, state, "FROZEN", "THAWED", "FROZEN")
    if (folder := groups.get(UNIFIED)) is not None and (folder / "cgroup.freeze").exists():
        return Freezer(folder / "cgroup.freeze", folder / "cgroup.events", "1", "0", "frozen 1")
    raise MigrationError(f"process {pid} is in no control group that can be frozen")


def processes_of(folder: Path) -> list[int]:
    """List the processes of a group."""
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def group_of(pid: int) -> Path | None:
    """Return a group that is the container's own, in whichever hierarchy there is."""
    groups = _groups(pid)
    return groups.get("freezer") or groups.get("pids") or groups.get(UNIFIED)


def moved_paths(source: int, copy: int) -> dict[str, str]:
    """Return where what is in the groups of one process would be in those of another: paths, old and new."""
    try:
        before, after = paths_of(source), paths_of(copy)
    except OSError:  # one of them has ended, which others notice
        return {}
    return {old: after[names] for names, old in before.items() if old not in ("/", after.get(names, old))}


def _groups(pid: int) -> dict[str, Path]:
    try:
        return groups_of(pid)
    except OSError:  # it has ended
        return {}
