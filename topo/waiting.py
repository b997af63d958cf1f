"""Waiting for a condition with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable

from migration.slowness import scaled


def wait_until(condition: Callable[[], bool], timeout: float, pause: float = 0.01) -> bool:
    """Ask until it is true; returns whether it was in time (seconds; on a slow machine more, see slowness.py)."""
    deadline = time.monotonic() + scaled(timeout)
    while True:
        if condition():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
