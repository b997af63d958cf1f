"""A single-process server that echoes bytes over TCP, and datagrams over UDP if asked to.

Everything is non-blocking. A connection whose peer does not read is not read from either, once BUFFER bytes
wait for it; so memory stays bounded and TCP's flow control does the rest.

Every page of a program takes time to move. So the modules of C are used that `socket` and `signal` are made of: those
two and `selectors` make enumerations of all their constants, a third of this program's memory.
"""

from __future__ import annotations

import sys
from _signal import SIGINT, SIGTERM, signal  # type: ignore[import-not-found]
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    socket,
)
from posix import _exit
from select import EPOLLIN, EPOLLOUT, epoll

TYPE_CHECKING = False  # typing itself stays out of memory, too
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Handler(Protocol):
        """Drives one connection: called when its socket is ready; returns the events to wait for, 0: none."""

        def ready(self, mask: int) -> int:
            """Read and write."""

    MakeHandler = Callable[[socket], Handler]

READ, WRITE = 1, 2  # as in `selectors`
BUFFER = 256 * 1024
CHUNK = 64 * 1024
BACKLOG = 1024


class EchoHandler:
    """Sends back what it receives, byte for byte."""

    def __init__(self, sock: socket) -> None:
        self._socket = sock
        self._pending = bytearray()
        self._is_ended = False

    def ready(self, mask: int) -> int:
        """Read and write as far as the socket and the buffer allow."""
        if mask & READ and not self._is_ended and len(self._pending) < BUFFER:
            data = self._socket.recv(CHUNK)
            if data:
                self._pending += data
            else:
                self._is_ended = True
        if self._pending:
            try:
                sent = self._socket.send(self._pending)
            except BlockingIOError:
                sent = 0
            del self._pending[:sent]
        events = WRITE if self._pending else 0
        if not self._is_ended and len(self._pending) < BUFFER:
            events |= READ
        return events


class Connection:
    """A connection that was accepted, its handler, and the events it waits for."""

    def __init__(self, sock: socket, handler: Handler, events: int) -> None:
        self.socket, self.handler, self.events = sock, handler, events


class Server:
    """Accepts connections and gives each to a handler of its own."""

    def __init__(self, host: str, port: int, handler: MakeHandler, udp: bool) -> None:
        family = AF_INET6 if ":" in host else AF_INET
        self._make_handler = handler
        self._epoll = epoll()
        self._connections: dict[int, Connection] = {}
        self._listener = socket(family, SOCK_STREAM)
        self._listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        self._datagrams = socket(family, SOCK_DGRAM) if udp else None
        for sock in filter(None, (self._listener, self._datagrams)):
            if family == AF_INET6:
                sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 0)  # v4 clients come in mapped
            sock.bind((host, port))
            port = self.port  # the same one for datagrams, also when the system chose it
            sock.setblocking(False)
            self._epoll.register(sock.fileno(), EPOLLIN)
        self._listener.listen(BACKLOG)
        self._is_stopped = False

    @property
    def port(self) -> int:
        """The port in use, also when the system chose it."""
        return int(self._listener.getsockname()[1])

    def stop(self) -> None:
        """Make `run` return."""
        self._is_stopped = True

    def run(self) -> None:
        """Serve until stopped."""
        while not self._is_stopped:
            for fd, happened in self._epoll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                elif self._datagrams is not None and fd == self._datagrams.fileno():
                    self._echo_datagram(self._datagrams)
                else:
                    # An error, or the peer's end, is found by reading and by writing.
                    mask = (READ if happened & ~EPOLLOUT else 0) | (WRITE if happened & ~EPOLLIN else 0)
                    self._serve(self._connections[fd], mask)

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.socket.accept is made of
        except (BlockingIOError, ConnectionError):
            return
        sock = socket(fileno=fd)
        sock.setblocking(False)
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self._connections[fd] = Connection(sock, self._make_handler(sock), READ | WRITE)
        self._epoll.register(fd, EPOLLIN | EPOLLOUT)

    def _echo_datagram(self, sock: socket) -> None:
        try:
            data, peer = sock.recvfrom(1 << 16)
            sock.sendto(data, peer)
        except (BlockingIOError, ConnectionError):
            return

    def _serve(self, connection: Connection, mask: int) -> None:
        try:
            events = connection.handler.ready(mask & connection.events)
        except BlockingIOError:
            return
        except (ConnectionError, TimeoutError, ValueError):
            events = 0
        fd = connection.socket.fileno()
        if events == 0:
            self._epoll.unregister(fd)
            del self._connections[fd]
            connection.socket.close()
        elif events != connection.events:
            self._epoll.modify(fd, (EPOLLIN if events & READ else 0) | (EPOLLOUT if events & WRITE else 0))
            connection.events = events


def run(host: str, port: int, udp: bool, bulk: bool) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    make: MakeHandler = EchoHandler
    if bulk:
        from apps.echo.bulk import BulkPeer

        make = BulkPeer
    try:
        server = Server(host, port, make, udp)
    except OSError as ex:
        print(f"tcp_echo: cannot listen on {host} port {port}: {ex.strerror}", file=sys.stderr)
        return 1
    for number in (SIGINT, SIGTERM):
        signal(number, lambda *_: _exit(0))
    print(f"listening on {host} port {server.port}", flush=True)
    server.run()
    return 0
