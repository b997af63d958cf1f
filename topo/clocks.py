"""How the clock of the demos' programs and that of this process are related."""

from __future__ import annotations

import time

from apps.kept.watch import clock


def clocks_apart() -> float:
    """Return how far the programs' clock is ahead of CLOCK_MONOTONIC."""
    return clock() - time.monotonic()
