"""Letting datagrams go no faster than they are received.

A hold's datagrams leave in slices. The first one may have left already; each further one leaves when the receivers have
read, and has the size of what they have room for then. Who has stopped reading gets all at once in the end, as from a
wire: it is for a program to read, and for a migration to come to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from migration.slowness import scaled
from migration.steering import Receivers

STALL_S = scaled(0.3)
"""When what waits has not become less for so long, it is not going to: nobody reads, or more is sent meanwhile than
slices let go. The longer that goes on, the more is lost in the end."""
PACE_S = scaled(3.0)
"""All of it takes no longer."""
_POLL_S = 0.001
_MOST_MEMORY = 32
"""Bytes of memory that a byte of a datagram takes where it is received: 1,024 and twice its own for one of 42."""


def pace(
    receivers: Receivers, let_go: Callable[[int], int], stall: float = STALL_S, most: float = PACE_S
) -> bool:
    """Let slices go until nothing waits any more; False if the rest has to go at once.

    `let_go` takes the bytes of memory that there is room for, and returns how much still waits.
    """
    begin = last = time.monotonic()
    fewest = first = 0
    while (room := receivers.room()) is not None:
        now = time.monotonic()
        if room > 0:
            left = let_go(room)
            if left * _MOST_MEMORY <= room:
                return True
            first = first or left
            if left > 2 * first + room:
                return False  # more comes than is read: it would overflow without a hold, too
            if left < fewest or fewest == 0:
                fewest, last = left, now
        else:
            time.sleep(_POLL_S)
        if now - last > stall or now - begin > most:
            return False
    return False
