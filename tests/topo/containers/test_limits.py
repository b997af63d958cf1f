"""Limits as users write them."""

from __future__ import annotations

import re

import pytest

from topo.containers.limits import ULIMIT_MAX, Limits, parse_limits, parse_size, ulimit, with_swap


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64m", 64 << 20),
        ("1.5G", 3 << 29),
        ("10kb", 10 << 10),
        ("512", 512),
        (4096, 4096),
        ("2 g", 2 << 30),
        ("-1", -1),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    """Docker's units, in either case; numbers are bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mem_limit": "much"}, "mem_limit 'much' is no size such as 64m or 67108864"),
        ({"mem_limit": 0}, "mem_limit 0 is no size such as 64m or 67108864"),
        ({"memswap_limit": []}, "memswap_limit [] is no size such as 64m or 67108864"),
        ({"cpu_shares": "20"}, "cpu_shares '20' is not a whole number"),
        ({"cpu_quota": 5}, "cpu_quota 5 is less than 1000 microseconds (-1: no limit)"),
        ({"cpuset_cpus": "0-"}, "'0-' is no list of CPUs such as 0-1,3"),
    ],
)
def test_mistakes(asked: dict[str, object], message: str) -> None:
    """One sentence each."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_limits(**asked)  # type: ignore[arg-type]


def test_what_is_not_said_stays() -> None:
    """A change names what it changes."""
    before = parse_limits(cpu_quota=25000, mem_limit="64m")
    after = before.changed_by(parse_limits(cpu_quota=-1, cpuset_cpus="1"))
    assert after == Limits(cpu_quota=-1, cpuset_cpus="1", mem_limit=64 << 20)
    assert after.said() == {"cpu_quota": -1, "cpuset_cpus": "1", "mem_limit": 64 << 20}


@pytest.mark.parametrize(
    ("new", "old", "swap"),
    [
        (Limits(mem_limit=10), Limits(), 20),
        (Limits(mem_limit=-1), Limits(), -1),
        (Limits(mem_limit=10), Limits(memswap_limit=15), 15),
        (Limits(mem_limit=10), Limits(memswap_limit=-1), -1),
        (Limits(mem_limit=10, memswap_limit=12), Limits(memswap_limit=5), 12),
        (Limits(cpu_shares=10), Limits(mem_limit=10, memswap_limit=12), None),
    ],
)
def test_swap_follows_memory(new: Limits, old: Limits, swap: int | None) -> None:
    """Twice the memory, unless the user has said it."""
    assert with_swap(new, old).memswap_limit == swap


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (Limits(mem_limit=10, memswap_limit=9), Limits()),
        (Limits(mem_limit=10), Limits(memswap_limit=9)),
        (Limits(memswap_limit=9), Limits(mem_limit=10)),
    ],
)
def test_swap_counts_memory_too(new: Limits, old: Limits) -> None:
    """It cannot be less."""
    with pytest.raises(ValueError, match="memswap_limit 9 is less than mem_limit 10"):
        with_swap(new, old)


def test_no_ulimit_is_above_ours() -> None:
    """Nobody may raise a hard limit without CAP_SYS_RESOURCE."""
    assert (ulimit(20000), ulimit(-1), ulimit(1 << 30)) == (20000, ULIMIT_MAX, ULIMIT_MAX)
