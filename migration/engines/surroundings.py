"""What an engine gives a container besides its image and its layer, and its twin gets otherwise.

Some of it is brought along: limits that were changed since the container was made. The rest is the destination's own,
and the report says so: the files by which an engine tells a container where it is, and the names of control groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import tree
from ..cgroups import groups_of, paths_of

# Of control groups of version 1, then of version 2; written in this order, and once more where one waits for another.
LIMITS = (
    *(
        "memory.soft_limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.limit_in_bytes",
        "memory.swappiness",
    ),
    *("cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "blkio.weight"),
    *("cpuset.mems", "cpuset.cpus", "pids.max"),
    *(
        "memory.min",
        "memory.low",
        "memory.high",
        "memory.max",
        "memory.swap.max",
        "cpu.max",
        "cpu.weight",
        "io.weight",
    ),
)
# What an engine mounts there from a place of its own, which is the sandbox's.
TELLING = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")


def carry_limits(original: int, twin: int) -> list[str]:
    """Give the groups of one process the limits of another's; return what could not be, in sentences."""
    try:
        here, there = groups_of(original), groups_of(twin)
    except OSError:  # one of them has ended, which others notice
        return []
    pairs = {
        (folder / name, there[controller] / name)
        for controller, folder in here.items()
        if controller in there and there[controller] != folder
        for name in LIMITS
    }
    wanted = sorted(pairs, key=lambda pair: LIMITS.index(pair[0].name))
    for _ in range(2):
        wanted = [pair for pair in wanted if not _equal(*pair)]
    return [
        f"its control group's {file.name} is {_read(copy)} now, and was {_read(file)}"
        for file, copy in wanted
    ]


def _equal(file: Path, copy: Path) -> bool:
    """Let a control file say what another one says; return False if it cannot."""
    value = _read(file)
    if value in ("", _read(copy)):
        return True
    try:
        copy.write_text(value)
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    return tree.read_or_empty(path).strip()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container finds around itself."""

    telling: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)
    """By their points: the rest of what /proc/PID/mountinfo says, but for numbers and where layers are."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Paths of control groups, unless it is in a cgroup namespace of its own, which hides them."""

    @classmethod
    def of(cls, pid: int) -> Surroundings:
        """Look at a process that stands still; of one that has ended there is nothing."""
        telling = {path: _read(Path(f"/proc/{pid}/root{path}")) for path in TELLING}
        lines = tree.read_or_empty(tree.PROC / f"{pid}/mountinfo").splitlines()
        try:
            hides = tree.namespace(pid, "cgroup") != tree.namespace("self", "cgroup")
            return cls(telling, dict(map(_mount, lines)), {} if hides else paths_of(pid))
        except OSError:
            return cls(telling)

    def differences(self, copy: Surroundings, destination: str) -> Iterator[str]:
        """List what a copy finds otherwise, each as a sentence for a user."""
        for path in TELLING:
            if self.telling.get(path) != copy.telling.get(path):
                yield f"its {path} is that of {destination} now"
        if points := [point for point in self.mounts if self.mounts[point] != copy.mounts.get(point)]:
            yield f"its mounts at {', '.join(points)} are others (/proc/self/mountinfo)"
        if self.groups != copy.groups:
            yield "its control groups have other names (/proc/self/cgroup)"


def _mount(line: str) -> tuple[str, str]:
    head, _, tail = line.partition(" - ")
    words, (kind, source, options) = head.split(), tail.split()
    propagation = [word.partition(":")[0] for word in words[6:]]
    own = [one for one in options.split(",") if not one.partition("=")[0].endswith("dir")]
    return words[4], " ".join((words[5], *propagation, kind, source, *sorted(own)))
