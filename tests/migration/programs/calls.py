"""Threads, each in a system call that waits; each says how and when it returned, and `late` or not.

calls.py SECONDS [DELAY]    the time-out of those that have one, and how long after the start they begin
"""

import ctypes
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

SECONDS = float(sys.argv[1])
MS = int(SECONDS * 1e3)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
EAGAIN, ETIMEDOUT = 11, 110
FUTEX_WAIT, FUTEX_WAIT_BITSET, IPC_PRIVATE = 0, 9, 0
FUTEX, NANOSLEEP, CLOCK_NANOSLEEP, SIGTIMEDWAIT, SEMTIMEDOP = 202, 35, 230, 128, 220
POLL, EPOLL_WAIT, EPOLL_PWAIT2, PSELECT, PPOLL, RECVFROM, SEMOP, PAUSE, MSGRCV = (
    7,
    232,
    441,
    270,
    271,
    45,
    65,
    34,
    70,
)


def timespec(seconds: float = SECONDS) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * 2)(int(seconds), int(seconds % 1 * 1e9))


def call(*arguments: object) -> tuple[int, int]:
    """Make a system call; return its result and errno."""
    values = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(*values)
    return result, ctypes.get_errno() if result < 0 else 0


silent, _keep = os.pipe()
polled = ctypes.create_string_buffer(struct.pack("ihh", silent, select.POLLIN, 0))
word = ctypes.c_int(0)
near, far = socket.socketpair()
timed, _other = socket.socketpair()
timed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(SECONDS), 0))
event = ctypes.create_string_buffer(64)
signals = ctypes.c_uint64(1 << signal.SIGUSR1 - 1)
semaphores = libc.semget(IPC_PRIVATE, 1, 0o600)
queue = libc.msgget(IPC_PRIVATE, 0o600)
take = ctypes.create_string_buffer(struct.pack("hhh", 0, -1, 0))
readable = ctypes.create_string_buffer(128)


def epoll() -> int:
    made = select.epoll()
    made.register(silent, select.EPOLLIN)
    os.dup2(made.fileno(), made.fileno() + 100)
    return made.fileno() + 100


def sleep_again() -> tuple[int, int]:
    """Sleep as sleep(3) does: what is left is written to where the time was read."""
    left = timespec()
    return call(CLOCK_NANOSLEEP, 0, 0, left, left)


TIMED: dict[str, tuple[Callable[[], tuple[int, int]], tuple[int, int]]] = {
    "poll": (lambda: call(POLL, polled, 1, MS), (0, 0)),
    "ppoll": (lambda: call(PPOLL, polled, 1, timespec(), None, 8), (0, 0)),
    "pselect": (lambda: call(PSELECT, 0, None, None, None, timespec(), None), (0, 0)),
    "epoll_wait": (lambda: call(EPOLL_WAIT, epoll(), event, 1, MS), (0, 0)),
    "epoll_pwait2": (lambda: call(EPOLL_PWAIT2, epoll(), event, 1, timespec(), None, 8), (0, 0)),
    "nanosleep": (lambda: call(NANOSLEEP, timespec(), None), (0, 0)),
    "clock_nanosleep": (lambda: call(CLOCK_NANOSLEEP, 1, 0, timespec(), None), (0, 0)),
    "clock_nanosleep until": (
        lambda: call(CLOCK_NANOSLEEP, 1, 1, timespec(time.monotonic() + SECONDS), None),
        (0, 0),
    ),
    "sleep": (sleep_again, (0, 0)),
    "futex": (lambda: call(FUTEX, ctypes.byref(word), FUTEX_WAIT, 0, timespec()), (-1, ETIMEDOUT)),
    "futex until": (
        lambda: call(
            FUTEX,
            ctypes.byref(word),
            FUTEX_WAIT_BITSET,
            0,
            timespec(time.monotonic() + SECONDS),
            None,
            0xFFFFFFFF,
        ),
        (-1, ETIMEDOUT),
    ),
    "semtimedop": (lambda: call(SEMTIMEDOP, semaphores, take, 1, timespec()), (-1, EAGAIN)),
    "sigtimedwait": (lambda: call(SIGTIMEDWAIT, ctypes.byref(signals), None, timespec(), 8), (-1, EAGAIN)),
}
# Its time-out begins anew with every move.
SLOW: dict[str, tuple[Callable[[], tuple[int, int]], tuple[int, int]]] = {
    "recv with SO_RCVTIMEO": (lambda: call(RECVFROM, timed.fileno(), event, 8, 0, None, None), (-1, EAGAIN)),
}
ENDLESS: dict[str, Callable[[], tuple[int, int]]] = {
    "poll": lambda: call(POLL, polled, 1, -1),
    "epoll_wait": lambda: call(EPOLL_WAIT, epoll(), event, 1, -1),
    "recv": lambda: call(RECVFROM, near.fileno(), event, 8, 0, None, None),
    "futex": lambda: call(FUTEX, ctypes.byref(word), FUTEX_WAIT, 0, None),
    "semop": lambda: call(SEMOP, semaphores, take, 1),
    "sigwait": lambda: call(SIGTIMEDWAIT, ctypes.byref(signals), None, None, 8),
    "msgrcv": lambda: call(MSGRCV, queue, event, 8, 0, 0),
    "pause": lambda: call(PAUSE),
}


def timed_one(name: str, make: Callable[[], tuple[int, int]], expected: tuple[int, int]) -> None:
    began = time.monotonic()
    found = make()
    print(f"ended {name}: {found == expected} {found} {time.monotonic() - began:.3f}", flush=True)


def endless_one(name: str, make: Callable[[], tuple[int, int]]) -> None:
    print(f"returned {name}: {make()}", flush=True)


signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for name, (make, expected) in (TIMED | SLOW).items():
    threading.Thread(target=timed_one, args=(name, make, expected), daemon=True).start()
for name, forever in ENDLESS.items():
    threading.Thread(target=endless_one, args=(name, forever), daemon=True).start()
print("up", flush=True)
while True:
    time.sleep(100)
