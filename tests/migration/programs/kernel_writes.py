"""Memory that the kernel writes to when its process ends; all threads wait forever, so nobody else does.

`kernel_writes.py MIB`: threads (clear_child_tid, rseq), robust mutexes with and without priority inheritance that a
living thread holds, an asynchronous poll that is pending. Prints "ready" and the addresses of the threads' rseq areas,
which the kernel writes to whenever a thread comes back from it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import sys
import threading

THREADS = 8
PTHREAD_MUTEX_ROBUST = 1
PTHREAD_PRIO_INHERIT = 1
SYS_IO_SETUP, SYS_IO_SUBMIT = 206, 209  # x86-64
IOCB_CMD_POLL = 5
POLLIN = 1
# <linux/aio_abi.h>: data, key, rw_flags, opcode, priority, descriptor, buffer (the events), …
IOCB = struct.Struct("=QIIHhIQQqQII")
libc = ctypes.CDLL(None, use_errno=True)
libc.pthread_self.restype = ctypes.c_ulong
areas: list[int] = []
kept: list[object] = []


def checked(result: int) -> None:
    """Raise for a call that failed."""
    if result != 0:
        raise OSError(result, f"{os.strerror(abs(result))}, errno {ctypes.get_errno()}")


def hold_mutexes(page: int) -> None:
    """Lock two robust mutexes that lie in a page of their own; the second lets its priority be inherited."""
    for number in range(2):
        attributes = ctypes.create_string_buffer(64)
        checked(libc.pthread_mutexattr_init(attributes))
        checked(libc.pthread_mutexattr_setrobust(attributes, PTHREAD_MUTEX_ROBUST))
        if number:
            checked(libc.pthread_mutexattr_setprotocol(attributes, PTHREAD_PRIO_INHERIT))
        mutex = ctypes.c_void_p(page + 64 * number)
        checked(libc.pthread_mutex_init(mutex, attributes))
        checked(libc.pthread_mutex_lock(mutex))


def wait_forever(ready: threading.Semaphore, never: threading.Lock, page: int) -> None:
    """Be one of the threads."""
    hold_mutexes(page)
    areas.append(libc.pthread_self() + ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value)
    ready.release()
    never.acquire()


def poll_forever() -> None:
    """Ask asynchronously for what never comes."""
    context = ctypes.c_ulong(0)
    checked(libc.syscall(SYS_IO_SETUP, 4, ctypes.byref(context)))
    reader, writer = os.pipe()
    block = ctypes.create_string_buffer(
        IOCB.pack(1, 0, 0, IOCB_CMD_POLL, 0, reader, POLLIN, 0, 0, 0, 0, 0), 64
    )
    pointer = ctypes.c_void_p(ctypes.addressof(block))
    if libc.syscall(SYS_IO_SUBMIT, context, 1, ctypes.byref(pointer)) != 1:
        raise OSError(ctypes.get_errno(), "io_submit")
    kept.extend((block, pointer, context, writer))


def main() -> None:
    """Make all of it, and wait."""
    size = int(sys.argv[1]) << 20
    kept.append(bytearray(os.urandom(1 << 20) * (size >> 20)))
    pages = mmap.mmap(-1, mmap.PAGESIZE * THREADS, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    ready, never = threading.Semaphore(0), threading.Lock()
    never.acquire()
    for number in range(THREADS):
        arguments = (ready, never, start + number * mmap.PAGESIZE)
        threading.Thread(target=wait_forever, args=arguments, daemon=True).start()
    for _ in range(THREADS):
        ready.acquire()
    poll_forever()
    areas.append(libc.pthread_self() + ctypes.c_ssize_t.in_dll(libc, "__rseq_offset").value)
    print("ready", *areas, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
