"""What the control groups of a process limit, on cgroup v1, v2 and both at once."""

from __future__ import annotations

from pathlib import Path

from migration.cgroups import UNIFIED, groups_of
from topo.containers.limits import DEFAULT_PERIOD, Limits

_NO_MEMORY_LIMIT = 1 << 62  # v1 has no word for it, and rounds the largest number to pages


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
