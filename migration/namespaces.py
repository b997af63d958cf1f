"""Linux namespaces and process controls that Python's os module lacks before 3.12.

Only thin wrappers; all raise OSError with the kernel's reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

# <linux/sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
# <linux/mount.h>
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
_MOUNT_FLAGS = {"ro": 1, "nosuid": 2, "noexec": 8}
_DEVPTS_OPTIONS = {"uid", "gid", "mode", "ptmxmode"}
AT_FDCWD = -100
# <sys/ipc.h>, <sys/shm.h>
IPC_RMID, SHM_DEST = 0, 0o1000
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 4
OPEN_TREE_CLONE = 1
# <asm/unistd.h>; these have the same number on every architecture that CRIU runs on.
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 428, 429, 430, 431, 432
# Buckets of a host's own tables: for thousands of connections, and short enough to be walked in no time.
SOCKET_TABLES = {"tcp_child_ehash_entries": 4096, "udp_child_hash_entries": 1024}
# A nice value for work that somebody waits for.
URGENT = -20

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind an open /proc/PID/ns file."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(kinds: int) -> None:
    """Leave namespaces for new ones (CLONE_NEWPID: for the next child)."""
    _check(_libc.unshare(kinds), "unshare")


def unshare_network() -> None:
    """Move into a new network namespace whose tables of sockets are small, where the kernel allows that.

    A list of sockets is a walk through a whole table, and CRIU makes several while a program stands still. The
    tables of a namespace are the machine's own (with 24 GiB: 262,144 buckets, milliseconds a walk) unless the
    namespace that it was made in says otherwise: tcp_child_ehash_entries (Linux 6.1), udp_child_hash_entries (6.2).
    """
    unshare(CLONE_NEWNET)
    for name, entries in SOCKET_TABLES.items():
        with contextlib.suppress(OSError):  # an older kernel, or a /proc that is read-only
            (Path("/proc/sys/net/ipv4") / name).write_text(f"{entries}\n")
    unshare(CLONE_NEWNET)


def prctl(option: int, value: int) -> None:
    """Change a setting of the calling process."""
    _check(_libc.prctl(option, value, 0, 0, 0), "prctl")


def make_mounts_private() -> None:
    """Let a new mount namespace keep its mounts to itself, and see its own network in /sys."""
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
    _check(_libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None), "mount /sys")


def mount(source: str, target: str, kind: str, data: str) -> None:
    """Mount a file system in the calling process's mount namespace."""
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), 0, data.encode()), f"mount {target}")


def unmount(target: str) -> None:
    """Take a mount away, and what it is made of once nobody uses it any more."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def copy_mounts(*, are_machines: bool) -> None:
    """Leave a host's mount namespace for a copy of it, which gets what is mounted in the host later, and gives nothing.

    What is mounted on the machine itself is left as it is: of that nothing comes if it was private.
    """
    if not are_machines:
        _check(_libc.mount(b"none", b"/", None, MS_REC | MS_SHARED, None), "share the mounts of the host")
    unshare(CLONE_NEWNS)
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "make mounts slaves")


def new_terminals(place: str = "/dev/pts") -> None:
    """Lay a devpts of the caller's own over the one in its mounts, with the same options; do nothing if there is none.

    What is opened at /dev/ptmx comes from whatever is mounted beside it (Linux 4.7).
    """
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        fields, _, rest = line.partition(" - ")  # proc_pid_mountinfo(5)
        if fields.split()[4] == place and rest.startswith("devpts "):
            options = rest.split()[-1].split(",")
            kept = [one for one in options if one.partition("=")[0] in _DEVPTS_OPTIONS]
            flags = sum(_MOUNT_FLAGS.get(one, 0) for one in fields.split()[5].split(","))
            data = ",".join(["newinstance", *kept]).encode()
            _check(_libc.mount(b"devpts", place.encode(), b"devpts", flags, data), f"mount {place}")
            return


def new_proc() -> int:
    """Make a proc file system of the caller's PID namespace that is mounted nowhere yet; return its descriptor."""
    return _new_file_system(b"proc")


def _new_file_system(kind: bytes) -> int:
    context = _call(SYS_FSOPEN, "fsopen", kind, 0)
    try:
        _call(SYS_FSCONFIG, "fsconfig", context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(SYS_FSMOUNT, "fsmount", context, 0, 0)
    finally:
        os.close(context)


def copy_mount(path: str) -> int:
    """Make a copy of a mount that is mounted nowhere yet; return its descriptor."""
    return _call(SYS_OPEN_TREE, "open_tree", AT_FDCWD, path.encode(), OPEN_TREE_CLONE)


def move_mount(fd: int, target: str) -> None:
    """Mount a file system that is mounted nowhere yet."""
    _call(SYS_MOVE_MOUNT, "move_mount", fd, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)


def _call(number: int, name: str, *arguments: int | bytes | None) -> int:
    """Make a system call that the C library may not have yet."""
    words = [
        ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments
    ]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def uncover_cgroups() -> None:
    """In a host whose own /sys hides the machine's control groups: see them again, in a private copy of its mounts."""
    if not any(Path("/sys/fs/cgroup").iterdir()):
        unshare(CLONE_NEWNS)
        unmount("/sys")


def enter(path: Path, kind: int) -> None:
    """Enter the namespace that a /proc/PID/ns file names."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, kind)
    finally:
        os.close(fd)


def enter_host(pid: int) -> None:
    """Enter the network and the mount namespace of a process; the caller must have one thread only."""
    own = Path("/proc/self/ns/mnt").stat()
    net, mnt = Path(f"/proc/{pid}/ns/net"), Path(f"/proc/{pid}/ns/mnt")
    other_mounts = mnt.stat() != own and mnt.stat().st_ino != own.st_ino
    mnt_fd = os.open(mnt, os.O_RDONLY | os.O_CLOEXEC) if other_mounts else -1
    enter(net, CLONE_NEWNET)
    if mnt_fd >= 0:
        setns(mnt_fd, CLONE_NEWNS)
        os.close(mnt_fd)


def enter_empty_ipc(pid: int) -> None:
    """Enter the IPC namespace of a process if nothing is in it, or stay; the caller must have one thread only."""
    own = os.open("/proc/self/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(Path(f"/proc/{pid}/ns/ipc"), CLONE_NEWIPC)
        if has_system_v_objects():
            setns(own, CLONE_NEWIPC)
    finally:
        os.close(own)


def objects_of(pid: int) -> tuple[list[int], list[str]]:
    """Look into the IPC namespace of a process, for what CRIU loses there without a word.

    That is shared memory that goes with its last user (shmctl(2), SHM_DEST), here by its ids, and the message queues of
    POSIX (mq_overview(7)), by their names.
    """

    def work() -> tuple[list[int], list[str]]:
        enter(Path(f"/proc/{pid}/ns/ipc"), CLONE_NEWIPC)
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        removed = [int(words[1]) for words in map(str.split, lines) if int(words[2], 8) & SHM_DEST]
        return removed, _posix_queues()

    return _in_thread(work)


def _posix_queues() -> list[str]:
    """List the message queues in the caller's IPC namespace, of which only their file system tells."""
    mounted = _new_file_system(b"mqueue")
    try:
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    finally:
        os.close(mounted)
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (a descriptor)
    finally:
        os.close(folder)


def remove_segments(pid: int, numbers: Iterable[int]) -> None:
    """Let shared memory in the IPC namespace of a process go with its last user."""

    def work() -> None:
        enter(Path(f"/proc/{pid}/ns/ipc"), CLONE_NEWIPC)
        for number in numbers:
            _check(_libc.shmctl(number, IPC_RMID, None), f"shmctl {number}")

    _in_thread(work)


def has_system_v_objects() -> bool:
    """Say whether there is shared memory, a semaphore or a message queue of System V in the caller's IPC namespace."""
    # sysvipc(7); the first line of each names the columns.
    return any(
        len(Path(f"/proc/sysvipc/{kind}").read_text().splitlines()) > 1 for kind in ("shm", "sem", "msg")
    )


class _Vector(ctypes.Structure):
    """struct iovec of <sys/uio.h>."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def write_memory(pid: int, address: int, content: bytes) -> None:
    """Write into the memory of a process (process_vm_writev(2)).

    Unlike /proc/PID/mem it waits for a page that userfaultfd(2) is to bring.
    """
    buffer = ctypes.create_string_buffer(content, len(content))
    ours = _Vector(ctypes.addressof(buffer), len(content))
    theirs = _Vector(address, len(content))
    written = _libc.process_vm_writev(
        pid, ctypes.byref(ours), ctypes.c_ulong(1), ctypes.byref(theirs), ctypes.c_ulong(1), ctypes.c_ulong(0)
    )
    _check(0 if written == len(content) else -1, f"process_vm_writev to process {pid}")


def set_priority(pid: int, nice: int) -> None:
    """Let a process go ahead of others or behind them, as far as that is permitted."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)


@contextmanager
def urgency() -> Iterator[None]:
    """Let the calling thread go ahead of others, as far as that is permitted."""
    thread = threading.get_native_id()
    usual = os.getpriority(os.PRIO_PROCESS, thread)
    try:
        os.setpriority(os.PRIO_PROCESS, thread, URGENT)
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, usual)


def in_netns(pid: int, function: Callable[[], T]) -> T:
    """Call a function in the network namespace of a process, in a thread that ends with the call.

    Sockets that it opens stay in that namespace, child processes start there.
    """

    def run() -> T:
        enter(Path(f"/proc/{pid}/ns/net"), CLONE_NEWNET)
        return function()

    return _in_thread(run)


def _in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread that ends with it, and so may change its namespaces."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as ex:
            errors.append(ex)

    thread = threading.Thread(target=run, name="namespaces", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
