"""The control groups of a process, on cgroup v1, v2 and both at once: where they are.

A process's groups are /proc/PID/cgroup's lines `ID:CONTROLLERS:PATH` (cgroups(7)); v2's has no controllers. Where a
hierarchy is mounted says /proc/self/mountinfo; a mount may show only a part of it (its root field).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROCESSES = "cgroup.procs"
UNIFIED = ""  # the "controller" that v2's own hierarchy goes by here


@dataclass(frozen=True)
class Mount:
    """A mounted hierarchy."""

    point: Path
    root: str
    controllers: frozenset[str]

    def folder(self, group: str) -> Path | None:
        """Return where a group of this hierarchy is, if the mount shows it."""
        root = self.root.rstrip("/")
        if group != root and not group.startswith(f"{root}/"):
            return None
        return self.point / group[len(root) :].lstrip("/")


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Return the hierarchies among the lines of a mountinfo file (proc_pid_mountinfo(5))."""
    found = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        words, rest = head.split(), tail.split()
        if len(rest) < 3 or rest[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = {UNIFIED} if rest[0] == "cgroup2" else set(rest[2].split(","))
        found.append(Mount(Path(words[4]), words[3], frozenset(controllers)))
    return found


def find_groups(cgroup: str, hierarchies: list[Mount]) -> dict[str, Path]:
    """Return the folder of each controller (v2's own as UNIFIED) for the lines of a /proc/PID/cgroup.

    The first mount that shows it: a CRIU at work mounts all hierarchies once more, and takes them away in a moment.
    """
    groups: dict[str, Path] = {}
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2)
        for controller in names.split(","):
            for mount in hierarchies:
                folder = mount.folder(path) if controller in mount.controllers else None
                if folder is not None:
                    groups.setdefault(controller, folder)
    return groups


def paths_of(pid: int) -> dict[str, str]:
    """Return the path of a process's group in each hierarchy, by the hierarchy's controllers as /proc names them."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {names: path for _, names, path in (line.split(":", 2) for line in lines)}


def mounts() -> list[Mount]:
    """Return the hierarchies that are mounted."""
    return parse_mounts(Path("/proc/self/mountinfo").read_text())


def groups_of(pid: int) -> dict[str, Path]:
    """Return a process's groups."""
    return find_groups(Path(f"/proc/{pid}/cgroup").read_text(), mounts())
