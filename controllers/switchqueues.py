"""Hold queues inside the switch: what is held waits there, in the kernel; this controller only says when it goes on.

A switch that has them (ours) is asked by extern entries of P4Runtime; one that has not (BMv2, any other) sends what is
held to the controller, as packet-ins. Nothing else differs: the tables decide what is held.

The switch's queues outlive the controller: one that starts anew finds them, with the hold that each belongs to. A
switch process that was lost and is back gets its queues again (what waited in them may be gone).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from controllers.errors import ControllerError, SwitchError, WriteRefused
from controllers.rows import REASON_HELD, Op
from migration.steering import HeldStats
from migration.trace import SWITCH, sent, told

LOG = logging.getLogger(__name__)

HOLD_QUEUES, LOSSES = 0x8100_0001, 0x8100_0002
"""As in dataplane/switch/p4runtime/externs.py."""
OP_RESUME = 1
_NUMBERS = 64


class Externs(Protocol):
    """What carries extern entries; see controllers.switchlink.SwitchLink."""

    async def write_extern(self, op: Op, id: int, fields: dict[str, Any]) -> None:
        """Write one; raises WriteRefused."""

    def modifying_extern_soon(
        self, id: int, fields: dict[str, Any]
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Return what modifies one by a message that is quicker than a write, and has no answer."""

    async def read_externs(self, ids: list[int]) -> list[tuple[int, dict[str, Any]]]:
        """Read some; raises SwitchError."""


class SwitchQueues:
    """The queues of one switch, by hold."""

    def __init__(self, link: Externs, budget: int) -> None:
        self.offered = False
        self._link = link
        self._budget = budget
        self._numbers: dict[int, int] = {}
        self._let_go: set[int] = set()
        """Holds whose queues were told to let go."""
        self._lost = 0
        """Packet-ins that were lost in the switch, all that are accounted for."""

    def __contains__(self, hold: object) -> bool:
        return hold in self._numbers

    @property
    def holds(self) -> set[int]:
        """Return the holds whose packets wait in the switch."""
        return set(self._numbers)

    async def on_ready(self) -> None:
        """Find out what the switch offers and has; give it what it should have."""
        try:
            found = await self._link.read_externs([HOLD_QUEUES, LOSSES])
        except SwitchError as ex:
            LOG.info("held packets wait at the controller: %s", ex)
            self.offered = False
            self._numbers.clear()
            return
        self.offered = True
        there: dict[int, int] = {}
        for id, fields in found:
            if id == LOSSES:
                self._lost = min(self._lost, int(fields["packet_ins"]))
            elif fields["packet_in"].get("reason") == REASON_HELD:
                there[int(fields["packet_in"]["id"])] = int(fields["queue"])
        missing = {hold: number for hold, number in self._numbers.items() if hold not in there}
        self._numbers = there
        for hold, number in missing.items():
            LOG.warning("hold %d: the switch was lost, and what waited in it", hold)
            await self._insert(hold, number)

    async def begin(self, hold: int) -> None:
        """Let a hold's packets wait in the switch, if it can; the hold itself is a matter of tables."""
        if not self.offered or hold in self._numbers:
            return
        free = set(range(_NUMBERS)) - set(self._numbers.values())
        if free:
            await self._insert(hold, min(free))

    async def _insert(self, hold: int, number: int) -> None:
        fields = {
            "queue": number,
            "packet_in": {"reason": REASON_HELD, "id": hold},
            "packet_out": {"operation": OP_RESUME, "id": hold},
            "budget": self._budget,
        }
        try:
            with told(SWITCH, "keep a queue for what is held", "ready"):
                await self._link.write_extern(Op.INSERT, HOLD_QUEUES, fields)
        except WriteRefused as ex:
            LOG.info("held packets wait at the controller: %s", ex)
            return
        self._numbers[hold] = number

    def letting_go(self, hold: int, room: int | None = None) -> Callable[[], Coroutine[Any, Any, None]]:
        """Return what lets go what waits, and returns at once; `release` waits for that.

        With a `room`, no more datagrams leave than take so many bytes of memory where they are received.
        """
        modify = self._link.modifying_extern_soon(HOLD_QUEUES, self._open(hold, room))

        async def let_go() -> None:
            self._let_go.add(hold)
            sent(SWITCH, "let go what waits, in order")
            await modify()

        return let_go

    async def release(self, hold: int) -> None:
        """Let go what waits, in order; what comes behind it stays behind it. Return when nothing waits any more."""
        if hold not in self._numbers:
            return
        if hold not in self._let_go:
            await self.letting_go(hold)()
        with told(SWITCH, "is anything left?", "nothing waits any more"):
            await self._link.write_extern(Op.MODIFY, HOLD_QUEUES, self._open(hold))

    async def release_within(self, hold: int, room: int) -> int:
        """Let go what waits, of the datagrams a slice for which there is `room`; return the bytes of those left."""
        if hold not in self._numbers:
            return 0
        self._let_go.add(hold)
        with told(SWITCH, "let go what the receivers have room for", "a slice of it has left"):
            await self._link.write_extern(Op.MODIFY, HOLD_QUEUES, self._open(hold, room))
        return await self._datagrams(hold)

    async def _datagrams(self, hold: int) -> int:
        """Return how many bytes of datagrams wait."""
        for _, fields in await self._link.read_externs([HOLD_QUEUES]):
            if fields["queue"] == self._numbers.get(hold):
                return int(fields.get("datagrams", 0))
        return 0

    def _open(self, hold: int, room: int | None = None) -> dict[str, Any]:
        fields = {"queue": self._numbers[hold], "holding": False}
        return fields if room is None else {**fields, "room": room}

    async def end(self, hold: int) -> HeldStats:
        """Give a queue back; return what it held, and as dropped also what the switch lost since the last time."""
        if not self.offered:
            return HeldStats()
        number = self._numbers.pop(hold, None)
        self._let_go.discard(hold)
        stats = HeldStats()
        try:
            for id, fields in await self._link.read_externs([HOLD_QUEUES, LOSSES]):
                if id == LOSSES:
                    lost, self._lost = int(fields["packet_ins"]) - self._lost, int(fields["packet_ins"])
                    stats = HeldStats(stats.packets, stats.bytes, stats.dropped + max(0, lost))
                elif fields["queue"] == number:
                    counts = (int(fields[name]) for name in ("packets", "bytes", "dropped"))
                    packets, size, dropped = counts
                    stats = HeldStats(packets, size, stats.dropped + dropped)
            if number is not None:
                await self._link.write_extern(Op.DELETE, HOLD_QUEUES, {"queue": number})
        except ControllerError as ex:  # it is empty by now: a queue more or less does no harm
            LOG.warning("hold %d: %s", hold, ex)
        return stats
