"""What the load balancer's switch reports, sorted onto the desks where it is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from controllers.holdqueue import DEFAULT_BUDGET, HoldQueue, KeptPacket
from controllers.rows import REASON_DIRECT, REASON_GUARDED, REASON_HELD, REASON_HELD_SOURCE

_OPENINGS_BUDGET = 16 * 1024 * 1024

Events = Sequence[dict[str, int]]


class Receiver:
    """The stream listener of the load balancer; every method returns at once."""

    def __init__(self, hold_budget: int = DEFAULT_BUDGET) -> None:
        self.holds: dict[int, HoldQueue] = {}
        self.sent: dict[int, HoldQueue] = {}
        """What came from a location on the move, by hold; `holds` has what goes there."""
        self.guarded: dict[int, HoldQueue] = {}
        self.direct: list[tuple[int, KeptPacket]] = []
        self.direct_came = asyncio.Event()
        self.on_events: Callable[[Events], None] = lambda events: None
        self._hold_budget = hold_budget

    def hold_queue(self, hold: int) -> HoldQueue:
        """Return the queue of a hold."""
        return self.holds.setdefault(hold, HoldQueue(self._hold_budget))

    def on_packet(self, reason: int, port: int, id: int, frame: bytes) -> None:
        """Take a packet-in."""
        packet = KeptPacket(port, frame)
        if reason == REASON_HELD:
            self.hold_queue(id).put(packet)
        elif reason == REASON_HELD_SOURCE:
            self.sent.setdefault(id, HoldQueue(self._hold_budget)).put(packet)
        elif reason == REASON_GUARDED:
            self.guarded.setdefault(id, HoldQueue(_OPENINGS_BUDGET)).put(packet)
        elif reason == REASON_DIRECT and len(self.direct) < 65536:
            self.direct.append((id, packet))
            self.direct_came.set()

    def on_digest(self, events: Events) -> None:
        """Take connection events."""
        self.on_events(events)

    def take_direct(self) -> list[tuple[int, KeptPacket]]:
        """Return the openings to backends' own addresses that wait."""
        taken, self.direct = self.direct, []
        self.direct_came.clear()
        return taken
