"""Many kept connections, asked whether they still live: run in a host by the affinity benchmark.

    python -m bench.connections HOST PORT N

Connects N times, prints a line, then does one round for each line on its standard input: every connection sends eight
bytes and must get them back within a second. Prints how many are alive after each round.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

TIMEOUT = 1.0  # seconds of a round
MESSAGE = b"affinity"


def main() -> int:
    """Do what the command line says."""
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    alive = [socket.create_connection((host, port), timeout=5.0) for _ in range(count)]
    for sock in alive:
        sock.setblocking(False)
    print(len(alive), flush=True)
    for _ in sys.stdin:
        alive = one_round(alive)
        print(len(alive), flush=True)
    return 0


def one_round(socks: list[socket.socket]) -> list[socket.socket]:
    """Send and receive on every connection; returns those that answered."""
    answered: list[socket.socket] = []
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            try:
                sock.sendall(MESSAGE)
            except OSError:
                continue
            selector.register(sock, selectors.EVENT_READ)
        deadline = time.monotonic() + TIMEOUT
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.05):
                sock = key.fileobj  # type: ignore[assignment]
                selector.unregister(sock)
                try:
                    if sock.recv(64) == MESSAGE:
                        answered.append(sock)
                except OSError:
                    continue
    return answered


if __name__ == "__main__":
    sys.exit(main())
