"""Hearing of files as they are closed after writing (inotify(7)): what is complete need not wait for the rest."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

IN_CLOSE_WRITE = 0x8
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_libc = ctypes.CDLL(None, use_errno=True)


class Closings:
    """Watches one folder; a descriptor that can be polled."""

    def __init__(self, folder: Path) -> None:
        """Begin; raises OSError."""
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_CLOSE_WRITE))
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is something to take."""
        return self._fd

    def take(self) -> list[str]:
        """Return the names of the files that were closed since the last time, in that order."""
        names: list[str] = []
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return names
            at = 0
            while at < len(data):
                *_, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                names.append(os.fsdecode(data[at - length : at].rstrip(b"\0")))

    def close(self) -> None:
        """End watching; twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
