"""A program of many threads, each of which looks at its own pages all the time: `crowd.py THREADS MIB`."""

from __future__ import annotations

import os
import sys
import threading
import time

PAGE = 4096


def main() -> None:
    """Print "ready", then "N ok" with the rounds that all threads have done, or "N wrong"."""
    threads, size = int(sys.argv[1]), int(sys.argv[2]) << 20
    threading.stack_size(64 << 10)
    memory = bytearray(os.urandom(1 << 20) * (size >> 20))
    for page in range(0, size, PAGE):
        memory[page : page + 4] = page.to_bytes(4, "little")
    done, wrong = [0] * threads, []

    def look(number: int) -> None:
        while True:
            for page in range(number * PAGE, size, threads * PAGE):
                if memory[page : page + 4] != page.to_bytes(4, "little"):
                    wrong.append(number)
                time.sleep(0.01)
            done[number] += 1

    for number in range(threads):
        threading.Thread(target=look, args=(number,), daemon=True).start()
    print("ready", flush=True)
    shown = 0
    while True:
        time.sleep(0.02)
        if min(done) > shown:
            shown = min(done)
            print(shown, "wrong" if wrong else "ok", flush=True)


if __name__ == "__main__":
    main()
