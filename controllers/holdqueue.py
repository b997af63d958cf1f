"""Packets that wait at the controller, in the order in which they came, within a budget of bytes.

What does not fit any more is dropped and counted: the newest, as a router's queue would. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from controllers.frames import is_datagram

DEFAULT_BUDGET = 64 * 1024 * 1024
DATAGRAM_OVERHEAD = 1024
"""Bytes of memory that a datagram takes beside twice its own, at most (Linux: SKB_TRUESIZE)."""


@dataclass(frozen=True, slots=True)
class KeptPacket:
    """A frame as it came in, and the port that it came in on."""

    port: int
    frame: bytes


@dataclass
class HoldQueue:
    """One hold's packets; the totals count what was ever put in."""

    budget: int = DEFAULT_BUDGET
    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    _waiting: deque[KeptPacket] = field(default_factory=deque)
    _size: int = 0

    def put(self, packet: KeptPacket) -> bool:
        """Keep a packet; False if there is no room for it."""
        if self._size + len(packet.frame) > self.budget:
            self.dropped += 1
            return False
        self._waiting.append(packet)
        self._size += len(packet.frame)
        self.packets += 1
        self.bytes += len(packet.frame)
        return True

    def take_all(self) -> list[KeptPacket]:
        """Return what waits, oldest first, and keep it no longer."""
        taken = list(self._waiting)
        self._waiting.clear()
        self._size = 0
        return taken

    def take_within(self, room: int) -> list[KeptPacket]:
        """Return, and keep no longer, all but the datagrams, and of these as many as there is `room` for; at least one.

        `room` is in bytes of the memory that a datagram takes where it is received.
        """
        taken: list[KeptPacket] = []
        left: deque[KeptPacket] = deque()
        datagrams = 0
        for packet in self._waiting:
            if is_datagram(packet.frame):
                room -= 2 * len(packet.frame) + DATAGRAM_OVERHEAD
                datagrams += 1
                if left or (room < 0 and datagrams > 1):
                    left.append(packet)
                    continue
            taken.append(packet)
        self._waiting = left
        self._size = sum(len(packet.frame) for packet in left)
        return taken

    def put_back(self, packets: Sequence[KeptPacket]) -> None:
        """Keep again what was taken last, in front of what has come since."""
        self._waiting.extendleft(reversed(packets))
        self._size += sum(len(packet.frame) for packet in packets)

    def waiting(self) -> Iterator[KeptPacket]:
        """Yield what waits, oldest first."""
        return iter(self._waiting)

    @property
    def datagrams(self) -> int:
        """Return the bytes of UDP's that wait now."""
        return sum(len(packet.frame) for packet in self._waiting if is_datagram(packet.frame))

    @property
    def size(self) -> int:
        """Return the bytes that wait now."""
        return self._size

    def __len__(self) -> int:
        return len(self._waiting)
