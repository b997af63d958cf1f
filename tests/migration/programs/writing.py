"""A program that writes its memory all the time, and can tell what is missing: `writing.py PORT MIB HOT_MIB`.

A thread goes round and round through the first HOT_MIB, and adds 1 to a byte of each page it comes to. So that byte of
a page is the number of finished rounds, plus 1 in front of where the thread is: a write that is lost, or a page that is
older than the others, shows. Line "check" answers "ok ROUNDS PAGES", or which page is wrong; "rate N" sets pages a
second.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

PAGE = 4096
MARK = b"\xa5" * 8


class Writer(threading.Thread):
    """The memory and the thread that writes it."""

    def __init__(self, size: int, hot: int) -> None:
        super().__init__(daemon=True)
        self.memory = bytearray(size)
        for page in range(0, size, PAGE):
            self.memory[page : page + 8] = page.to_bytes(8, "big")
            self.memory[page + 8 : page + 16] = MARK
        self.pages, self.rounds, self.at, self.rate = hot // PAGE, 0, 0, 1000
        self.lock = threading.Lock()

    def run(self) -> None:
        """Write some pages every 10 ms."""
        while True:
            with self.lock:
                for _ in range(max(1, self.rate // 100)):
                    byte = self.at * PAGE + 16
                    self.memory[byte] = (self.memory[byte] + 1) & 255
                    self.at += 1
                    if self.at == self.pages:
                        self.at, self.rounds = 0, self.rounds + 1
            time.sleep(0.01)

    def check(self) -> str:
        """Compare every page with what it has to be."""
        with self.lock:
            for number in range(len(self.memory) // PAGE):
                page = number * PAGE
                count = self.rounds + (number < self.at) if number < self.pages else 0
                wanted = page.to_bytes(8, "big") + MARK + bytes([count & 255])
                if self.memory[page : page + 17] != wanted:
                    return f"page {number} is {self.memory[page : page + 17].hex()}, not {wanted.hex()}"
            return f"ok {self.rounds} {self.at}"


def main() -> None:
    """Write, and answer on one connection."""
    port, size, hot = int(sys.argv[1]), int(sys.argv[2]) << 20, int(sys.argv[3]) << 20
    writer = Writer(size, hot)
    writer.start()
    with socket.create_server(("0.0.0.0", port)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as lines:
            for line in lines:
                word, _, number = line.strip().partition(" ")
                if word == "rate":
                    writer.rate = int(number)
                lines.write(f"{writer.check()}\n")
                lines.flush()


if __name__ == "__main__":
    main()
