"""How far each TCP connection of a checkpoint had sent, read from its tcp-stream-*.img while the program stands still.

The file is one message, then the connection's queues, which may be megabytes: only the message is read. Of the
folder a thousand such files cost a thousand opens, so they are opened relative to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from .images import as_sent, spoken, tcp_stream_image, without_queue
from .inet import Address, InetSocket, State, is_internal, local_ends
from .inet import Ends as LocalEnds
from .steering import IpProtocol, Spoken

# Local address and port of a connection, and its peer's.
Ends = tuple[Address, int, Address, int]

HAS_CLOSED = frozenset({State.FIN_WAIT1, State.FIN_WAIT2, State.CLOSING, State.LAST_ACK})
"""States of an end that has closed its own direction (RFC 9293, 3.3.2)."""
HAS_HEARD_END = frozenset({State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK})
"""States of an end whose peer has closed the other direction, and which knows it."""
_CONNECTED = HAS_CLOSED | HAS_HEARD_END | {State.ESTABLISHED}

# Magics, length and message take about 100 bytes.
_ENOUGH = 512


def inner_streams(
    images: Path, sockets: Iterable[InetSocket], own: IPv4Address, tcp_stream: Any
) -> dict[str, bytes]:
    """Return, by name, the images of connections within the host that must be changed before a restore.

    CRIU sends on what a connection had not sent yet, as soon as its socket is there. If the peer is another socket of
    the same restore, and not there yet, the kernel answers with a reset. So what waits in the queue of such a
    connection counts as sent, and is sent again; which takes the kernel some seconds.
    """
    found = {}
    for socket in sockets:
        path = images / tcp_stream_image(socket.inode)
        if not is_inner(socket, own) or not path.exists():
            continue
        if (image := as_sent(path.read_bytes(), tcp_stream)) is not None:
            found[path.name] = image
    return found


@dataclass(frozen=True, slots=True)
class Rest:
    """What connections within the host have still to say, by inode: as soon as every socket is there again."""

    unsaid: Mapping[int, bytes]
    """What their peers have not received."""
    reopened: Mapping[int, tuple[bool, bool]]
    """Those that are open in the images, and were not: whether the end had closed its direction, its peer the other."""
    closing: Sequence[int]
    """Those that have to close their direction again, in this order."""


def without_queues(
    parts: Sequence[tuple[Path, Sequence[InetSocket]]], own: IPv4Address, tcp_stream: Any
) -> tuple[list[dict[str, bytes]], Rest]:
    """Return, for each folder of images, those of connections within the host as if nothing were under way in them.

    Their send queues are empty, and both directions open. CRIU would restore the end of a direction by a packet that
    it sends to the socket; that is acknowledged, and if the other end is not there yet, answered with a reset. Ends
    whose other end is not there keep what they have; see `inner_streams`. Raises BadImage.
    """
    reached = local_ends([one for _, sockets in parts for one in sockets], own)
    inner = [
        (images, [one for one in sockets if is_inner(one, own) and not _is_steered(one, reached)])
        for images, sockets in parts
    ]
    known = {
        ends_of(one): (images / tcp_stream_image(one.inode), one)
        for images, sockets in inner
        for one in sockets
    }
    changed: list[dict[str, bytes]] = []
    unsaid: dict[int, bytes] = {}
    reopened: dict[int, tuple[bool, bool]] = {}
    for images, sockets in inner:
        found: dict[str, bytes] = {}
        others = []
        for socket in sockets:
            here, _ = known[ends_of(socket)]
            there, peer = known.get(reversed_ends(ends_of(socket)), (None, None))
            if there is None or peer is None or not here.exists() or not there.exists():
                others.append(socket)
                continue
            if not {socket.state, peer.state} <= _CONNECTED:
                others.append(socket)
                continue
            ends = socket.state in HAS_CLOSED, socket.state in HAS_HEARD_END
            with there.open("rb", buffering=0) as file:
                content = file.read(_ENOUGH)
            image, left = without_queue(
                here.read_bytes(), content, tcp_stream, *ends, peer.state in HAS_HEARD_END
            )
            found[here.name] = image
            if any(ends):
                reopened[socket.inode] = ends
            if left:
                unsaid[socket.inode] = left
        changed.append(found | inner_streams(images, others, own, tcp_stream))
    closing = [one for _, sockets in inner for one in sockets if reopened.get(one.inode, (False,))[0]]
    # Who closed first, and was heard, does so again.
    closing.sort(key=lambda one: one.state != State.FIN_WAIT2)
    return changed, Rest(unsaid, reopened, [one.inode for one in closing])


def is_inner(socket: InetSocket, own: IPv4Address) -> bool:
    """Say whether a socket is a TCP connection whose peer is on the same host."""
    is_here = socket.remote.is_loopback or socket.remote == own
    return is_here and socket.protocol == IpProtocol.TCP and socket.is_connection


def _is_steered(socket: InetSocket, reached: LocalEnds) -> bool:
    """Say whether the peer only has the host's address as its identity: see ownroutes."""
    return not (socket.remote.is_loopback or is_internal(socket, reached))


def reversed_ends(ends: Ends) -> Ends:
    """Name a connection as its peer does."""
    local, port, remote, remote_port = ends
    return remote, remote_port, local, port


def ends_of(socket: InetSocket) -> Ends:
    """Name a connection by where it ends."""
    return socket.local, socket.local_port, socket.remote, socket.remote_port


def sent_by_inode(images: Path, sockets: Iterable[InetSocket], tcp_stream: Any) -> dict[int, Spoken]:
    """Return, by inode, how far the image counts a connection's bytes as sent."""
    found = {}
    folder = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for socket in sockets:
            if socket.protocol != IpProtocol.TCP or not socket.is_connection:
                continue
            try:
                fd = os.open(tcp_stream_image(socket.inode), os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            except FileNotFoundError:
                continue
            try:
                found[socket.inode] = spoken(os.read(fd, _ENOUGH), tcp_stream)
            finally:
                os.close(fd)
    finally:
        os.close(folder)
    return found
