"""The machine: kernel, distribution, processors, memory, and how fast it is."""

from __future__ import annotations

import os
import platform
import re
from typing import Any

from migration import slowness
from topo.doctor.findings import Finding, fine, needed
from topo.modules import distribution

OLDEST = (5, 15)


def describe() -> dict[str, Any]:
    """Return what is known of the machine, as the JSON form has it."""
    return {
        "kernel": platform.release(),
        "distribution": distribution()["PRETTY_NAME"],
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "slowness": round(slowness.factor(), 2),
    }


def version_of(release: str) -> tuple[int, int]:
    """Return the two numbers that a kernel's release begins with; (0, 0) if it does not."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_kernel() -> Finding:
    """Ask for the oldest kernel that the generated programs are written for."""
    release, system = platform.release(), distribution()["PRETTY_NAME"]
    if version_of(release) < OLDEST:
        return needed(f"Linux {release} on {system} is older than 5.15", "boot a newer kernel")
    return fine(f"Linux {release}, {platform.machine()}, {system}", version=list(version_of(release)))


def check_machine() -> Finding:
    """Say how large and how fast the machine is: time-outs grow with its slowness."""
    machine = describe()
    processors, memory, slow = machine["processors"], machine["memory_bytes"], machine["slowness"]
    measured = round(slowness.measure(), 2)
    speed = f"takes {measured:.1f} times as long as the reference machine"
    if slow >= 1.05 or measured >= 1.05:
        speed += f", time-outs are {slow:.1f} times as long"
    return fine(
        f"{processors} processor{'s' if processors > 1 else ''}, {memory / 2**30:.1f} GiB, {speed}",
        slowness=measured,
        time_out_factor=slow,
    )
