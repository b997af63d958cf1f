"""Which rows of a table have been silent for their idle time-out (P4Runtime specification, "Idle-timeout").

The program writes the time of its last hit into each row's cell. Nobody goes through the table: every row with a
time-out has one place in a heap, under the earliest time at which its silence could be long enough, and is looked at
only then. A row that was hit meanwhile goes back under a later time, so a row costs one look in each time-out.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")

_SPARE = 1024
"""Places of rows that are gone, over and above as many as rows are watched."""


@dataclass(slots=True, eq=False)
class _Watched(Generic[Row]):
    """A row with a time-out; `told` is the last hit after which its silence was reported."""

    cell: int
    row: Row
    timeout_ns: int
    told: int = -1


class IdleRows(Generic[Row]):
    """The rows of a table that have a time-out. Times are those of time.monotonic_ns()."""

    def __init__(self, last_hit: Callable[[Row], int]) -> None:
        """`last_hit` says when a row was hit last."""
        self._last_hit = last_hit
        self._watched: dict[int, _Watched[Row]] = {}
        """By the rows' cells."""
        self._heap: list[tuple[int, int, _Watched[Row]]] = []
        """Time, a number of its own, and what is to be looked at then, if it is still watched."""
        self._numbers = itertools.count()

    def watch(self, cell: int, row: Row, timeout_ns: int) -> None:
        """Watch the row of a cell from now on, in place of what was watched there; not at all with a time-out of 0."""
        self.forget(cell)
        if timeout_ns:
            self._watched[cell] = watched = _Watched(cell, row, timeout_ns)
            self._look_again(watched, self._last_hit(row))

    def forget(self, cell: int) -> None:
        """Watch a cell no longer."""
        self._watched.pop(cell, None)
        if len(self._heap) > 2 * len(self._watched) + _SPARE:
            self._heap = [place for place in self._heap if self._is_watched(place[2])]
            heapq.heapify(self._heap)

    def next(self) -> int | None:
        """Return the earliest time at which `due` could have a row; None if none has a time-out."""
        while self._heap and not self._is_watched(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: int, most: int) -> list[Row]:
        """Return up to `most` rows that have been silent for their time-out, each once in a silence."""
        found: list[Row] = []
        while len(found) < most and (at := self.next()) is not None and at <= now:
            watched = heapq.heappop(self._heap)[2]
            hit = self._last_hit(watched.row)
            if hit != watched.told and hit + watched.timeout_ns <= now:
                watched.told = hit
                found.append(watched.row)
            # One that was reported may end at any time; a new one is long enough a time-out later at the earliest.
            self._look_again(watched, now if hit == watched.told else hit)
        return found

    def _look_again(self, watched: _Watched[Row], start: int) -> None:
        """Look at a row when a silence that begins at a time could be long enough."""
        heapq.heappush(self._heap, (start + watched.timeout_ns, next(self._numbers), watched))

    def _is_watched(self, watched: _Watched[Row]) -> bool:
        return self._watched.get(watched.cell) is watched
