"""Descriptors that count or queue events: eventfds and inotify instances, as far as CRIU does not carry them.

CRIU makes every eventfd without EFD_SEMAPHORE, with a counter of 32 bits. So the image of one that this would change
gets the counter `MARKED`, at which our library in CRIU (preload.c) makes a semaphore, or 0; the true counter is written
when the copy has been built.

Of inotify, CRIU carries the watches and drops unread events. The copy is told so as inotify(7) says: by IN_Q_OVERFLOW.
The kernel puts it behind a full queue, which is filled with events of our own, and these are read away again.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import tempfile
import termios
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .images import join, split

MARKED = 0x53454D41  # "SEMA"
_MOST = (1 << 64) - 2  # an eventfd's largest counter
_QUEUE_LENGTH = Path("/proc/sys/fs/inotify/max_queued_events")
_LONGEST_QUEUE = 200_000  # events: filling a longer queue would take more than a quarter of a second
_EVENT_SIZE = 16  # of an inotify_event without a name
_IN_ACCESS, _IN_MODIFY = 0x1, 0x2
_libc = ctypes.CDLL(None, use_errno=True)


def is_special(counter: int, is_semaphore: bool) -> bool:
    """Return True if CRIU alone would make another eventfd of it."""
    return is_semaphore or counter >> 31 != 0 or counter == MARKED


def mark(files: bytes, semaphores: Mapping[int, bool], fdinfo: Any) -> bytes:
    """Change the eventfds with certain ids in a files.img: True makes a semaphore."""
    header, messages = split(files)
    for number, message in enumerate(messages):
        entry = fdinfo.file_entry.FromString(message)
        if entry.HasField("efd") and entry.efd.id in semaphores:
            entry.efd.counter = MARKED if semaphores[entry.efd.id] else 0
            messages[number] = entry.SerializeToString()
    return join(header, messages)


def file_ids(images: Path, owners: Iterable[tuple[int, int]], fdinfo: Any) -> dict[tuple[int, int], int]:
    """Return the ids that an image's files have, by the process (as seen by itself) and descriptor that own them."""
    found: dict[tuple[int, int], int] = {}
    tables: dict[int, dict[int, int]] = {}
    for pid, fd in owners:
        if pid not in tables:
            _, messages = split((images / f"ids-{pid}.img").read_bytes())
            _, entries = split((images / f"fdinfo-{_files_id(messages[0])}.img").read_bytes())
            parsed = map(fdinfo.fdinfo_entry.FromString, entries)
            tables[pid] = {entry.fd: entry.id for entry in parsed}
        if fd in tables[pid]:
            found[pid, fd] = tables[pid][fd]
    return found


def _files_id(message: bytes) -> int:
    """Return the field files_id, the second one, of a task_kobj_ids_entry, whose fields are all small numbers."""
    values: list[int] = []
    value = shift = 0
    for byte in message:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            values.append(value)
            value = shift = 0
    fields = dict(zip(values[::2], values[1::2], strict=True))
    return fields[2 << 3]


def set_counter(eventfd: int, counter: int) -> None:
    """Give an eventfd that has just been made, with the counter 0, its true one."""
    if counter:
        os.eventfd_write(eventfd, min(counter, _MOST))


def unread(inotify: int) -> int:
    """Return how many bytes of events nobody has read yet."""
    return int(struct.unpack("=i", fcntl.ioctl(inotify, termios.FIONREAD, bytes(4)))[0])


def overflow(inotify: int, folder: Path) -> bool:
    """Let IN_Q_OVERFLOW be the one event in an inotify instance's queue; return False if its queue is too long.

    A file is made in `folder` for it, and removed.
    """
    length = int(_QUEUE_LENGTH.read_text())
    if length > _LONGEST_QUEUE:
        return False
    if has := unread(inotify):  # from when it was come to as another process's
        os.read(inotify, has)
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        file.write(b"x")
        path = os.fsencode(file.name)
        watch = int(_libc.inotify_add_watch(inotify, path, _IN_ACCESS | _IN_MODIFY))
        if watch < 0:
            return False
        for _ in range(length // 2 + 1):  # of equal events in a row, only one is kept
            os.pread(file.fileno(), 1, 0)
            os.pwrite(file.fileno(), b"x", 0)
        _libc.inotify_rm_watch(inotify, watch)  # whose own event finds the queue full
    behind = unread(inotify) - _EVENT_SIZE
    if behind > 0:
        os.read(inotify, behind)
    return True
