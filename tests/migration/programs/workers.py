"""Processes that use memory all the time, old and new: `workers.py WORKERS MIB`.

Each checks and changes its own pages in any order, and takes pages that it never had of an area that it has mapped; the
first process says how far all are.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import sys
import time

PAGE = 4096
FRESH = 4  # new pages in each round
NUMBER = struct.Struct("=Q")


def work(number: int, size: int, pipe: int) -> None:
    """Be a worker; write its number when a round was right, and end when one was not."""
    memory = bytearray(size)
    counts = [0] * (size // PAGE)
    fresh = mmap.mmap(-1, 1 << 28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    taken = 0
    for page in range(len(counts)):
        NUMBER.pack_into(memory, page * PAGE, page * 1000 + number)
    while True:
        for _ in range(500):
            page = random.randrange(len(counts))
            (value,) = NUMBER.unpack_from(memory, page * PAGE)
            if value != page * 1000 + number + (counts[page] << 32):
                os._exit(1)
            counts[page] += 1
            NUMBER.pack_into(memory, page * PAGE, page * 1000 + number + (counts[page] << 32))
        for page in range(taken, taken + FRESH):
            if fresh[page * PAGE] != 0:
                os._exit(1)
            fresh[page * PAGE] = 1
        taken += FRESH
        os.write(pipe, bytes([number]))
        time.sleep(0.001)


def main() -> None:
    """Print "ready", then "N ok" with the rounds that all have done, or "N wrong" when one has ended."""
    workers, size = int(sys.argv[1]), int(sys.argv[2]) << 20
    reader, writer = os.pipe()
    for number in range(workers):
        if os.fork() == 0:
            work(number, size, writer)
    os.close(writer)
    rounds = [0] * workers
    shown = -1
    while True:
        for number in os.read(reader, 4096):
            rounds[number] += 1
        if shown < 0 < min(rounds):
            print("ready", flush=True)
        if min(rounds) > max(shown, 0):
            shown = min(rounds)
            ended, _ = os.waitpid(-1, os.WNOHANG)
            print(shown, "wrong" if ended else "ok", flush=True)


if __name__ == "__main__":
    main()
