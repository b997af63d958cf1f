"""The control groups of a process, on cgroup v1, v2 and both at once: where they are, and what they limit.

A process's groups are /proc/PID/cgroup's lines `ID:CONTROLLERS:PATH` (cgroups(7)); v2's has no controllers. Where a
hierarchy is mounted says /proc/self/mountinfo; a mount may show only a part of it (its root field).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from topo.containers.limits import DEFAULT_PERIOD, Limits

UNIFIED = ""  # the "controller" that v2's own hierarchy goes by here
_NO_MEMORY_LIMIT = 1 << 62  # v1 has no word for it, and rounds the largest number to pages


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


def find_groups(cgroup: str, mounts: list[Mount]) -> dict[str, Path]:
    """Return the folder of each controller (v2's own as UNIFIED) for the lines of a /proc/PID/cgroup."""
    groups = {}
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2)
        for controller in names.split(","):
            for mount in mounts:
                folder = mount.folder(path) if controller in mount.controllers else None
                if folder is not None:
                    groups[controller] = folder
    return groups


def groups_of(pid: int) -> dict[str, Path]:
    """Return a process's groups."""
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    return find_groups(Path(f"/proc/{pid}/cgroup").read_text(), mounts)


def read_limits(pid: int) -> Limits:
    """Read what the kernel limits a process to."""
    groups = groups_of(pid)
    unified = groups.get(UNIFIED)
    cpu, memory = groups.get("cpu"), groups.get("memory")
    limits = Limits(cpuset_cpus=_text(groups.get("cpuset", unified), "cpuset.cpus"))
    if cpu is not None:
        limits = limits.changed_by(_cpu_v1(cpu))
    elif unified is not None:
        limits = limits.changed_by(_cpu_v2(unified))
    if memory is not None:
        total = _memory(_text(memory, "memory.memsw.limit_in_bytes"))
        return limits.changed_by(
            Limits(mem_limit=_memory(_text(memory, "memory.limit_in_bytes")), memswap_limit=total)
        )
    return limits if unified is None else limits.changed_by(_memory_v2(unified))


def lift_cpu_quota(pid: int) -> None:
    """Let a process's group have as much CPU as there is; raises OSError."""
    groups = groups_of(pid)
    if "cpu" in groups:
        (groups["cpu"] / "cpu.cfs_quota_us").write_text("-1")
    elif UNIFIED in groups:
        (groups[UNIFIED] / "cpu.max").write_text("max")


def _cpu_v1(folder: Path) -> Limits:
    return Limits(
        cpu_quota=_number(_text(folder, "cpu.cfs_quota_us")),
        cpu_period=_number(_text(folder, "cpu.cfs_period_us")),
        cpu_shares=_number(_text(folder, "cpu.shares")),
    )


def _cpu_v2(folder: Path) -> Limits:
    quota, _, period = (_text(folder, "cpu.max") or f"max {DEFAULT_PERIOD}").partition(" ")
    weight = _number(_text(folder, "cpu.weight"))
    # As runc translates shares (2 to 262144) to weights (1 to 10000), backwards.
    shares = None if weight is None else 2 + round((weight - 1) * 262142 / 9999)
    return Limits(cpu_quota=-1 if quota == "max" else int(quota), cpu_period=int(period), cpu_shares=shares)


def _memory_v2(folder: Path) -> Limits:
    memory, swap = _memory(_text(folder, "memory.max")), _memory(_text(folder, "memory.swap.max"))
    if memory is None or swap is None:
        return Limits(mem_limit=memory)
    return Limits(mem_limit=memory, memswap_limit=-1 if -1 in (memory, swap) else memory + swap)


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    return -1 if text == "max" or int(text) >= _NO_MEMORY_LIMIT else int(text)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _text(folder: Path | None, name: str) -> str | None:
    """Return a control file's content, or None where the kernel has no such file."""
    try:
        return None if folder is None else (folder / name).read_text().strip()
    except OSError:
        return None
