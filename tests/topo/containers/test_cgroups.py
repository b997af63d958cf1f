"""Where a container's control groups are, on all three kinds of machine and under both drivers of the engines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migration.cgroups import UNIFIED, find_groups, groups_of, parse_mounts
from topo.containers import cgroups
from topo.containers.limits import Limits

V1 = """\
24 1 0:20 / /proc rw shared:5 - proc proc rw
31 30 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory
32 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct
"""
HYBRID = V1 + "33 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = "31 30 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
YARD = V2 + "90 30 0:26 / /run/userdata/.criu.cgyard.NSdh6A/unified rw - cgroup2 none rw\n"
PART = "31 30 0:26 /machine/vm1 /sys/fs/cgroup rw - cgroup2 none rw\n"


@pytest.mark.parametrize(
    ("mounts", "cgroup", "groups"),
    [
        (
            V1,
            "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n1:name=systemd:/x\n",
            {
                "memory": "/sys/fs/cgroup/memory/docker/ab",
                "cpu": "/sys/fs/cgroup/cpu,cpuacct/docker/ab",
                "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/docker/ab",
            },
        ),
        (
            HYBRID,
            "4:memory:/system.slice/docker-ab.scope\n0::/system.slice/docker-ab.scope\n",
            {
                "memory": "/sys/fs/cgroup/memory/system.slice/docker-ab.scope",
                UNIFIED: "/sys/fs/cgroup/unified/system.slice/docker-ab.scope",
            },
        ),
        (V2, "0::/machine.slice/libpod-ab.scope/container\n",
         {UNIFIED: "/sys/fs/cgroup/machine.slice/libpod-ab.scope/container"}),
        (YARD, "0::/p4ferry-echo\n", {UNIFIED: "/sys/fs/cgroup/p4ferry-echo"}),
        (PART, "0::/machine/vm1/libpod-ab\n", {UNIFIED: "/sys/fs/cgroup/libpod-ab"}),
        (PART, "0::/machine/vm2/libpod-ab\n", {}),
    ],
)  # fmt: skip
def test_groups(mounts: str, cgroup: str, groups: dict[str, str]) -> None:
    """A group is below its hierarchy's mount, if that shows it."""
    found = find_groups(cgroup, parse_mounts(mounts))
    assert {name: str(folder) for name, folder in found.items()} == groups


def test_our_own_groups_exist() -> None:
    """What the kernel says of this very process leads to it."""
    for folder in groups_of(os.getpid()).values():
        assert str(os.getpid()) in (folder / "cgroup.procs").read_text().split()


def test_limits_of_v1(tmp_path: Path) -> None:
    """Numbers are the kernel's; the largest number of bytes is no limit."""
    files = {"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "50000", "cpu.shares": "20"}
    for name, value in files.items():
        (tmp_path / name).write_text(f"{value}\n")
    assert cgroups._cpu_v1(tmp_path) == Limits(25000, 50000, 20)
    assert cgroups._memory("9223372036854771712") == -1 and cgroups._memory("4096") == 4096


def test_limits_of_v2(tmp_path: Path) -> None:
    """Shares are read back from weights, memory and swap are counted together."""
    files = {"cpu.max": "max 100000", "cpu.weight": "100", "memory.max": "4096", "memory.swap.max": "1024"}
    for name, value in files.items():
        (tmp_path / name).write_text(f"{value}\n")
    limits = cgroups._cpu_v2(tmp_path).changed_by(cgroups._memory_v2(tmp_path))
    assert limits == Limits(-1, 100000, 2597, mem_limit=4096, memswap_limit=5120)
