"""The freezer of a container's control group, of version 1 and 2, found by one of its processes.

A frozen process does not run, and does not notice; its sockets are the kernel's and stay. A signal, SIGKILL included,
acts when it is thawed (version 1) or at once (version 2).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import MigrationError

TIMEOUT = 5.0


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
    if (folder := folder_of(pid, "freezer")) is not None:
        state = folder / "freezer.state"
        return Freezer(state, state, "FROZEN", "THAWED", "FROZEN")
    if (folder := folder_of(pid, "")) is not None and (folder / "cgroup.freeze").exists():
        return Freezer(folder / "cgroup.freeze", folder / "cgroup.events", "1", "0", "frozen 1")
    raise MigrationError(f"process {pid} is in no control group that can be frozen")


def folder_of(pid: int, controller: str) -> Path | None:
    """Return the folder of a process's group in the hierarchy of a controller (version 2's is "")."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, names, group = line.split(":", 2)
        if controller in names.split(","):
            return _place(group, controller)
    return None


def processes_of(folder: Path) -> list[int]:
    """List the processes of a group."""
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def group_of(pid: int) -> Path | None:
    """Return a group that is the container's own, in whichever hierarchy there is."""
    return folder_of(pid, "freezer") or folder_of(pid, "pids") or folder_of(pid, "")


def _place(group: str, controller: str) -> Path | None:
    """Find where a group is mounted: proc_pid_mountinfo(5)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        root, point = head.split()[3:5]
        kind, _, options = tail.split()[:3]
        is_it = (
            kind == "cgroup2" if controller == "" else kind == "cgroup" and controller in options.split(",")
        )
        base = root.rstrip("/")
        if is_it and (group == base or group.startswith(f"{base}/")):
            return Path(point) / group[len(base) :].lstrip("/")
    return None
