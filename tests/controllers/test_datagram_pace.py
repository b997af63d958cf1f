"""When slices of datagrams leave, and when one gives up waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from controllers.pacing import pace


@dataclass
class Reader:
    """Reads what it is given, one buffer in so many looks; `buffer` is None if nobody can look at it."""

    buffer: int | None
    waiting: int
    looks_to_read: int = 1
    given: list[int] = field(default_factory=list)
    _full: int = 0
    _looks: int = 0

    def room(self) -> int | None:
        """Return what is left of the buffer."""
        self._looks += 1
        if self.looks_to_read and self._looks % self.looks_to_read == 0:
            self._full = 0
        return None if self.buffer is None else self.buffer - self._full

    def let_go(self, room: int) -> int:
        """Take as much."""
        taken = min(room, self.waiting)
        self.given.append(taken)
        self._full += taken
        self.waiting -= taken
        return self.waiting


@pytest.mark.parametrize("looks", [1, 7])
def test_slices_follow_the_reader(looks: int) -> None:
    """Each is what there is room for, and none is asked for while there is none."""
    reader = Reader(100, 250, looks)
    assert pace(reader, reader.let_go)
    assert reader.given == [100, 100, 50]


def test_what_fits_need_not_be_waited_for() -> None:
    """A few datagrams more always come while somebody sends."""
    reader = Reader(3200, 3300)
    assert pace(reader, reader.let_go)
    assert reader.given == [3200]


def test_nothing_waits() -> None:
    """One look is enough."""
    reader = Reader(100, 0)
    assert pace(reader, reader.let_go)
    assert reader.given == [0]


def test_a_reader_that_stands_still_is_not_waited_for() -> None:
    """It gets one buffer, and the rest at once."""
    reader = Reader(100, 250, looks_to_read=0)
    begin = time.monotonic()
    assert not pace(reader, reader.let_go, stall=0.05)
    assert reader.given == [100]
    assert 0.05 <= time.monotonic() - begin < 5


@pytest.mark.parametrize(("more", "slices"), [(200, 5), (100, 20)])
def test_a_sender_that_is_faster_than_the_reader(more: int, slices: int) -> None:
    """What becomes more is ended at once; what does not become less, after a while."""
    reader = Reader(100, 150)

    def let_go(room: int) -> int:
        reader.waiting += more
        return reader.let_go(room)

    begin = time.monotonic()
    assert not pace(reader, let_go, stall=0.1)
    assert time.monotonic() - begin < 5
    assert len(reader.given) == slices if more > 100 else len(reader.given) > slices


def test_nobody_knows() -> None:
    """Then nothing is paced."""
    reader = Reader(None, 250)
    assert not pace(reader, reader.let_go)
    assert reader.given == []
