"""Summaries of repeated measurements, and the line that says where they were made."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path


def median(values: Sequence[float]) -> float:
    """Return the median; raises ValueError for nothing."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation; raises ValueError for nothing."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def machine() -> str:
    """Describe the machine in one line."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpus[0].split(":", 1)[1].strip() if cpus else "unknown CPU"
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // (1 << 20)
    return (
        f"{len(cpus)} x {model}, {memory} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )
