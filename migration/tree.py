"""What /proc says of a program: its processes, their open files, their size."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_SOCKET = re.compile(r"socket:\[(\d+)\]")
# Descriptors that CRIU cannot dump, and what to call them.
_UNMOVABLE = {
    "anon_inode:[io_uring]": "an io_uring",
    "anon_inode:[perf_event]": "a perf event",
    "anon_inode:[fanotify]": "a fanotify group",
    "anon_inode:[userfaultfd]": "a userfaultfd",
    "anon_inode:kvm-vm": "a virtual machine",
    "/dev/net/tun": "a TUN device",
}


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A descriptor of a process and what /proc says it is."""

    pid: int
    fd: int
    target: str


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    try:
        return state(pid) not in "ZX"
    except OSError:
        return False


def state(pid: int) -> str:
    """Return the letter of a process's state."""
    stat = (PROC / str(pid) / "stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def processes(root: int) -> list[int]:
    """List a process and all that descend from it."""
    found = [root]
    for pid in found:
        for children in (PROC / str(pid) / "task").glob("*/children"):
            found += [int(child) for child in read_or_empty(children).split()]
    return found


def read_or_empty(path: Path) -> str:
    """Read a file of a process that may end meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def open_files(pids: Iterable[int]) -> list[OpenFile]:
    """List the open descriptors of processes."""
    found = []
    for pid in pids:
        try:
            names = os.listdir(PROC / str(pid) / "fd")  # noqa: PTH208 (names only, no Path objects)
        except FileNotFoundError:
            continue
        for name in names:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115
            except FileNotFoundError:
                continue
            found.append(OpenFile(pid, int(name), target))
    return found


def socket_inodes(files: Iterable[OpenFile]) -> set[int]:
    """Return the inodes of the sockets among open files."""
    return {int(match[1]) for file in files if (match := _SOCKET.fullmatch(file.target))}


def unmovable(files: Iterable[OpenFile]) -> OpenFile | None:
    """Return the first open file that CRIU cannot dump."""
    return next((file for file in files if file.target in _UNMOVABLE), None)


def describe(file: OpenFile) -> str:
    """Name an unmovable open file for a user."""
    return f"process {file.pid} has {_UNMOVABLE[file.target]} open (descriptor {file.fd})"


def resident_bytes(pids: Iterable[int]) -> int:
    """Return how much memory processes occupy, which bounds the size of their image."""
    pages = 0
    for pid in pids:
        fields = read_or_empty(PROC / str(pid) / "statm").split()
        pages += int(fields[1]) if fields else 0
    return pages * os.sysconf("SC_PAGE_SIZE")
