#!/usr/bin/env python3
"""A counter that lives in memory only: whoever moves it must move its memory, too.

    counter.py [--host ADDRESS] [--port 7070] [--interval 1.0]

Counts up once per interval and prints a line each time. Over TCP it answers lines: GET tells the count, INCR
adds one and tells it, QUIT closes. Every answer is "COUNT pid=PID started=TIME", where PID and TIME were taken
at the start: a program that was started again would tell another TIME and a count from 1.
Standard library only.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import sys
import time

MAX_LINE = 1024


class Counter:
    """The count, and what identifies this run of the program."""

    def __init__(self) -> None:
        self.count = 0
        self._pid = os.getpid()
        self._started = time.strftime("%Y-%m-%dT%H:%M:%S")

    def increment(self) -> None:
        """Count one up."""
        self.count += 1

    def __str__(self) -> str:
        return f"{self.count} pid={self._pid} started={self._started}"


class Service:
    """Serves a counter to any number of connections, and lets it tick."""

    def __init__(self, counter: Counter, host: str, port: int, interval: float) -> None:
        self._counter = counter
        self._interval = interval
        self._lines: dict[socket.socket, bytes] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen()
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    @property
    def port(self) -> int:
        """The port in use, also when the system chose it."""
        return int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Tick and serve for ever."""
        due = time.monotonic() + self._interval
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._serve(key.fileobj)
            if time.monotonic() >= due:
                due += self._interval
                self._counter.increment()
                print(self._counter, flush=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        sock.settimeout(1.0)
        self._lines[sock] = b""
        self._selector.register(sock, selectors.EVENT_READ)

    def _serve(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(MAX_LINE)
            goes_on = bool(data) and self._answer(sock, self._lines[sock] + data)
        except (ConnectionError, TimeoutError):
            goes_on = False
        if not goes_on:
            self._selector.unregister(sock)
            del self._lines[sock]
            sock.close()

    def _answer(self, sock: socket.socket, data: bytes) -> bool:
        """Answer every whole line; say whether the connection goes on."""
        *lines, rest = data.split(b"\n")
        self._lines[sock] = rest
        for line in lines:
            command = line.strip().upper()
            if command == b"QUIT":
                return False
            if command == b"INCR":
                self._counter.increment()
            reply = str(self._counter) if command in (b"GET", b"INCR") else "ERROR: say GET, INCR or QUIT"
            sock.sendall(reply.encode() + b"\n")
        return len(rest) <= MAX_LINE


def main() -> int:
    """Run the counter until a signal ends it."""
    parser = argparse.ArgumentParser(prog="counter.py", description="A counter that lives in memory")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=7070)
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds from count to count"
    )
    options = parser.parse_args()
    if options.interval <= 0:
        parser.error(f"argument --interval: {options.interval} is not a time; it must be more than 0")
    if not 0 <= options.port < 65536:
        parser.error(f"argument --port: {options.port} is not a port number")
    try:
        service = Service(Counter(), options.host, options.port, options.interval)
    except OSError as ex:
        print(f"counter: cannot listen on {options.host} port {options.port}: {ex.strerror}", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
    print(f"listening on {options.host} port {service.port}", flush=True)
    service.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
