"""Programs with the same working directory are frozen one after the other.

A program in a PID namespace of its own has no /proc that shows it. CRIU's parasite then mounts one for a moment, on a
directory of a fixed name in the program's working directory, and a second dump that meets the directory fails with
"Can't create a directory (-17)". So a dump takes a lock on that working directory, whoever runs it: flock works across
processes and mount namespaces. A directory that a killed CRIU has left there is removed under the lock.

The directory exists for microseconds at the beginning of a dump, which may take seconds: whoever has waited for a
second goes on without the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator

from .slowness import scaled

LEFT_BY_CRIU = "proc.crtools"
TIMEOUT = scaled(1.0)
_AGAIN = 0.0005


@contextlib.contextmanager
def turn_of(pids: Iterable[int]) -> Iterator[None]:
    """Be the only one that dumps programs which work in the directories of these processes (or wait in vain)."""
    with contextlib.ExitStack() as stack:
        directories = {}
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended, or its directory is gone
                fd = os.open(f"/proc/{pid}/cwd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                status = os.fstat(fd)
                directories[status.st_dev, status.st_ino] = fd
        deadline = time.monotonic() + TIMEOUT
        for _, fd in sorted(directories.items()):  # in one order for all: nobody waits in a circle
            if _lock(fd, deadline):
                with contextlib.suppress(OSError):
                    os.rmdir(LEFT_BY_CRIU, dir_fd=fd)
        yield


def _lock(fd: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_AGAIN)
