"""A program with much memory, which says on each line of a connection what is in it: `memory.py PORT MIB`."""

from __future__ import annotations

import hashlib
import os
import socket
import sys


def main() -> None:
    """Fill the memory, and answer: "sum" with its checksum, "write N" by changing a byte in each of N pages."""
    port, size = int(sys.argv[1]), int(sys.argv[2]) << 20
    memory = bytearray(os.urandom(1 << 20) * (size >> 20))
    for page in range(0, size, 4096):
        memory[page : page + 4] = page.to_bytes(4, "big")
    with socket.create_server(("0.0.0.0", port)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as lines:
            for line in lines:
                word, _, count = line.strip().partition(" ")
                for page in range(int(count or 0)):
                    memory[page * 4096 + 8] = (memory[page * 4096 + 8] + 1) & 255
                lines.write(hashlib.sha256(memory).hexdigest() if word == "sum" else "written")
                lines.write("\n")
                lines.flush()


if __name__ == "__main__":
    main()
