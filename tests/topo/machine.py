"""What of a testbed can be left on a machine: counted before and after."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from migration.slowness import scaled
from topo import paths

CGROUPS = Path("/sys/fs/cgroup")
ENGINES_OWN = ("/var/lib/containers/", "/var/lib/docker/", "/run/containers/", "/run/docker/")
# Podman's storage as the tests set it up: mounted onto itself now and then; what dockerd calls the machine's network.
MOUNTED_BY_TESTS = ("/graph/overlay", "/netns/default")
OUR_PROGRAMS = ("dataplane.switch", "migration.keeper", "tcp_echo", "criu", "lb.py", "redis-server", "apps/")


def leftovers() -> dict[str, Any]:
    """Describe everything on the machine that a testbed makes; equal before and after a run."""
    return {
        "links": _links(),
        "namespaces": _namespaces(),
        "processes": _our_processes(),
        "programs": _bpf_objects("prog"),
        "maps": _bpf_objects("map"),
        "firewall": _output("nft", "list", "tables"),
        "control groups": sorted(str(p) for depth in ("", "*/") for p in CGROUPS.glob(f"{depth}p4ferry-*")),
        "mounts": _mounts(),
        "runs": _names(paths.RUNS),
        "images": _names(paths.IMAGES),
    }


def assert_as(before: dict[str, Any], look: Callable[[], dict[str, Any]] = leftovers) -> None:
    """See that the machine is as it was, or is so soon: the kernel takes its time for some of it."""
    deadline = time.monotonic() + scaled(5.0)
    while (now := look()) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    changed = {key: (before[key], now[key]) for key in now if now[key] != before[key]}
    assert not changed, f"before and after: {changed}"


def _mounts() -> list[str]:
    """List mount points, but for what an engine keeps mounted for itself while it is installed."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted(p for p in points if not p.startswith(ENGINES_OWN) and not p.endswith(MOUNTED_BY_TESTS))


def _links() -> list[str]:
    with IPRoute() as ip:
        return sorted(link.get_attr("IFLA_IFNAME") for link in ip.get_links())


def _namespaces() -> int:
    """Count the network namespaces that processes live in."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.add((entry / "ns" / "net").readlink())
            except OSError:  # gone
                continue
    return len(found)


def _our_processes() -> list[str]:
    """List what runs from this checkout, and criu; the test's own process excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        text = b" ".join(words).decode(errors="replace")
        if any(mark in text for mark in OUR_PROGRAMS):
            found.append(text)
    return sorted(found)


def _bpf_objects(kind: str) -> int:
    """Count BPF programs or maps by walking their ids (bpf(2): BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID)."""
    command = {"prog": 11, "map": 12}[kind]
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = (ctypes.c_uint32 * 4)()
    count = 0
    while libc.syscall(321, command, ctypes.byref(attributes), ctypes.sizeof(attributes)) == 0:
        attributes[0] = attributes[1]  # next_id becomes start_id
        count += 1
    return count


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def load_report(path: Path) -> list[dict[str, Any]]:
    """Read a report; checks what design.md promises of every one."""
    report = json.loads(path.read_text())
    assert report["version"] == 1
    for migration in report["migrations"]:
        assert set(migration) >= {
            "id", "app", "source", "destination", "runtime", "outcome", "reason",
            "connections", "client", "criu", "held", "steps",
        }  # fmt: skip
    migrations: list[dict[str, Any]] = report["migrations"]
    return migrations
