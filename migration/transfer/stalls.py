"""Judging whether a post-copy gets on, by pages that are there rather than by bytes that arrive.

A daemon that fetches the same piece again and again receives bytes without end. So bytes count only as far as the image
has some; beyond that a page more must be there. When for a moment none is, the edges of mappings are asked for, which
is what a daemon gets stuck at, and whoever waits asks again; when for longer, it is said that it is stuck.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from .. import tree
from ..errors import MigrationError
from ..slowness import scaled
from .missing import Missing

LOOK = 0.2  # seconds between two looks at the pages
STUCK = scaled(
    3.0
)  # seconds without one more page, nor a byte that could belong to one, though they were asked for
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
        wake: Callable[[Sequence[int]], None],
    ) -> None:
        """`received` says how many bytes have come; `wake` lets who waits for a page of processes ask again."""
        self._missing, self._copy, self._received, self._wake = missing, copy, received, wake
        now = time.monotonic()
        self._next, self._since = now + LOOK, now
        self._left, self._arrived, self._idle = -1, 0, 0
        self._asking: Asking | None = None
        self._limit = received() + missing.total

    @property
    def is_stuck(self) -> bool:
        """Return True if nothing has come for some time though the pages at the edges of mappings were asked for."""
        return self._idle > 0 and time.monotonic() - self._since > STUCK

    def look(self) -> None:
        """Look if it is time; raises MigrationError when nothing has come for too long."""
        now = time.monotonic()
        arrived = min(self._received(), self._limit)
        if arrived != self._arrived:
            self._arrived, self._since = arrived, now
        if now >= self._next:
            self._look_at_pages(now)
        elif self._idle:
            self._wake(tree.processes(self._copy))
        if now - self._since > STALL_TIMEOUT:
            raise MigrationError(f"no page has arrived for {STALL_TIMEOUT:g} s")

    def _look_at_pages(self, now: float) -> None:
        pids = tree.processes(self._copy)
        left = self._missing.count(pids)
        if left != self._left:
            self._left, self._since, self._idle = left, now, 0
        else:
            self._idle += 1
            if self._asking is None or self._asking.is_over:
                self._asking = Asking(lambda: self._missing.touch_edges(pids))
        self._next = time.monotonic() + max(LOOK, 10 * (time.monotonic() - now))


class Asking:
    """Asks for pages in a thread of its own: whoever asks waits, forever if nobody answers.

    Then it waits until the userfaultfd is closed.
    """

    def __init__(self, ask: Callable[[], bool | None]) -> None:
        self.has_all = False
        """All pages were asked for, and are there."""
        self.is_over = False
        self._ask = ask
        self._thread = threading.Thread(target=self._run, name="missing-pages", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.has_all = bool(self._ask())
        self.is_over = True
