"""A caller's wish to turn a migration back, and the moment from which on it comes too late."""

from __future__ import annotations

import threading

from .errors import Cancelled


class Cancellation:
    """One migration's: the caller asks with `request`, the migration looks at it before every step.

    Whoever comes first wins: a request that was granted turns the migration back, one that comes after `commit` is
    refused. So a caller who was told "yes" finds the program at its source.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._committed = False

    def request(self) -> bool:
        """Ask to turn back; False when it is too late for that."""
        with self._lock:
            self._requested = self._requested or not self._committed
            return self._requested

    def check(self, step: str) -> None:
        """Raise Cancelled if that was asked for in time."""
        with self._lock:
            self._check(step)

    def commit(self, step: str) -> None:
        """Pass the point of no return, or raise Cancelled."""
        with self._lock:
            self._check(step)
            self._committed = True

    def _check(self, step: str) -> None:
        if self._requested:
            raise Cancelled(f"cancelled before the step {step!r}")
