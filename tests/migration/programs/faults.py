"""What a lazy-pages daemon does, as far as lazypages.c concerns it: `faults.py SECONDS PAUSE`.

A thread touches one missing page after the other, with a pause between them. They are filled in as soon as epoll(7)
tells of them, first with an epoll_wait(2) that waits, then with one that does not. Prints for each how many were heard
of, and how often one was there and epoll did not tell.
"""

import ctypes
import fcntl
import json
import mmap
import os
import select
import struct
import sys
import threading
import time
from pathlib import Path

PAGE = 4096
PAGES = 1 << 18
USERFAULTFD, UFFD_USER_MODE_ONLY = 323, 1  # of x86-64, and <linux/userfaultfd.h>
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
seconds, pause = map(float, sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)

uffd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)
if uffd < 0:
    sys.exit(f"cannot have a userfaultfd: {os.strerror(ctypes.get_errno())}")
fcntl.ioctl(uffd, UFFDIO_API, struct.pack("=QQQ", 0xAA, 0, 0))
memory = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(uffd, UFFDIO_REGISTER, struct.pack("=QQQQ", start, PAGES * PAGE, 1, 0))


def touch() -> None:
    for page in range(PAGES):
        libc.memset(
            ctypes.c_void_p(start + page * PAGE), 1, ctypes.c_size_t(1)
        )  # without the interpreter's lock
        if pause:
            time.sleep(pause)


sys.setswitchinterval(1e-4)
threading.Thread(target=touch, daemon=True).start()


def is_pending() -> bool:
    """Say whether the thread waits for a page and the daemon has not read of it."""
    return "pending:\t1\n" in Path(f"/proc/self/fdinfo/{uffd}").read_text()


counts = []
with select.epoll() as epoll:
    epoll.register(uffd, select.EPOLLIN)
    for timeout in (0.1, 0.0):
        heard = kept = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not (events := epoll.poll(timeout)) and is_pending():
                kept += not (events := epoll.poll(timeout))  # it may have come between the two
            for _ in events:
                address = struct.unpack_from("=16xQ", os.read(uffd, 32))[0] & -PAGE
                fcntl.ioctl(uffd, UFFDIO_ZEROPAGE, struct.pack("=QQQq", address, PAGE, 0, 0))
                heard += 1
        counts.append((heard, kept))
print(json.dumps(counts), flush=True)
os._exit(0)  # the thread waits for a page
