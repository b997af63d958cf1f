"""Internet sockets as a migration sees them, whether read from the kernel or from an image. Pure values."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from .steering import (
    ClosingConnection,
    Endpoint,
    InnerConnection,
    IpProtocol,
    Move,
    MovedConnection,
    MovedListener,
    Spoken,
)

Address = IPv4Address | IPv6Address


class State(IntEnum):
    """The kernel's socket states (include/net/tcp_states.h); UDP uses ESTABLISHED and CLOSE."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13


@dataclass(frozen=True, slots=True)
class InetSocket:
    """One socket; v4-mapped IPv6 addresses are kept as the IPv4 addresses that they are on the wire."""

    protocol: int
    state: int
    local: Address
    local_port: int
    remote: Address
    remote_port: int
    inode: int = 0
    receive_queue: int = 0
    send_queue: int = 0

    @property
    def is_bound_to_any(self) -> bool:
        """Say whether the socket takes packets for every local address."""
        return self.local.is_unspecified

    @property
    def is_connection(self) -> bool:
        """Say whether the socket has a peer."""
        return self.remote_port != 0 and self.state not in (State.LISTEN, State.CLOSE)

    @property
    def is_receiver(self) -> bool:
        """Say whether the socket waits for strangers: a listener, or an unconnected UDP socket with a port."""
        if self.protocol == IpProtocol.TCP:
            return self.state == State.LISTEN
        return self.local_port != 0 and not self.is_connection

    def __str__(self) -> str:
        name = IpProtocol(self.protocol).name if self.protocol in (6, 17) else f"protocol {self.protocol}"
        text = f"{name} {self.local}:{self.local_port}"
        return f"{text} to {self.remote}:{self.remote_port}" if self.is_connection else text


def plain(address: Address) -> Address:
    """Turn a v4-mapped IPv6 address into its IPv4 address; leave others as they are."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped if mapped is not None else address


_PROTOCOLS = {int(protocol): protocol for protocol in IpProtocol}

# Local port and peer of a connection, as the program sees them.
Flow = tuple[int, int, Address, int]

# Protocol and address of the near ends of sockets, and of the far end if they are connected.
Ends = frozenset[tuple[int, Address, int, Address | None, int]]


def flow(socket: InetSocket) -> Flow:
    """Name a connection apart from its local address."""
    return socket.protocol, socket.local_port, socket.remote, socket.remote_port


@dataclass(frozen=True)
class Relocation:
    """How local addresses change: the host's own one, and the ports of single connections."""

    old: IPv4Address
    new: IPv4Address
    ports: Mapping[Flow, int]
    devices: Mapping[str, str] = field(default_factory=dict)
    """The names of the interfaces that have these addresses, to which sockets may be bound (SO_BINDTODEVICE)."""

    def port(self, socket: InetSocket) -> int:
        """Return a socket's local port after the move."""
        return self.ports.get(flow(socket), socket.local_port) if self.ports else socket.local_port

    def apply(self, socket: InetSocket, internal: Ends) -> InetSocket:
        """Return the socket as it is after the move: itself, if nothing changes.

        `internal` holds the local ends of all moved sockets: a peer among them moves, too.
        """
        moves = socket.local == self.old
        peer_moves = socket.remote == self.old and is_internal(socket, internal)
        port = self.port(socket)
        if not moves and not peer_moves and port == socket.local_port:
            return socket
        remote_port = socket.remote_port
        if peer_moves and self.ports:
            # The peer's own end may get another port, too.
            mirrored = (socket.protocol, socket.remote_port, socket.local, socket.local_port)
            remote_port = self.ports.get(mirrored, remote_port)
        return InetSocket(
            socket.protocol,
            socket.state,
            self.new if moves else socket.local,
            port,
            self.new if peer_moves else socket.remote,
            remote_port,
            socket.inode,
            socket.receive_queue,
            socket.send_queue,
        )


def local_ends(sockets: Iterable[InetSocket], own: IPv4Address) -> Ends:
    """Return where the sockets can be reached on their own host; those bound to any address count as `own`.

    One that is connected can be reached by its peer only: another connection may lead to the same end by way of the
    switch, from a peer that has the host's own address as its identity (see ownroutes).
    """
    return frozenset(
        (s.protocol, s.local, s.local_port, s.remote, s.remote_port)
        if s.is_connection
        else (s.protocol, own if s.is_bound_to_any else s.local, s.local_port, None, 0)
        for s in sockets
    )


def is_internal(socket: InetSocket, ends: Ends) -> bool:
    """Say whether a connection's peer is among the moved sockets themselves.

    Only UDP is connected with what is for anybody: of TCP, that a listener has the peer's address tells nothing. A
    program that has come home may have called itself by that address from elsewhere, over the switch; then the other
    end is a socket that knows this one under the address of that time.
    """
    peer = (socket.protocol, socket.remote, socket.remote_port)
    if (*peer, socket.local, socket.local_port) in ends:
        return True
    return socket.protocol != IpProtocol.TCP and (*peer, None, 0) in ends


def has_inner_connections(sockets: Sequence[InetSocket], own: IPv4Address) -> bool:
    """Say whether some of the moved sockets are connected with each other."""
    ends = local_ends(sockets, own)
    return any(socket.is_connection and is_internal(socket, ends) for socket in sockets)


def build_move(
    identity: str,
    source: str,
    destination: str,
    sockets: Sequence[InetSocket],
    relocation: Relocation,
    sent: Mapping[int, Spoken] | None = None,
    closing: Sequence[InetSocket] = (),
) -> Move:
    """List what the network has to know of a move: listeners, and connections with peers elsewhere.

    `sent` has, by inode, how far the image counts a connection's bytes as sent. `closing` are connections that stay, of
    which those matter that have to do with a port that moves. The order does not depend on that of
    the sockets, so that equal moves are equal, whether read from the kernel or from an image.
    """
    until = sent or {}
    ends = local_ends(sockets, relocation.old)
    listeners: dict[MovedListener, None] = {}
    connections: list[MovedConnection] = []
    inner: dict[InnerConnection, None] = {}
    for socket in sockets:
        if socket.protocol not in _PROTOCOLS or not is_outward(socket, relocation.old):
            continue
        protocol = _PROTOCOLS[socket.protocol]
        old = Endpoint(protocol, relocation.old, socket.local_port)
        if socket.is_receiver:
            listeners[MovedListener(old, Endpoint(protocol, relocation.new, socket.local_port))] = None
        elif socket.is_connection and is_internal(socket, ends):
            moved = relocation.apply(socket, ends)
            if isinstance(moved.remote, IPv4Address) and moved.remote == moved.local:
                near, far = (
                    Endpoint(protocol, moved.remote, port) for port in (moved.local_port, moved.remote_port)
                )
                inner[InnerConnection(old, near, far)] = None
        elif socket.is_connection and isinstance(socket.remote, IPv4Address):
            new = Endpoint(protocol, relocation.new, relocation.port(socket))
            peer = Endpoint(protocol, socket.remote, socket.remote_port)
            connections.append(MovedConnection(old, new, peer, until.get(socket.inode)))
    connections.sort(key=lambda m: (m.old.port, int(m.peer.address), m.peer.port))
    return Move(
        identity,
        source,
        destination,
        tuple(sorted(listeners, key=lambda m: (m.old.protocol, m.old.port))),
        tuple(connections),
        _staying(closing, sockets, relocation.old),
        tuple(sorted(inner, key=lambda m: (m.old.port, m.peer.port))),
    )


def _staying(
    closing: Sequence[InetSocket], moved: Sequence[InetSocket], own: IPv4Address
) -> tuple[ClosingConnection, ...]:
    """List what is being closed on the ports of what moves, and does not move itself."""
    if not closing:
        return ()
    outward = [s for s in moved if s.protocol == IpProtocol.TCP and is_outward(s, own)]
    carried = {flow(s) for s in outward if s.is_connection}
    left = [s for s in closing if flow(s) not in carried]
    return closing_connections(left, {s.local_port for s in outward}, own)


def closing_connections(
    closing: Iterable[InetSocket], ports: Container[int], own: IPv4Address
) -> tuple[ClosingConnection, ...]:
    """List those TCP sockets of a host that are on some ports of its address and have their peers elsewhere."""
    ends = {
        ClosingConnection(
            Endpoint(IpProtocol.TCP, own, s.local_port), Endpoint(IpProtocol.TCP, s.remote, s.remote_port)
        )
        for s in closing
        if s.local == own and s.local_port in ports and isinstance(s.remote, IPv4Address) and s.remote != own
    }
    return tuple(sorted(ends, key=lambda c: (c.location.port, int(c.peer.address), c.peer.port)))


def is_outward(socket: InetSocket, own: IPv4Address) -> bool:
    """Say whether the socket can be reached from other hosts."""
    return socket.is_bound_to_any or socket.local == own


def reverse(move: Move) -> Move:
    """Describe the way back."""
    return Move(
        f"{move.id}-back",
        move.destination,
        move.source,
        tuple(MovedListener(m.new, m.old) for m in move.listeners),
        tuple(MovedConnection(m.new, m.old, m.peer) for m in move.connections),
    )
