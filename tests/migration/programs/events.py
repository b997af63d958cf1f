"""Timers of three kinds, epoll, eventfd, signalfd, inotify and pending signals."""

import ctypes
import os
import select
import signal
import struct
import sys
import time
from pathlib import Path

from rounds import rounds

folder = Path(sys.argv[1]) / "watched"
folder.mkdir()
libc = ctypes.CDLL(None, use_errno=True)


class Itimerspec(ctypes.Structure):
    _fields_ = [(n, ctypes.c_long) for n in ("interval_s", "interval_ns", "value_s", "value_ns")]


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


ten_ms = Itimerspec(0, 10_000_000, 0, 10_000_000)
CLOCK_MONOTONIC = 1

timer_fd = checked(libc.timerfd_create(CLOCK_MONOTONIC, 0))
checked(libc.timerfd_settime(timer_fd, 0, ctypes.byref(ten_ms), None))

alarms = {"itimer": 0, "posix": 0}
signal.signal(signal.SIGALRM, lambda *_: alarms.update(itimer=alarms["itimer"] + 1))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

signal.signal(signal.SIGUSR1, lambda *_: alarms.update(posix=alarms["posix"] + 1))
# struct sigevent: value, signo, notify (SIGEV_SIGNAL)
event = (ctypes.c_char * 64).from_buffer_copy(struct.pack("Qii", 0, signal.SIGUSR1, 0).ljust(64, b"\0"))
timer_id = ctypes.c_void_p()
checked(libc.timer_create(CLOCK_MONOTONIC, event, ctypes.byref(timer_id)))
checked(libc.timer_settime(timer_id, 0, ctypes.byref(ten_ms), None))

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGWINCH})
os.kill(os.getpid(), signal.SIGWINCH)  # stays pending for ever
mask = (ctypes.c_char * 128).from_buffer_copy(struct.pack("Q", 1 << signal.SIGUSR2 - 1).ljust(128, b"\0"))
signal_fd = checked(libc.signalfd(-1, mask, 0))

event_fd = os.eventfd(7, os.EFD_NONBLOCK)
inotify = checked(libc.inotify_init1(os.O_NONBLOCK))
checked(libc.inotify_add_watch(inotify, str(folder).encode(), 0x100))  # IN_CREATE

poller = select.epoll()
poller.register(timer_fd, select.EPOLLIN)
poller.register(event_fd, select.EPOLLIN | select.EPOLLET)
poller.register(signal_fd, select.EPOLLIN)
poller.register(inotify, select.EPOLLIN)
started = time.monotonic()


def wait_for(fd: int) -> None:
    deadline = time.monotonic() + 5
    while fd not in {ready for ready, _ in poller.poll(0.1)}:
        assert time.monotonic() < deadline, f"descriptor {fd} never became ready"


def check(number: int) -> None:
    assert time.monotonic() - started < 300, "the clock jumped"
    wait_for(timer_fd)
    assert struct.unpack("Q", os.read(timer_fd, 8))[0] >= 1
    before = dict(alarms)
    deadline = time.monotonic() + 5
    while any(alarms[name] <= before[name] for name in before):
        assert time.monotonic() < deadline, f"no alarm of {before} {alarms}"
        time.sleep(0.002)
    assert os.eventfd_read(event_fd) == 7
    os.eventfd_write(event_fd, 7)
    wait_for(event_fd)
    os.kill(os.getpid(), signal.SIGUSR2)
    wait_for(signal_fd)
    assert struct.unpack_from("I", os.read(signal_fd, 128))[0] == signal.SIGUSR2
    assert signal.SIGWINCH in signal.sigpending()
    (folder / f"{number}").touch()
    wait_for(inotify)
    assert f"{number}".encode() in os.read(inotify, 4096)


rounds(check)
