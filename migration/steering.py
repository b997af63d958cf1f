"""What a migration asks of the network, as the checkpoint's facts and nothing else.

The network gives every endpoint an identity (what its peers call it) that stays, and a location (where its
program's socket is bound) that a migration changes. A migration only knows locations: the local addresses in
the image, before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Protocol


class IpProtocol(IntEnum):
    """IANA protocol numbers."""

    TCP = 6
    UDP = 17


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local or remote address of a socket."""

    protocol: IpProtocol
    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class MovedListener:
    """A socket that accepts connections (or any unconnected UDP socket).

    `old` and `new` carry the hosts' own addresses also when the socket is bound to 0.0.0.0 or ::.
    """

    old: Endpoint
    new: Endpoint


@dataclass(frozen=True, slots=True)
class Spoken:
    """How far a TCP connection has spoken as its image knows it, and goes on from as a copy."""

    until: int
    """The sequence number behind what counts as sent (SND.NXT of RFC 9293)."""
    stamp: int | None = None
    """The connection's timestamp clock, if it has one (TSval of RFC 7323)."""


@dataclass(frozen=True, slots=True)
class MovedConnection:
    """An established connection: its local end before and after, and its peer as the program sees it."""

    old: Endpoint
    new: Endpoint
    peer: Endpoint
    sent: Spoken | None = field(default=None, compare=False)
    """TCP, once the image is there. What the frozen source's kernel may have sent beyond it must not reach the peer:
    new bytes, since the copy will send them again; and later timestamps (of what it has sent again), since the copy's
    clock goes on from the image's, and the peer would refuse the copy's segments as old ones (PAWS)."""


@dataclass(frozen=True, slots=True)
class ClosingConnection:
    """A connection that its program has closed: no process holds it, and the kernel of its host ends it.

    Until all that was written has arrived, its packets have to find that kernel, wherever the program has gone.
    """

    location: Endpoint
    peer: Endpoint


@dataclass(frozen=True, slots=True)
class InnerConnection:
    """One end of a connection whose two ends move together, by the host's address; the peer is where it will be."""

    old: Endpoint
    new: Endpoint
    peer: Endpoint


@dataclass(frozen=True, slots=True)
class Move:
    """Everything whose location changes in one migration.

    `id` is the migration's. `source` and `destination` are host names. `closing` stays at the source: it has been
    accepted on a port that moves, and lives by its own rows from `extend` on, held by nobody. `inner` are the ends
    of connections by the host's own address whose other end moves, too: each twice, once from either end.
    """

    id: str
    source: str
    destination: str
    listeners: Sequence[MovedListener] = ()
    connections: Sequence[MovedConnection] = ()
    closing: Sequence[ClosingConnection] = ()
    inner: Sequence[InnerConnection] = ()


@dataclass(frozen=True, slots=True)
class HeldStats:
    """What a hold kept, and what it had to drop because its byte budget was used up."""

    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    receiver_drops: int = 0
    """Datagrams that the program's own UDP sockets dropped while what was held was let go: their buffers were full. A
    network does not see them; whoever has the sockets counts them."""


class Receivers(Protocol):
    """Those who get the datagrams that are let go."""

    def room(self) -> int | None:
        """Return how many bytes of memory they have left for datagrams, 0 while it is not worth it; None if unknown."""


class SteeringError(Exception):
    """The network refused or could not be reached; the message is one clear sentence."""


@dataclass
class NullSteering:
    """A network that needs no change: source and destination share their address. For tests and local moves."""

    calls: list[str] = field(default_factory=list)

    def prepare(self, move: Move) -> None:
        self.calls.append("prepare")

    def hold(self, move: Move, at_once: bool = False, begun: Callable[[], None] = lambda: None) -> None:
        self.calls.append("hold")
        begun()

    def start_hold(self, move: Move) -> None:
        self.calls.append("start_hold")

    def drained(self, move: Move) -> None:
        self.calls.append("drained")

    def muted(self, move: Move) -> None:
        self.calls.append("muted")

    def extend(self, move: Move) -> None:
        self.calls.append("extend")

    def switch_over(self, move: Move) -> None:
        self.calls.append("switch_over")

    def releasing(self, move: Move, room: int | None = None) -> Callable[[], None]:
        return lambda: None

    def release(self, move: Move, receivers: Receivers | None = None) -> HeldStats:
        self.calls.append("release")
        return HeldStats()

    def disown(self, move: Move) -> None:
        self.calls.append("disown")

    def switch_back(self, move: Move) -> None:
        self.calls.append("switch_back")

    def finish(self, move: Move) -> None:
        self.calls.append("finish")


class Steering(Protocol):
    """The network's part of a migration, in the order of the calls.

    Every method is synchronous, idempotent, and raises SteeringError. `switch_back` undoes `prepare` and
    `switch_over`, whichever of them were done; `release` ends every hold of the move, wherever it points by then.
    """

    def prepare(self, move: Move) -> None:
        """Before the freeze: make what the program will send from its new location carry its old identity.

        `move` lists the sockets seen in /proc; `extend` brings those that came later.
        """

    def hold(self, move: Move, at_once: bool = False, begun: Callable[[], None] = lambda: None) -> None:
        """Keep every packet for the move's endpoints, and return only when what had already passed has arrived.

        `begun` is called just before that is under way: what happens to the program from then on happens to one whose
        packets are about to be kept.

        With `at_once` it may keep what the source sends as well, from the same moment on: what is sent until `muted`
        is next to nothing.

        It is `start_hold` and `drained`, for those who have nothing to do in between; and it may begin what `muted`
        waits for.
        """

    def start_hold(self, move: Move) -> None:
        """Keep every packet for the move's endpoints from now on; what had passed may still be under way."""

    def drained(self, move: Move) -> None:
        """Return when nothing that passed before `start_hold` is on its way to the source's sockets any more."""

    def muted(self, move: Move) -> None:
        """Return when everything that the source's sockets send is kept: to be called before their state is read."""

    def extend(self, move: Move) -> None:
        """After the freeze: `move` is now exactly what the image holds; prepare and hold the difference.

        Raises if not all that `hold` asked for was done, as `switch_over` does: one of both comes before the original
        is ended.
        """

    def switch_over(self, move: Move) -> None:
        """Send the endpoints' packets to their new location from now on (they stay held).

        Of what the source has sent, the image's share goes on to the peers; the rest waits for `release`.
        """

    def releasing(self, move: Move, room: int | None = None) -> Callable[[], None]:
        """Get ready for `release` beside the caller, and return what begins it, to be called at most once.

        It lets go as many datagrams as take `room` bytes of memory where they are received, or all; and all else.
        Neither waits for anything or says how it went: `release` does, and has to follow in any case.
        """

    def release(self, move: Move, receivers: Receivers | None = None) -> HeldStats:
        """Send on what was held, in order, to wherever the endpoints are now, and stop holding.

        UDP's datagrams leave as `receivers` have room for them, as long as these go on reading; else all at once. TCP's
        segments do not wait for that.

        If the move was switched over, what the source sends beyond its image goes on being kept from the peers, until
        `finish`; else it is sent on.
        """

    def disown(self, move: Move) -> None:
        """On the way back, when the original has ended and is about to be restored from its image.

        What it has sent beyond the image is not to reach its peers, for the restored one knows nothing of it. And the
        network has none of its places at the source any more, whatever it did to keep them from others.
        """

    def switch_back(self, move: Move) -> None:
        """Undo `prepare` and `switch_over`: the endpoints live at their old location, as before."""

    def finish(self, move: Move) -> None:
        """The target is verified and the source is gone: forget what only a way back would need."""
