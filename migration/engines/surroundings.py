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


def limits_of(pid: int) -> dict[str, dict[str, str]]:
    """Return the limits of a process's control groups, by controllers and the names of their files."""
    try:
        groups = groups_of(pid)
    except OSError:  # it has ended, which others notice
        return {}
    return {
        controller: {name: value for name in LIMITS if (value := _read(folder / name))}
        for controller, folder in groups.items()
    }


def give_limits(limits: Mapping[str, Mapping[str, str]], copy: int) -> list[str]:
    """Give the control groups of a process these limits; return what could not be, in sentences."""
    there = limits_of(copy)
    groups = groups_of(copy) if there else {}
    wanted = [
        (name, groups[controller] / name, value)
        for name in LIMITS
        for controller, values in limits.items()
        if (value := values.get(name)) is not None and there.get(controller, {}).get(name, value) != value
    ]
    for _ in range(2):
        wanted = [(name, file, value) for name, file, value in wanted if not _write(file, value)]
    return [
        f"its control group's {name} is {_read(file)} now, and was {value}" for name, file, value in wanted
    ]


def _write(file: Path, value: str) -> bool:
    try:
        file.write_text(value)
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
    root = words[3] if kind.startswith("cgroup") else ""  # the group that is seen there
    return words[4], " ".join((root, words[5], *propagation, kind, source, *sorted(own)))
