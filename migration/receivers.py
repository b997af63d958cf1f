"""The UDP sockets that a program receives with: what they have room for, and what they had to drop.

Held datagrams are let go together, and a socket's buffer takes a few hundred of them (SO_RCVBUF). Nobody sends the rest
again. So whoever lets them go looks here how much there is room for. This reads the kernel, and touches no socket.
"""

from __future__ import annotations

from collections.abc import Collection

from .diag import Diag

_ENOUGH = 2
"""Room is worth a look when it is this part of a buffer: each look, and what it lets go, takes a millisecond or two."""


class DatagramSockets:
    """The UDP sockets with certain local ports, where a program runs; a Receivers of steering.py."""

    def __init__(self, diag: Diag, ports: Collection[int]) -> None:
        """Note what they have dropped so far."""
        self._diag, self._ports = diag, ports
        self._dropped_before = self._drops()

    def room(self) -> int | None:
        """Return how many bytes of memory the fullest one has left, 0 if it is next to nothing; None if unknown."""
        try:
            found = self._diag.udp_memory(self._ports)
        except OSError:
            return None
        if not found:
            return None
        fullest = min(found, key=lambda one: one.limit - one.allocated)
        room = fullest.limit - fullest.allocated
        return room if room * _ENOUGH >= fullest.limit else 0

    def drops(self) -> int:
        """Return how many datagrams they have dropped since this was made, for want of room or a wrong checksum."""
        return max(0, self._drops() - self._dropped_before)

    def _drops(self) -> int:
        try:
            return sum(one.drops for one in self._diag.udp_memory(self._ports))
        except OSError:
            return 0
