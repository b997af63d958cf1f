"""Which rows of a table have been silent for their idle time-out (P4Runtime specification, "Idle-timeout").

The program writes the time of its last hit into each row's cell. Nobody goes through the table: every row with a
time-out has one place in a heap, under the earliest time at which its silence could be long enough, and is looked at
only then. A row that was hit meanwhile goes back under a later time, so a row costs one look in each time-out.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Row = TypeVar("Row")

_SPARE = 1024
"""Places of rows that are gone, over and above as many as rows are watched."""


@dataclass(slots=True)
class _Watched(Generic[Row]):
    """A row with a time-out; `told` is the last hit after which its silence was reported."""

    row: Row
    timeout_ns: int
    told: int = -1


class IdleRows(Generic[Row]):
    """The rows of a table that have a time-out. Times are those of time.monotonic_ns()."""

    def __init__(self, last_hit: Callable[[Row], int]) -> None:
        """`last_hit` says when a row was hit last."""
        self._last_hit = last_hit
        self._watched: dict[int, _Watched[Row]] = {}
        """By a number of each watching, so that a row that comes again is another one."""
        self._numbers: dict[int, int] = {}
        """The number under which each row's cell is watched."""
        self._heap: list[tuple[int, int]] = []
        self._last_number = 0

    def watch(self, cell: int, row: Row, timeout_ns: int) -> None:
        """Watch the row of a cell from now on, in place of what was watched there; not at all with a time-out of 0."""
        self.forget(cell)
        if not timeout_ns:
            return
        self._last_number += 1
        self._numbers[cell] = self._last_number
        self._watched[self._last_number] = _Watched(row, timeout_ns)
        heapq.heappush(self._heap, (self._last_hit(row) + timeout_ns, self._last_number))

    def forget(self, cell: int) -> None:
        """Watch a cell no longer."""
        number = self._numbers.pop(cell, None)
        if number is None:
            return
        del self._watched[number]
        if len(self._heap) > 2 * len(self._watched) + _SPARE:
            self._heap = [place for place in self._heap if place[1] in self._watched]
            heapq.heapify(self._heap)

    def next(self) -> int | None:
        """Return the earliest time at which `due` could have a row; None if none has a time-out."""
        while self._heap and self._heap[0][1] not in self._watched:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: int, most: int) -> list[Row]:
        """Return up to `most` rows that have been silent for their time-out, each once in a silence."""
        found: list[Row] = []
        while len(found) < most and (at := self.next()) is not None and at <= now:
            number = heapq.heappop(self._heap)[1]
            watched = self._watched[number]
            hit = self._last_hit(watched.row)
            if hit != watched.told and hit + watched.timeout_ns <= now:
                watched.told = hit
                found.append(watched.row)
            # One that was reported may end at any time; a new one is long enough a time-out later at the earliest.
            start = now if hit == watched.told else hit
            heapq.heappush(self._heap, (start + watched.timeout_ns, number))
        return found
