"""A program with memory, and children of which it never hears that they have ended: `unreaped.py MIB CHILDREN`."""

from __future__ import annotations

import hashlib
import os
import sys
import time


def main() -> None:
    """Print "ready", then again and again "N ok", or "N wrong" when the memory is not what it was."""
    memory = bytearray(os.urandom(1 << 20) * int(sys.argv[1]))
    for _ in range(int(sys.argv[2])):
        if os.fork() == 0:
            os._exit(0)
    checksum = hashlib.sha256(memory).digest()
    time.sleep(0.2)  # by now they have ended
    print("ready", flush=True)
    count = 0
    while True:
        count += 1
        is_same = hashlib.sha256(memory).digest() == checksum
        print(count, "ok" if is_same else "wrong", flush=True)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
