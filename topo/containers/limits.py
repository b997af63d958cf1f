"""Resource limits of containers: what users write, what engines take, what may be asked for at all.

Pure: values in, values out. Sizes are bytes, times are microseconds, -1 means no limit, None means not said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)b?", re.IGNORECASE)
_CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
DEFAULT_PERIOD = 100_000  # the kernel's own, in microseconds
MIN_QUOTA = 1000  # the kernel's smallest slice
ULIMIT_MAX = 1 << 20
"""What a container gets where the machine sets no limit: the engines' usual number of descriptors."""


@dataclass(frozen=True)
class Limits:
    """What a container may use; containernet's names."""

    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    mem_limit: int | None = None
    memswap_limit: int | None = None

    def changed_by(self, other: Limits) -> Limits:
        """Return these limits with those that `other` says."""
        return replace(self, **other.said())

    def said(self) -> dict[str, Any]:
        """Return the limits that are said, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def parse_limits(
    cpu_quota: int | None = None,
    cpu_period: int | None = None,
    cpu_shares: int | None = None,
    cpuset_cpus: str | None = None,
    mem_limit: int | str | None = None,
    memswap_limit: int | str | None = None,
) -> Limits:
    """Read limits as users write them; raises ValueError with a sentence."""
    limits = Limits(
        cpu_quota=_whole("cpu_quota", cpu_quota),
        cpu_period=_whole("cpu_period", cpu_period),
        cpu_shares=_whole("cpu_shares", cpu_shares),
        cpuset_cpus=_cpus(cpuset_cpus),
        mem_limit=_size("mem_limit", mem_limit),
        memswap_limit=_size("memswap_limit", memswap_limit),
    )
    if limits.cpu_quota is not None and limits.cpu_quota != -1 and limits.cpu_quota < MIN_QUOTA:
        raise ValueError(f"cpu_quota {limits.cpu_quota} is less than {MIN_QUOTA} microseconds (-1: no limit)")
    return limits


def with_swap(new: Limits, old: Limits) -> Limits:
    """Add the swap limit that a new memory limit needs: engines refuse more memory than memory and swap together.

    As for a new container, it is twice the memory unless the user has said one; raises ValueError if that is too small.
    """
    if new.mem_limit is None or new.memswap_limit is not None:
        total = new.memswap_limit
        memory = new.mem_limit if new.mem_limit is not None else old.mem_limit
    else:
        total, memory = old.memswap_limit, new.mem_limit
        if total is None:
            return replace(new, memswap_limit=-1 if memory == -1 else 2 * memory)
        new = replace(new, memswap_limit=total)
    if total is not None and total != -1 and memory is not None and (memory == -1 or total < memory):
        raise ValueError(
            f"memswap_limit {total} is less than mem_limit {memory}: it counts memory and swap together"
        )
    return new


def ulimit(hard: int) -> int:
    """Return the limit to start a container with, given our own hard one (-1: none); no process may raise that."""
    return ULIMIT_MAX if hard == -1 else min(hard, ULIMIT_MAX)


def parse_size(value: int | str) -> int:
    """Read "64m" or 67108864 as bytes; raises ValueError."""
    if isinstance(value, int):
        return value
    if value.strip() == "-1":
        return -1
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is no size such as 64m or 67108864")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _size(name: str, value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        size = parse_size(value)
    except (ValueError, AttributeError) as ex:
        raise ValueError(f"{name} {value!r} is no size such as 64m or 67108864") from ex
    if size < -1 or size == 0:
        raise ValueError(f"{name} {value!r} is no size such as 64m or 67108864")
    return size


def _whole(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise ValueError(f"{name} {value!r} is not a whole number")
    return value


def _cpus(value: str | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str | int) or not _CPUS.fullmatch(str(value)):
        raise ValueError(f"{value!r} is no list of CPUs such as 0-1,3")
    return str(value)
