"""A server on port 7000 that accepts connections only when it gets SIGUSR1, and echoes what they send."""

from __future__ import annotations

import select
import signal
import socket
import sys

told = False


def tell(number: int, frame: object) -> None:
    """Remember the signal."""
    global told
    told = True


def main() -> None:
    """Serve until the end."""
    global told
    signal.signal(signal.SIGUSR1, tell)
    listener = socket.create_server(("", 7000))
    print("listening", flush=True)
    connections: list[socket.socket] = []
    while True:
        readable, _, _ = select.select(connections, [], [], 0.01)
        for connection in readable:
            connection.sendall(connection.recv(4096))
        if told:
            told = False
            connections.append(listener.accept()[0])


if __name__ == "__main__":
    sys.exit(main())
