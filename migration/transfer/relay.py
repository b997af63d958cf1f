"""A relay between a restore worker and its lazy-pages daemon, which keeps the worker's last word back for a moment.

When it hears that word, the daemon begins to fetch what nobody has asked for, and whatever the program does ask for
waits behind a piece of that: the first replies after the freeze, for which a program touches many pages, then take
twice as long. Until it hears it, it serves page faults and nothing else.

Run as `python -m migration.transfer.relay FOLDER SECONDS`: descriptor 3 is the socket that the worker connects to,
FOLDER the daemon's. It is a process of its own, a child of the keeper like the daemon: a controller that dies in that
moment must not take the last word with it.

What the two say (CRIU 4.2): the worker sends, for each process, its PID as a 32-bit word and a userfaultfd (for a
zombie, its negated PID alone), and at the end the word "RSTF".
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable

LAZY_SOCKET = "lazy-pages.socket"
GRACE = 0.150  # seconds in which whoever waited through the freeze is answered
WORD = 4
FINISHED = (0x52535446).to_bytes(WORD, sys.byteorder)  # LAZY_PAGES_RESTORE_FINISHED


def relay(worker: socket.socket, daemon: socket.socket, seconds: float) -> bool:
    """Pass on what a worker says until it is through; say whether it came to its last word."""
    while word := worker.recv(WORD, socket.MSG_WAITALL):
        if word == FINISHED:
            time.sleep(seconds)
            daemon.sendall(word)
            return True
        daemon.sendall(word)
        if is_zombie(word):
            continue
        # Word by word: the kernel drops a descriptor whose byte is read together with what goes before it.
        data, files, _, _ = socket.recv_fds(worker, 1, 1)
        socket.send_fds(daemon, [data], files)
        for file in files:
            os.close(file)
    return False


def is_zombie(word: bytes) -> bool:
    """Say whether a word is that of a process without memory, which no descriptor follows."""
    return int.from_bytes(word, sys.byteorder, signed=True) < 0


def listen(folder: str) -> socket.socket:
    """Return a socket at which CRIU's restore, working in a folder, looks for its daemon."""
    listener = socket.socket(socket.AF_UNIX)
    _with_short_path(folder, listener.bind)
    listener.listen(1)
    return listener


def _with_short_path(folder: str, use: Callable[[str], None]) -> None:
    """Call `use` with the address of a folder's socket: the kernel takes no more than 107 bytes."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        use(f"/proc/self/fd/{directory}/{LAZY_SOCKET}")
    finally:
        os.close(directory)


def main() -> int:
    """Serve one worker."""
    folder, seconds = sys.argv[1], float(sys.argv[2])
    with socket.socket(fileno=3) as listener, socket.socket(socket.AF_UNIX) as daemon:
        worker, _ = listener.accept()
        with worker:
            _with_short_path(folder, daemon.connect)
            return 0 if relay(worker, daemon, seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
