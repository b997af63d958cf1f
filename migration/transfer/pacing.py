"""Pacing a program whose pages are still on their way to it.

CRIU's lazy-pages daemon serves what the program touches before anything else, page by page, and each such page cuts the
daemon's list of what is missing once more, a list that it walks for every page. A program that touches its memory in
any order so keeps the daemon from fetching the rest, and is served ever more slowly itself: 1 GiB of Redis under 10,000
writes a second took 80 s. So a program that faults much stands still for some milliseconds now and then; in each of
these the daemon fetches some ten MiB in large pieces, and after a second or two all are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .. import tree
from ..freezer import pin, unpin

GRACE = 0.150  # seconds in which it runs at first: whoever waited through the freeze is to be answered
RUN = 0.010  # seconds for which the program runs between two pauses
STAND = 0.010  # seconds of a pause
MANY = 10  # page faults while it runs; fewer are not in the daemon's way


class Pacer:
    """Stops and continues one program, never one that somebody else has stopped."""

    def __init__(self, root: int, grace: float = GRACE) -> None:
        self._root = root
        self._begin = time.monotonic() + grace

    def turn(self, wait: Callable[[float], bool]) -> bool:
        """Let the program run for a moment and, if it faults much, stand for another; say whether `wait` said yes."""
        before = self._faults()
        if wait(RUN):
            return True
        is_early = time.monotonic() < self._begin
        if is_early or self._faults() - before < MANY or self._is_stopped():
            return False
        pin(tree.processes(self._root))
        try:
            return wait(STAND)
        finally:
            unpin(self._root)

    def _faults(self) -> int:
        return sum(map(tree.page_faults, tree.processes(self._root)))

    def _is_stopped(self) -> bool:
        try:
            return any(tree.state(pid) in "Tt" for pid in tree.processes(self._root))
        except OSError:  # one of them has ended
            return True
