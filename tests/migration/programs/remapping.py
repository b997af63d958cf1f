"""A program that changes its mappings all the time: `remapping.py MIB [THREADS]`.

Each round it changes the protection of pages in the middle, moves an area, gives pages back, unmaps some, and forks a
child that looks at what it has. What each page must hold is known: it is filled with its number. With threads, each has
areas of its own and does so, but for the children.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
import time

PAGE = 4096
PROT_READ, PROT_WRITE = 1, 2
MAP_PRIVATE, MAP_ANONYMOUS = 2, 0x20
MADV_DONTNEED = 4
MREMAP_MAYMOVE = 1
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
for call in (libc.mprotect, libc.madvise):
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
FAILED = ctypes.c_void_p(-1).value


class Area:
    """Some anonymous pages, and what each holds."""

    def __init__(self, pages: int, first: int) -> None:
        self.values = list(range(first, first + pages))
        self.at = libc.mmap(None, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        assert self.at != FAILED, os.strerror(ctypes.get_errno())
        for number, value in enumerate(self.values):
            ctypes.memmove(self.at + number * PAGE, value.to_bytes(8, "little") * (PAGE // 8), PAGE)

    def check(self, number: int) -> bool:
        """Say whether a page holds what it should."""
        content = self.values[number].to_bytes(8, "little") * (PAGE // 8)
        # A function of a library lets other threads go on while it waits for the page.
        return bool(libc.memcmp(self.at + number * PAGE, content, PAGE) == 0)

    def change(self) -> None:
        """Change the mapping in one of the ways there are."""
        pages = len(self.values)
        at = random.randrange(pages - 4)
        start = ctypes.c_void_p(self.at + at * PAGE)
        way = random.randrange(4)
        if way == 0:
            assert libc.mprotect(start, 2 * PAGE, PROT_READ) == 0
        elif way == 1:
            assert libc.madvise(start, 2 * PAGE, MADV_DONTNEED) == 0
            self.values[at : at + 2] = [0, 0]
        elif way == 2 and pages > 64:
            end = ctypes.c_void_p(self.at + (pages - 2) * PAGE)
            assert libc.munmap(end, 2 * PAGE) == 0
            del self.values[-2:]
        else:
            # Only one mapping can be moved at once.
            assert libc.mprotect(ctypes.c_void_p(self.at), pages * PAGE, PROT_READ | PROT_WRITE) == 0
            moved = libc.mremap(ctypes.c_void_p(self.at), pages * PAGE, pages * PAGE, MREMAP_MAYMOVE)
            assert moved != FAILED, os.strerror(ctypes.get_errno())
            self.at = moved


def go_through(areas: list[Area], is_forking: bool, count: int) -> bool:
    """Do a round; return True if all is right."""
    for area in areas:
        area.change()
    looked = [(area, random.randrange(len(area.values))) for area in areas for _ in range(16)]
    is_right = True
    child = os.fork() if is_forking else -1
    if child == 0:
        os._exit(0 if all(area.check(number) for area, number in looked) else 1)
    is_right &= all(area.check(number) for area, number in looked)
    if is_forking:
        _, status = os.waitpid(child, 0)
        is_right &= status == 0
    if count % 50 == 0:
        is_right &= all(area.check(number) for area in areas for number in range(len(area.values)))
    time.sleep(0.002)
    return is_right


def main() -> None:
    """Print "ready", then "N ok" for each round, or "N wrong"."""
    total, threads = int(sys.argv[1]) * (1 << 20) // PAGE, int(sys.argv[2]) if len(sys.argv) > 2 else 1
    each = total // 16
    areas = [Area(each, 1 + number * each) for number in range(16)]
    wrong: list[int] = []

    def work(mine: list[Area]) -> None:
        count = 0
        while not wrong:
            count += 1
            if not go_through(mine, False, count):
                wrong.append(count)

    for number in range(1, threads):
        threading.Thread(target=work, args=(areas[number::threads],), daemon=True).start()
    print("ready", flush=True)
    count, is_right = 0, True
    while True:
        count += 1
        is_right &= go_through(areas[::threads], threads == 1, count)
        print(count, "ok" if is_right and not wrong else "wrong", flush=True)


if __name__ == "__main__":
    main()
