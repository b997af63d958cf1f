"""Has connections with itself that are closed in one direction or in both, behind more than their peers have read.

half_closed.py ADDRESS FILE: says "ready"; when FILE is there it reads everything, and prints what it found wrong, and
how long that took, in seconds.
"""

import contextlib
import socket
import sys
import time
from pathlib import Path

address, go_on = sys.argv[1], Path(sys.argv[2])
listener = socket.create_server(("0.0.0.0", 0))
PORT = listener.getsockname()[1]
PATTERN = bytes(range(251)) * 1045


def fill(connection):
    """Write as much as goes; return how much that is."""
    connection.setblocking(False)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            at = written % 251
            written += connection.send(PATTERN[at:])
    connection.setblocking(True)
    return written


def read(connection, expected):
    """Read to the end; return what is wrong."""
    found = 0
    connection.settimeout(20)
    while part := connection.recv(1 << 20):
        at = found % 251
        if part != (bytes(range(251)) * (len(part) // 251 + 2))[at : at + len(part)]:
            return f"other bytes behind {found}"
        found += len(part)
    return None if found == expected else f"{found} bytes of {expected}"


ends = {}
for place in ("127.0.0.1", address):
    for kind in ("full", "both full", "one full, both closed", "empty", "some"):
        near = socket.create_connection((place, PORT))
        far, _ = listener.accept()
        expected = {}
        for one in (near, far):
            if one is near or kind in ("both full", "one full, both closed"):
                if "full" in kind and (one is near or kind == "both full"):
                    expected[one] = fill(one)
                elif kind == "some":
                    one.sendall(PATTERN[:100])
                    expected[one] = 100
                one.shutdown(socket.SHUT_WR)
        ends[place, kind] = near, far, expected
print("ready", flush=True)
while not go_on.exists():
    time.sleep(0.01)
began = time.monotonic()
for name, (near, far, expected) in ends.items():
    for writer, reader in ((near, far), (far, near)):
        is_closed = writer is near or name[1] in ("both full", "one full, both closed")
        if is_closed and (wrong := read(reader, expected.get(writer, 0))) is not None:
            print("wrong", *name, "near" if writer is near else "far", wrong, flush=True)
print("took", time.monotonic() - began, flush=True)
time.sleep(1000)
