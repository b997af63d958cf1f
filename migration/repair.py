"""Taking the TCP sockets of processes out of repair mode, where CRIU puts them while it dumps.

In repair mode the kernel lets nobody read or write a connection, and closes it without a word to its peer. A CRIU
that ends a failed or a backed-out dump in order turns it off again; one that was killed does not. The processes'
descriptors are duplicated (pidfd_getfd), so they may be stopped or traced meanwhile.

Turning repair mode on made the kernel forget SO_REUSEADDR. What a connection had is lost; it is given what a
listener of its port has, which is where accepted connections have it from.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from . import tree
from .inet import plain
from .streams import Ends, reversed_ends

# <linux/tcp.h>
TCP_REPAIR = 19
TCP_REPAIR_OFF = 0
TCP_REPAIR_ON = 1
TCP_REPAIR_OFF_NO_WP = -1
# <asm-generic/socket.h>
SO_SNDBUFFORCE = 32
SO_BUF_LOCK = 72
_SYS_PIDFD_GETFD = 438
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_libc = ctypes.CDLL(None, use_errno=True)


def unrepair(pids: Iterable[int], *, probe: bool = False) -> int:
    """Turn repair mode off for every TCP socket of the processes; return for how many it was on.

    An original has missed nothing but what its network holds back, which comes later, so it need not speak:
    that is the default. `probe` makes the kernel ask the peer for its window, which a copy needs.
    """
    with tcp_sockets(pids) as sockets:
        repaired = [s for s in sockets if s.getsockopt(socket.IPPROTO_TCP, TCP_REPAIR)]
        reusing = {s.getsockname()[1] for s in sockets if s not in repaired and is_reusing_listener(s)}
        for connection in repaired:
            off = TCP_REPAIR_OFF if probe else TCP_REPAIR_OFF_NO_WP
            connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, off)
            if connection.getsockname()[1] in reusing:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return len(repaired)


def disconnect(pids: Iterable[int]) -> int:
    """Break all connections of the processes off, without a word to their peers; return how many there were.

    Their kernel then sends nothing for them any more, and accepts nothing, however long a descriptor of theirs stays
    open.
    """
    with tcp_sockets(pids) as sockets:
        connections = [s for s in sockets if not s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
        for listener in sockets:
            if listener not in connections:
                listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON)
            # connect(2): an address of family AF_UNSPEC dissolves the association.
            if _libc.connect(connection.fileno(), bytes(16), 16) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"disconnect: {os.strerror(number)}")
        return len(connections)


def say(pids: Iterable[int], unsaid: Mapping[Ends, bytes], closing: Sequence[Ends] = ()) -> None:
    """Write what connections have still to say into their sockets, once all of them, and their peers, are there.

    Then those that are `closing` close their direction, in that order. The processes stand still. Their sockets leave
    repair mode, and the kernel delivers what the peers have room for. Raises OSError, or ProcessLookupError if a socket
    is missing.
    """
    wanted = {end for ends in (*unsaid, *closing) for end in (ends, reversed_ends(ends))}
    with tcp_sockets(pids) as sockets:
        found = {ends: one for one in sockets if (ends := ends_of(one)) is not None and ends in wanted}
        if missing := wanted - found.keys():
            here, own, there, port = min(missing, key=str)
            raise ProcessLookupError(errno.ESRCH, f"no socket connects {here}:{own} with {there}:{port}")
        for one in found.values():
            one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
        for ends, content in unsaid.items():
            fill(found[ends], content)
        for ends in closing:
            found[ends].shutdown(socket.SHUT_WR)


def fill(connection: socket.socket, content: bytes) -> None:
    """Write without waiting; a send buffer that is too small for it is enlarged, as it was when it took all this."""
    left = memoryview(content)
    while left:
        try:
            left = left[connection.send(left, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            size = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            lock = connection.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
            connection.setsockopt(
                socket.SOL_SOCKET, SO_SNDBUFFORCE, size
            )  # the kernel doubles what it is told
            connection.setsockopt(socket.SOL_SOCKET, SO_BUF_LOCK, lock)


def ends_of(connection: socket.socket) -> Ends | None:
    """Name a socket by where it ends, if it is connected."""
    try:
        (here, own), (there, port) = connection.getsockname()[:2], connection.getpeername()[:2]
    except OSError:
        return None
    return plain(ip_address(here)), own, plain(ip_address(there)), port


def silence(pids: Iterable[int]) -> None:
    """Turn repair mode on for every connection of the processes: when they end, their peers will not hear of it."""
    with tcp_sockets(pids) as sockets:
        for one in sockets:
            with suppress(OSError):  # a listener, or one that is closing
                if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_ON)


def reusing(pids: Iterable[int]) -> set[tuple[int, int]]:
    """Return the TCP sockets with SO_REUSEADDR, which repair mode takes from them: inner PID and descriptor."""
    found = set()
    for pid, fd, one in _each_tcp_socket(pids):
        with one:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR):
                found.add((tree.inside(pid), fd))
    return found


def reuse(copies: Iterable[int], wanted: set[tuple[int, int]]) -> None:
    """Give copies of sockets SO_REUSEADDR, once they have left repair mode."""
    for pid, fd, one in _each_tcp_socket(copies):
        with one:
            if (tree.inside(pid), fd) in wanted:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _each_tcp_socket(pids: Iterable[int]) -> Iterator[tuple[int, int, socket.socket]]:
    for pid in pids:
        for file in tree.open_files([pid]):
            if file.target.startswith("socket:"):
                for one in _duplicate(pid, file.fd):
                    yield pid, file.fd, one


def is_reusing_listener(listener: socket.socket) -> bool:
    """Say whether a socket listens, with SO_REUSEADDR."""
    options = (socket.SO_ACCEPTCONN, socket.SO_REUSEADDR)
    return all(listener.getsockopt(socket.SOL_SOCKET, option) for option in options)


@contextmanager
def tcp_sockets(pids: Iterable[int]) -> Iterator[list[socket.socket]]:
    """Duplicate every TCP socket of the processes, each once; processes that are gone have none."""
    inodes: set[str] = set()
    found: list[socket.socket] = []
    try:
        for pid in pids:
            for file in tree.open_files([pid]):
                if file.target.startswith("socket:") and file.target not in inodes:
                    inodes.add(file.target)
                    found += _duplicate(pid, file.fd)
        yield found
    finally:
        for one in found:
            one.close()


def _duplicate(pid: int, fd: int) -> list[socket.socket]:
    """Return a process's socket if it is TCP."""
    try:
        own = socket.socket(fileno=getfd(pid, fd))
    except (ProcessLookupError, FileNotFoundError):
        return []  # the process has ended, or closed it
    except OSError as ex:
        if ex.errno == errno.EBADF:  # closed meanwhile
            return []
        raise
    if own.family in _FAMILIES and own.proto == socket.IPPROTO_TCP:
        return [own]
    own.close()
    return []


def getfd(pid: int, fd: int) -> int:
    """Duplicate another process's descriptor (pidfd_getfd(2))."""
    process = os.pidfd_open(pid)
    try:
        return getfd_from(process, fd)
    finally:
        os.close(process)


def getfd_from(process: int, fd: int) -> int:
    """Duplicate a descriptor of the process that a pidfd is of."""
    own = _libc.syscall(_SYS_PIDFD_GETFD, process, fd, 0)
    if own < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
    return int(own)
