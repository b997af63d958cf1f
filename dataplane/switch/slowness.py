"""Time-outs on a machine that is slower than the reference machine, as whoever started the switch has measured it."""

from __future__ import annotations

import os

VARIABLE = "P4FERRY_SLOW"
"""A number from 1 up, by which time-outs are multiplied (docs/kernels.md)."""
_MOST = 100.0


def scaled(seconds: float) -> float:
    """Return a time-out for this machine from one for the reference machine."""
    try:
        factor = float(os.environ.get(VARIABLE, ""))
    except ValueError:
        return seconds
    return seconds * min(factor, _MOST) if factor > 1 else seconds
