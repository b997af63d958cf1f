"""Judging whether a post-copy gets on, by pages that are there rather than by bytes that arrive.

A daemon that fetches the same piece again and again receives bytes without end: what a forked child has not inherited
(MADV_DONTFORK) stays on its list. So bytes count only as far as the image has some; beyond that a page more must be
there. When for some time none is, it is said that it is stuck.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .. import tree
from ..errors import MigrationError
from ..slowness import scaled
from .missing import Missing

LOOK = 0.2  # seconds between two looks at the pages
STUCK = scaled(3.0)  # seconds without one more page, nor a byte that could belong to one
# So long nothing may arrive. A page fault waits for no longer than one batch of 4 MiB, so even at 10 Mbit/s
# something comes every few milliseconds.
STALL_TIMEOUT = scaled(10.0)


class Watch:
    """Looks at the pages of one copy, now and then."""

    def __init__(
        self,
        missing: Missing,
        copy: int,
        received: Callable[[], int],
    ) -> None:
        """`received` says how many bytes have come."""
        self._missing, self._copy, self._received = missing, copy, received
        now = time.monotonic()
        self._next, self._since = now + LOOK, now
        self._left, self._arrived, self._is_idle = -1, 0, False
        self._limit = received() + missing.total

    @property
    def is_stuck(self) -> bool:
        """Return True if nothing has come for some time."""
        return self._is_idle and time.monotonic() - self._since > STUCK

    def look(self) -> None:
        """Look if it is time; raises MigrationError when nothing has come for too long."""
        now = time.monotonic()
        arrived = min(self._received(), self._limit)
        if arrived != self._arrived:
            self._arrived, self._since = arrived, now
        if now >= self._next:
            self._look_at_pages(now)
        if now - self._since > STALL_TIMEOUT:
            raise MigrationError(f"no page has arrived for {STALL_TIMEOUT:g} s")

    def _look_at_pages(self, now: float) -> None:
        left = self._missing.count(tree.processes(self._copy))
        self._is_idle = left == self._left
        if not self._is_idle:
            self._left, self._since = left, now
        self._next = time.monotonic() + max(LOOK, 10 * (time.monotonic() - now))


class Asking:
    """Asks for pages in a thread of its own: whoever asks waits, forever if nobody answers.

    Then it waits until the userfaultfd is closed.
    """

    def __init__(self, ask: Callable[[], bool]) -> None:
        self.has_all = False
        """All pages were asked for, and are there."""
        self.is_over = False
        self._ask = ask
        self._thread = threading.Thread(target=self._run, name="missing-pages", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.has_all = self._ask()
        self.is_over = True
