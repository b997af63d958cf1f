"""Asking the kernel about sockets (sock_diag), in any network namespace, without a child process.

Written against <linux/sock_diag.h>, <linux/inet_diag.h> and <linux/unix_diag.h>. One dump of a few hundred
sockets takes well under a millisecond, which matters because one is made while programs stand still.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from .inet import Address, InetSocket, State, plain
from .namespaces import in_netns

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
SOCK_DESTROY = 21
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLM_F_DUMP = 0x300
UDIAG_SHOW_PEER, UDIAG_SHOW_ICONS, UDIAG_SHOW_RQLEN = 0x4, 0x8, 0x10
UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_RQLEN = 2, 3, 4
TCP_LISTEN = 10  # of UNIX sockets, too
INET_DIAG_INFO = 2
INET_DIAG_SKMEMINFO = 7
INET_DIAG_MD5SIG = 18
ALL_STATES = 0xFFFFFFFF
RECEIVE_SIZE = 1 << 17

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence, port
# family, protocol, extensions, padding, states; then inet_diag_sockid (48 bytes, all zero: every socket)
_INET_REQUEST = struct.Struct("=BBBxI48x")
# the same with an inet_diag_sockid: source and destination port, addresses, interface, cookie (all ones: any)
_INET_ONE = struct.Struct("=BBBxI2s2s16s16sI8s")
# family, state, timer, retrans, [sport, dport] big endian, src, dst, interface, cookie
_INET_MESSAGE = struct.Struct("=BBBB2s2s16s16sI8s")
# expires, receive queue, send queue, uid, inode
_INET_REST = struct.Struct("=IIIII")
# family, protocol, padding, states, inode, show, cookie
_UNIX_REQUEST = struct.Struct("=BBHIII8s")
_UNIX_MESSAGE = struct.Struct("=BBBxI8s")  # family, type, state, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")
# <linux/sock_diag.h>, SK_MEMINFO_*: allocated for receiving, its limit, five more, the backlog, drops
_MEMORY = struct.Struct("=II24xI")


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A UNIX socket and the inode of the one that it is connected to (0: none)."""

    inode: int
    peer: int
    unread: int = 0
    """Bytes that it has sent and nobody has read."""
    waiting: tuple[int, ...] = ()
    """Of a listener: the inodes of those whose connections it has not accepted, 0 for one that has been closed."""


@dataclass(frozen=True, slots=True)
class ReceiveMemory:
    """The bytes of memory that a socket's receive buffer takes and may take, and the packets that it refused."""

    allocated: int
    limit: int
    drops: int


class Diag:
    """An open sock_diag socket in the network namespace of a process."""

    def __init__(self, pid: int) -> None:
        self._socket = in_netns(
            pid,
            lambda: socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
            ),
        )
        self._socket.settimeout(5)

    def inet(self) -> list[InetSocket]:
        """List all TCP and UDP sockets."""
        return self._inet(socket.IPPROTO_TCP, ALL_STATES) + self._inet(socket.IPPROTO_UDP, ALL_STATES)

    def tcp_connections(self) -> list[InetSocket]:
        """List the TCP sockets that have a peer."""
        return self._inet(socket.IPPROTO_TCP, ALL_STATES & ~(1 << State.LISTEN | 1 << State.CLOSE))

    def tcp_connection(
        self, local: Address, local_port: int, remote: Address, remote_port: int
    ) -> InetSocket | None:
        """Return the TCP socket with these two ends: one look-up, where a list is a walk through the kernel's table."""
        self._send(_one(local, local_port, remote, remote_port), 0)
        data = self._socket.recv(RECEIVE_SIZE)
        _, kind, *_ = _NLMSG.unpack_from(data)
        if kind == NLMSG_ERROR:
            _raise_error(data, 0, but=errno.ENOENT)
            return None
        found = _parse_inet(socket.IPPROTO_TCP, data[_NLMSG.size :])
        # Where there is no such connection, the kernel answers with the listener.
        is_it = (found.local, found.local_port, found.remote, found.remote_port) == (
            local,
            local_port,
            remote,
            remote_port,
        )
        return found if is_it else None

    def tcp_waiting(self) -> list[InetSocket]:
        """List the listeners, and the handshakes that are under way with them."""
        states = (State.LISTEN, State.SYN_RECV, State.NEW_SYN_RECV)
        return self._inet(socket.IPPROTO_TCP, sum(1 << state for state in states))

    def tcp_closing(self) -> list[InetSocket]:
        """List the TCP connections whose local end is closed, for writing at least, and which are not over."""
        states = (State.FIN_WAIT1, State.FIN_WAIT2, State.CLOSING, State.LAST_ACK)
        return self._inet(socket.IPPROTO_TCP, sum(1 << state for state in states))

    def tcp_ending(self) -> list[InetSocket]:
        """List the TCP connections that `tcp_closing` does, and those that are over and wait (TIME_WAIT)."""
        return self.tcp_closing() + self._inet(socket.IPPROTO_TCP, 1 << State.TIME_WAIT)

    def destroy(self, one: InetSocket) -> None:
        """Let the kernel forget a TCP connection (CONFIG_INET_DIAG_DESTROY); its peer hears RST, unless it is over."""
        request = _one(one.local, one.local_port, one.remote, one.remote_port)
        self._send(request, NLM_F_ACK, SOCK_DESTROY)
        _raise_error(self._socket.recv(RECEIVE_SIZE), 0)

    def _inet(self, protocol: int, states: int) -> list[InetSocket]:
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _INET_REQUEST.pack(family, protocol, 0, states)
            found += [_parse_inet(protocol, message) for message in self._dump(request)]
        return found

    def keyed(self) -> set[int]:
        """Return the inodes of the TCP sockets that have MD5 keys."""
        found = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            states = ALL_STATES & ~(1 << State.TIME_WAIT)
            # The kernel tells of keys only together with the information for `ss -i`.
            extensions = 1 << (INET_DIAG_INFO - 1)
            request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, extensions, states)
            for message in self._dump(request):
                *_, inode = _INET_REST.unpack_from(message, _INET_MESSAGE.size)
                attributes = _attributes(message, _INET_MESSAGE.size + _INET_REST.size)
                if any(kind == INET_DIAG_MD5SIG for kind, _ in attributes):
                    found.add(inode)
        return found

    def udp_memory(self, ports: Container[int]) -> list[ReceiveMemory]:
        """Return the receive buffers of the UDP sockets with these local ports."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            extensions = 1 << (INET_DIAG_SKMEMINFO - 1)
            request = _INET_REQUEST.pack(family, socket.IPPROTO_UDP, extensions, ALL_STATES)
            for message in self._dump(request):
                if _parse_inet(socket.IPPROTO_UDP, message).local_port not in ports:
                    continue
                for kind, at in _attributes(message, _INET_MESSAGE.size + _INET_REST.size):
                    if kind == INET_DIAG_SKMEMINFO:
                        found.append(ReceiveMemory(*_MEMORY.unpack_from(message, at)))
        return found

    def unix(self) -> list[UnixSocket]:
        """List all UNIX sockets."""
        show = UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN
        request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, ALL_STATES, 0, show, b"\xff" * 8)
        return [_parse_unix(message) for message in self._dump(request)]

    def _dump(self, request: bytes) -> Iterator[bytes]:
        self._send(request, NLM_F_DUMP)
        while True:
            data = self._socket.recv(RECEIVE_SIZE)
            at = 0
            while at < len(data):
                length, kind, *_ = _NLMSG.unpack_from(data, at)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    _raise_error(data, at)
                yield data[at + _NLMSG.size : at + length]
                at += (length + 3) & ~3

    def _send(self, request: bytes, flags: int, kind: int = SOCK_DIAG_BY_FAMILY) -> None:
        head = _NLMSG.pack(_NLMSG.size + len(request), kind, NLM_F_REQUEST | flags, 0, 0)
        self._socket.send(head + request)

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def __enter__(self) -> Diag:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one(local: Address, local_port: int, remote: Address, remote_port: int) -> bytes:
    """Return the request for the TCP socket with two ends."""
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    ports = local_port.to_bytes(2, "big"), remote_port.to_bytes(2, "big")
    ends = local.packed.ljust(16, b"\0"), remote.packed.ljust(16, b"\0")
    return _INET_ONE.pack(family, socket.IPPROTO_TCP, 0, ALL_STATES, *ports, *ends, 0, b"\xff" * 8)


def _raise_error(data: bytes, at: int, but: int = 0) -> None:
    """Raise the OSError of an error message, unless it is the one that is expected."""
    (number,) = struct.unpack_from("=i", data, at + _NLMSG.size)
    if -number != but:
        raise OSError(-number, "sock_diag")


def _address(family: int, packed: bytes) -> Address:
    if family == socket.AF_INET:
        return IPv4Address(packed[:4])
    return plain(IPv6Address(packed))


def _parse_inet(protocol: int, message: bytes) -> InetSocket:
    family, state, _, _, sport, dport, source, target, _, _ = _INET_MESSAGE.unpack_from(message)
    _, receive_queue, send_queue, _, inode = _INET_REST.unpack_from(message, _INET_MESSAGE.size)
    return InetSocket(
        protocol=protocol,
        state=state,
        local=_address(family, source),
        local_port=int.from_bytes(sport, "big"),
        remote=_address(family, target),
        remote_port=int.from_bytes(dport, "big"),
        inode=inode,
        receive_queue=receive_queue,
        send_queue=send_queue,
    )


def _parse_unix(message: bytes) -> UnixSocket:
    _, _, state, inode, _ = _UNIX_MESSAGE.unpack_from(message)
    peer, unread, waiting = 0, 0, b""
    for kind, value in _values(message, _UNIX_MESSAGE.size):
        if kind == UNIX_DIAG_PEER:
            (peer,) = struct.unpack("=I", value)
        elif kind == UNIX_DIAG_ICONS:
            waiting = value
        elif kind == UNIX_DIAG_RQLEN and state != TCP_LISTEN:  # of a listener it is its backlog
            _, unread = struct.unpack("=II", value)
    return UnixSocket(inode, peer, unread, struct.unpack(f"={len(waiting) // 4}I", waiting))


def _values(message: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """List the attributes of a message from somewhere on: their kinds and their values."""
    for kind, begin in _attributes(message, at):
        (length,) = struct.unpack_from("=H", message, begin - _ATTRIBUTE.size)
        yield kind, message[begin : begin + length - _ATTRIBUTE.size]


def _attributes(message: bytes, at: int) -> Iterator[tuple[int, int]]:
    """List the attributes of a message from somewhere on: their kinds, and where their values begin."""
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        yield kind, at + _ATTRIBUTE.size
        at += max((length + 3) & ~3, _ATTRIBUTE.size)
