"""A single-process server that echoes bytes over TCP, and datagrams over UDP if asked to.

Everything is non-blocking. A connection whose peer does not read is not read from either, once BUFFER bytes
wait for it; so memory stays bounded and TCP's flow control does the rest.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys

TYPE_CHECKING = False  # typing itself stays out of memory: every page of a program takes time to move
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Handler(Protocol):
        """Drives one connection: called when its socket is ready; returns the events to wait for, 0: none."""

        def ready(self, mask: int) -> int:
            """Read and write."""

    MakeHandler = Callable[[socket.socket], Handler]

BUFFER = 256 * 1024
CHUNK = 64 * 1024
BACKLOG = 1024


class EchoHandler:
    """Sends back what it receives, byte for byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pending = bytearray()
        self._is_ended = False

    def ready(self, mask: int) -> int:
        """Read and write as far as the socket and the buffer allow."""
        if mask & selectors.EVENT_READ and not self._is_ended and len(self._pending) < BUFFER:
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
        events = selectors.EVENT_WRITE if self._pending else 0
        if not self._is_ended and len(self._pending) < BUFFER:
            events |= selectors.EVENT_READ
        return events


class Server:
    """Accepts connections and gives each to a handler of its own."""

    def __init__(self, host: str, port: int, handler: MakeHandler, udp: bool) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._make_handler = handler
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._datagrams = socket.socket(family, socket.SOCK_DGRAM) if udp else None
        for sock in filter(None, (self._listener, self._datagrams)):
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # v4 clients come in mapped
            sock.bind((host, port))
            port = self.port  # the same one for datagrams, also when the system chose it
            sock.setblocking(False)
        self._listener.listen(BACKLOG)
        self._selector.register(self._listener, selectors.EVENT_READ)
        if self._datagrams is not None:
            self._selector.register(self._datagrams, selectors.EVENT_READ)
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
            for key, mask in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._datagrams:
                    self._echo_datagram()
                else:
                    self._serve(key, mask)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        events = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.register(sock, events, self._make_handler(sock))

    def _echo_datagram(self) -> None:
        assert self._datagrams is not None
        try:
            data, peer = self._datagrams.recvfrom(1 << 16)
            self._datagrams.sendto(data, peer)
        except (BlockingIOError, ConnectionError):
            return

    def _serve(self, key: selectors.SelectorKey, mask: int) -> None:
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        try:
            events = key.data.ready(mask)
        except BlockingIOError:
            return
        except (ConnectionError, TimeoutError, ValueError):
            events = 0
        if events == 0:
            self._selector.unregister(sock)
            sock.close()
        elif events != key.events:
            self._selector.modify(sock, events, key.data)


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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    print(f"listening on {host} port {server.port}", flush=True)
    server.run()
    return 0
