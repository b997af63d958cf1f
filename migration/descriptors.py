"""What a socket or a directory of a program may not have, because CRIU would lose it without a word or give up frozen.

Looked for before anything is touched (refusals.py), on a duplicate of the descriptor. Nothing here changes the socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator

from . import sockopts, tree
from .attributes import Inherited
from .diag import Diag
from .repair import getfd
from .slowness import scaled
from .sockopts import TCP, UDP
from .tree import PROC, OpenFile

_CRIU_OPENS = 4  # at once: its socket, and what it sends and receives through it
_GET_FILTER = 26  # SO_GET_FILTER, of SOL_SOCKET
_TCP_ULP, _TCP_AO_INFO, _UDP_CORK = 31, 40, 1
_libc = ctypes.CDLL(None, use_errno=True)

# The hints of CRIU's irmap.c, all that is below them included.
_CRIU_LOOKS = (
    *("/etc", "/var/spool", "/var/log", "/usr/share/dbus-1/system-services"),
    *("/var/lib/polkit-1/localauthority", "/usr/share/polkit-1/actions", "/lib/udev"),
)
_ON_ITS_WAY_S = scaled(0.5)  # in which a look falls between two datagrams of a program that sends without end
_LOOK_S = 0.0005

QUEUE = "the POSIX message queue /%s, which CRIU does not carry (mq_overview(7))"
URGENT = "with urgent data that has not been read (MSG_OOB)"


def of_socket(file: OpenFile, keyed: set[int]) -> Iterator[str]:
    """List what an open socket has that cannot be carried; `keyed` are the inodes of those with MD5 keys."""
    try:
        fd = getfd(file.pid, file.fd)
    except OSError as ex:
        raise FileNotFoundError(ex.errno, f"descriptor {file.fd} is closed") from ex
    try:
        one = socket.socket(fileno=fd)
    except OSError:  # another file by now
        os.close(fd)
        return
    with one:
        name = sockopts.name_of(one)
        yield from (f"{name} {what}" for what in _of_any(one))
        if one.proto == TCP:
            yield from (f"{name} {what}" for what in _of_tcp(one))
            if os.fstat(one.fileno()).st_ino in keyed:
                yield f"{name} with keys of TCP MD5 signatures (TCP_MD5SIG)"
        elif one.proto == UDP and (one.getsockopt(UDP, _UDP_CORK) or _keeps_a_part(one)):
            yield f"{name} that keeps parts of a datagram until the rest comes (UDP_CORK, MSG_MORE)"


def of_directory(file: OpenFile) -> Iterator[str]:
    """List what an open directory has that cannot be carried."""
    with contextlib.suppress(OSError):
        fd = getfd(file.pid, file.fd)
        try:
            # fcntl(2) F_NOTIFY makes its caller the owner; a directory has no other use for one.
            if fcntl.fcntl(fd, fcntl.F_GETOWN):
                yield f"the directory {file.target} with a request to be notified (F_NOTIFY)"
        finally:
            os.close(fd)


def of_inotify(file: OpenFile) -> Iterator[str]:
    """List what of an inotify instance cannot be carried.

    Of a watch the kernel tells an inode and a handle. An overlay opens none by its handle (but with nfs_export=on), and
    then CRIU looks for the inode in a few folders (irmap.c).
    """
    watches = [line.split()[1:] for line in _fdinfo(file) if line.startswith("inotify ")]
    found: set[int] | None = None
    for watch in watches:
        values = dict(word.split(":", 1) for word in watch if ":" in word)
        inode, device = int(values["ino"], 16), int(values["sdev"], 16)
        if not _is_overlay(file.pid, f"{device >> 20}:{device & 0xFFFFF}"):
            continue
        if found is None:  # hundreds of files are looked at
            found = _found_by_criu(file.pid)
        if inode not in found:
            yield f"an inotify instance with a watch on an overlay (inode {inode}), which CRIU could not find again"


def _fdinfo(file: OpenFile) -> list[str]:
    return tree.read_or_empty(PROC / f"{file.pid}/fdinfo/{file.fd}").splitlines()


def _is_overlay(pid: int, device: str) -> bool:
    for line in tree.read_or_empty(PROC / f"{pid}/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        if head.split()[2] == device and tail.startswith("overlay "):
            return "nfs_export=on" not in tail
    return False


def _found_by_criu(pid: int) -> set[int]:
    """Return the inodes that CRIU looks through."""
    root = f"/proc/{pid}/root"
    found: set[int] = set()
    with contextlib.suppress(OSError):
        found.add(os.stat(f"{root}/.").st_ino)  # noqa: PTH116 (no Path objects: there are hundreds)
    for begin in _CRIU_LOOKS:
        for folder, _, names in os.walk(f"{root}{begin}"):
            for path in (folder, *(f"{folder}/{name}" for name in names)):
                with contextlib.suppress(OSError):
                    found.add(os.stat(path, follow_symlinks=False).st_ino)  # noqa: PTH116
    return found


def of_process(pid: int) -> Iterator[str]:
    """List what a process has that its copy could not be built with."""
    if strange := Inherited.of(pid).strange:
        yield f"process {pid} has a personality that CRIU cannot have as well (0x{strange:08x}, personality(2))"
    if any(tree.is_pending(pid, thread, signal.SIGTRAP) for thread in tree.threads(pid)):
        yield f"process {pid} has a pending signal SIGTRAP, with which CRIU's code in it cannot be stopped"
    if (limit := full_at(pid)) is not None:
        yield (
            f"process {pid} can open no file more (RLIMIT_NOFILE {limit}), which CRIU's code in it has to; "
            "if it is at a login, as sshd's is, it will not be for long"
        )


def full_at(pid: int) -> int | None:
    """Return a process's limit of open files if it has come so near to it that CRIU cannot work in it."""
    for line in tree.read_or_empty(PROC / f"{pid}/limits").splitlines():
        if line.startswith("Max open files") and (words := line.split())[3].isdigit():
            limit = int(words[3])
            used = set(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (names only)
            free = limit - sum(int(fd) < limit for fd in used)
            return limit if free < _CRIU_OPENS else None
    return None


def has_urgent_data(one: socket.socket) -> bool:
    """Return True if a stream has urgent data that nobody has read."""
    poller = select.poll()
    poller.register(one, select.POLLPRI)
    return any(events & select.POLLPRI for _, events in poller.poll(0))


def keyed_sockets(pid: int) -> set[int]:
    """Return the inodes of the TCP sockets with MD5 keys in the network namespace of a process."""
    with Diag(pid) as diag:
        return diag.keyed()


def _of_any(one: socket.socket) -> Iterator[str]:
    if has_urgent_data(one):
        yield URGENT
    # A classic filter is told, an eBPF program is not.
    length = ctypes.c_uint32(0)
    if (
        _libc.getsockopt(one.fileno(), socket.SOL_SOCKET, _GET_FILTER, None, ctypes.byref(length)) != 0
        and ctypes.get_errno() == errno.EACCES
    ):
        yield "with an eBPF program as its filter (SO_ATTACH_BPF)"


def _of_tcp(one: socket.socket) -> Iterator[str]:
    with contextlib.suppress(OSError):
        if protocol := one.getsockopt(TCP, _TCP_ULP, 16).rstrip(b"\0"):
            yield f"with the upper-layer protocol {protocol.decode()} (TCP_ULP)"
    with contextlib.suppress(OSError):  # which is so where it has none
        one.getsockopt(TCP, _TCP_AO_INFO, 32)
        yield "with keys of the TCP authentication option (TCP_AO)"


def _keeps_a_part(one: socket.socket) -> bool:
    """Return True if a datagram waits for its end (MSG_MORE), rather than being on its way.

    Both count as unsent. What is on its way is gone at some look, since it crosses a network in no time; a program that
    sends without end has gaps between its datagrams.
    """
    deadline = time.monotonic() + _ON_ITS_WAY_S
    while _unsent(one):
        if time.monotonic() > deadline:
            return True
        time.sleep(_LOOK_S)
    return False


def _unsent(one: socket.socket) -> int:
    return int(struct.unpack("=i", fcntl.ioctl(one, termios.TIOCOUTQ, bytes(4)))[0])
