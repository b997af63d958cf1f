"""What /proc says of a program: its processes, their open files, their size."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
DELETED = " (deleted)"  # what /proc says behind the path of a file that has no name any more
_CHUNK = 1 << 16
PF_EXITING = 0x4  # include/linux/sched.h
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A descriptor of a process and what /proc says it is."""

    pid: int
    fd: int
    target: str


def is_running(pid: int) -> bool:
    """Return True if a process exists, with a thread that is neither dead nor about to be.

    The first thread may have ended alone (pthread_exit(3)): it stays as a zombie while the others go on. The init of a
    PID namespace that is killed while it is traced waits, as it ends, for its threads, which end when the tracer has
    heard of them; CRIU listens when it is told to go on.
    """
    return living_thread(pid) != 0


def living_thread(pid: int) -> int:
    """Return a thread of a process that has not ended, the first one if possible; 0 if there is none.

    Of a thread that has ended /proc tells neither files nor memory nor namespaces: those of the process are read at
    another one.
    """
    if _lives(f"{pid}"):
        return pid
    return next((thread for thread in threads(pid) if _lives(f"{pid}/task/{thread}")), 0)


def _lives(task: str) -> bool:
    fields = read_or_empty(f"{PROC}/{task}/stat").rpartition(")")[2].split()
    return bool(fields) and fields[0] not in "ZX" and not int(fields[6]) & PF_EXITING


def state(pid: int) -> str:
    """Return the letter of a process's state."""
    return stat_fields(pid)[0]


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on (proc_pid_stat(5)); raises OSError."""
    return read(f"{PROC}/{pid}/stat").rpartition(")")[2].split()


def _stat_or_empty(pid: int) -> list[str]:
    """Return the same fields, none if it is gone."""
    return read_or_empty(f"{PROC}/{pid}/stat").rpartition(")")[2].split()


def parent(pid: int) -> int:
    """Return a process's parent, 0 if it is gone."""
    return int(_status(pid, "PPid") or 0)


def inside(pid: int) -> int:
    """Return a process's PID in its own PID namespace, 0 if it is gone."""
    return int((_status(pid, "NSpid") or "0").split()[-1])


def tracer(pid: int) -> int:
    """Return who traces a process, 0 if nobody does."""
    return int(_status(pid, "TracerPid") or 0)


def is_of_root(pid: int) -> bool:
    """Return True if all user and group IDs of a process are root's, or if it is gone."""
    return {*_status(pid, "Uid").split(), *_status(pid, "Gid").split()} <= {"0"}


def catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal."""
    return in_masks(pid, number, "SigCgt")


def hears(pid: int, number: int) -> bool:
    """Say whether a signal is seen by a process: it has a handler for it, or blocks it, and so has it pending."""
    return in_masks(pid, number, "SigCgt", "SigBlk")


def is_pending(pid: int, thread: int, number: int) -> bool:
    """Say whether a signal waits for a thread, or for its process."""
    return in_masks(f"{pid}/task/{thread}", number, "SigPnd", "ShdPnd")


def in_masks(task: int | str, number: int, *masks: str) -> bool:
    """Say whether a signal is in one of some masks of a process or thread, by their names in /proc/PID/status."""
    for line in read_or_empty(f"{PROC}/{task}/status").splitlines():
        name, _, value = line.partition(":")
        if name in masks and int(value, 16) >> (number - 1) & 1:
            return True
    return False


def has_filter(pid: int | str) -> bool:
    """Say whether a process or thread has a seccomp filter (SECCOMP_MODE_FILTER of <linux/seccomp.h>)."""
    return _status(pid, "Seccomp") == "2"


def may(capability: int, pid: int | str = "self") -> bool:
    """Say whether a process has a capability in effect (a number of <linux/capability.h>)."""
    return bool(int(_status(pid, "CapEff") or "0", 16) >> capability & 1)


def wait_for_death(process: int, timeout: float | None) -> bool:
    """Wait until a process, given by a pidfd, runs no more (it may be a zombie still); say whether it has in time."""
    poller = select.poll()
    poller.register(process, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


def ends_within(pid: int, timeout: float | None) -> bool:
    """Wait until a process runs no more (it may be a zombie still), or is gone; say whether it is so in time."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return wait_for_death(process, timeout)
    finally:
        os.close(process)


def _status(pid: int | str, key: str) -> str:
    for line in read_or_empty(f"{PROC}/{pid}/status").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    return ""


def start_time(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 for one that is gone."""
    fields = _stat_or_empty(pid)
    return int(fields[19]) if fields else 0


def processor(pid: int) -> int:
    """Return the processor that a thread ran on last, -1 if it is gone."""
    fields = _stat_or_empty(pid)
    return int(fields[36]) if fields else -1


def namespace(pid: int | str, kind: str) -> str:
    """Return the name of a process's namespace of some kind ("ipc": ipc:[4026531839])."""
    return str((PROC / f"{pid}/ns/{kind}").readlink())


def threads(pid: int) -> list[int]:
    """List a process's threads; none if it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"{PROC}/{pid}/task"))  # noqa: PTH208 (names only)
    except (FileNotFoundError, ProcessLookupError):
        return []


def processes(root: int) -> list[int]:
    """List a process and all that descend from it."""
    found = [root]
    for pid in found:
        found += children(pid)
    return found


def children(pid: int) -> list[int]:
    """List a process's children."""
    found: list[int] = []
    for thread in threads(pid):
        found += [int(child) for child in read_or_empty(f"{PROC}/{pid}/task/{thread}/children").split()]
    return found


def read(path: Path | str) -> str:
    """Read a file of /proc; raises OSError.

    By system calls, in a third of the time of Path.read_text: a program of 400 threads has thousands of such files.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    parts = []
    try:
        while part := os.read(file, _CHUNK):
            parts.append(part)
    finally:
        os.close(file)
    return b"".join(parts).decode(errors="surrogateescape")


def read_or_empty(path: Path | str) -> str:
    """Read a file of a process that may end meanwhile: then it is empty."""
    try:
        return read(path)
    except (FileNotFoundError, ProcessLookupError):
        return ""


def open_files(pids: Iterable[int]) -> list[OpenFile]:
    """List the open descriptors of processes."""
    found = []
    for pid in pids:
        names, place = _descriptors(f"/proc/{pid}/fd"), pid
        if not names and (place := living_thread(pid)) not in (0, pid):
            names = _descriptors(f"/proc/{place}/fd")
        for name in names:
            try:
                target = os.readlink(f"/proc/{place}/fd/{name}")  # noqa: PTH115
            except FileNotFoundError:
                continue
            found.append(OpenFile(pid, int(name), target))
    return found


def _descriptors(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names only, no Path objects)
    except (FileNotFoundError, ProcessLookupError):
        return []


def fdinfo(file: OpenFile, key: str) -> str:
    """Return what the kernel says of an open file under a key, "" for one that is closed."""
    for line in read_or_empty(PROC / f"{file.pid}/fdinfo/{file.fd}").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    return ""


def fdinfo_of(file: OpenFile) -> dict[str, str]:
    """Return all that the kernel says of an open file by its keys; nothing of one that is closed."""
    lines = read_or_empty(PROC / f"{file.pid}/fdinfo/{file.fd}").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mounts(pid: int) -> set[int]:
    """Return the ids of the mounts that a process sees."""
    return {int(line.split()[0]) for line in (PROC / str(pid) / "mountinfo").read_text().splitlines()}


def socket_inodes(files: Iterable[OpenFile]) -> set[int]:
    """Return the inodes of the sockets among open files."""
    return {int(match[1]) for file in files if (match := _SOCKET.fullmatch(file.target))}


def holds_locks(pids: Iterable[int]) -> bool:
    """Say whether processes hold locks on files."""
    return any(
        "\nlock:" in read_or_empty(info) for pid in pids for info in (PROC / str(pid) / "fdinfo").glob("*")
    )


def shared_maps(pids: Iterable[int]) -> Iterator[str]:
    """List the files that processes have mapped for writing, shared: their content changes without a sign."""
    for pid in pids:
        for line in read_or_empty(PROC / str(pid) / "maps").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[1].startswith("rw-s"):
                yield fields[5]


def resident_bytes(pids: Iterable[int]) -> int:
    """Return how much memory processes occupy, which bounds the size of their image."""
    pages = 0
    for pid in pids:
        fields = read_or_empty(PROC / str(pid) / "statm").split()
        pages += int(fields[1]) if fields else 0
    return pages * os.sysconf("SC_PAGE_SIZE")
