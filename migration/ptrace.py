"""ptrace(2), as far as it is needed: a tracer is a thread, and only that thread may ask."""

from __future__ import annotations

import ctypes
import os

# <linux/ptrace.h>
CONT, DETACH, SEIZE = 7, 17, 0x4206
_PEEKDATA = 2
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
EVENT_STOP = 128
WALL = 0x40000000  # __WALL of waitpid(2): threads, too
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def request(number: int, tid: int, address: int = 0, data: int = 0) -> None:
    """Make a request about a thread; raises OSError."""
    if _libc.ptrace(number, tid, address, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace({number:#x}, {tid}): {os.strerror(code)}")


def peek(tid: int, address: int) -> int:
    """Return the word at an address of a thread that stands still for us, as an unsigned number; raises OSError."""
    ctypes.set_errno(0)
    word = int(_libc.ptrace(_PEEKDATA, tid, address, 0))
    if word == -1 and (number := ctypes.get_errno()):
        raise OSError(number, f"ptrace(PEEKDATA, {tid}): {os.strerror(number)}")
    return word & (1 << 64) - 1


def set_mask(tid: int, mask: int) -> int:
    """Set the signal mask of a thread that stands still for us; return what it was."""
    room = ctypes.c_uint64()
    request(_GETSIGMASK, tid, ctypes.sizeof(room), ctypes.addressof(room))
    before, room.value = room.value, mask
    request(_SETSIGMASK, tid, ctypes.sizeof(room), ctypes.addressof(room))
    return before
