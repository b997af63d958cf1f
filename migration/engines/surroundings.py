"""What an engine gives a container besides its image and its layer, and its twin gets otherwise.

Some of it is brought along: limits that were changed since the container was made. The rest is the destination's own,
and the report says so: the files by which an engine tells a container where it is, and the names of control groups.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def differences(original: int, copy: int, destination: str) -> Iterator[str]:
    """List what a copy finds otherwise, while both stand still, each as a sentence for a user."""
    for path in TELLING:
        if _read(Path(f"/proc/{original}/root{path}")) != _read(Path(f"/proc/{copy}/root{path}")):
            yield f"its {path} is that of {destination} now"
    try:
        sees_all = tree.namespace(original, "cgroup") == tree.namespace("self", "cgroup")
        if sees_all and paths_of(original) != paths_of(copy):
            yield "its control groups have other names (/proc/self/cgroup)"
    except OSError:  # one of them has ended, which others notice
        return
