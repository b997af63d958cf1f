"""What a program may not have open, map or be part of, and how to call it: looked for before anything is touched.

Everything is allowed by name and the rest refused, so that what a kernel to come brings is refused, too. CRIU would
refuse most of it by itself, but only after the freeze, and in words that do not help. Sockets with addresses are
preflight.py's business; here is what else /proc tells of a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import descriptors, namespaces, tree
from .model import App, Host
from .pairs import Pairs
from .tree import DELETED, PROC, OpenFile
from .volumes import covers

GHOST_LIMIT = 64 << 20
SECOND_LOOK = 0.005  # seconds after the first
_DEVICES = {"null", "zero", "full", "random", "urandom"}
_ANONYMOUS = {"[eventpoll]", "[eventfd]", "[timerfd]", "[signalfd]", "inotify", "[pidfd]"}
# What users know by another name than the kernel's.
_NAMES = {
    "[io_uring]": "an io_uring",
    "[perf_event]": "a perf event",
    "[fanotify]": "a fanotify group",
    "[userfaultfd]": "a userfaultfd",
    "kvm-vm": "a virtual machine",
}
# File systems of the kernel's own whose files have paths that lead nowhere (<linux/magic.h>).
_UNREACHABLE = {0x19800202: "the POSIX message queue", 0x5345434D: "secret memory"}
_STATFS = struct.Struct("@l")  # the first member of struct statfs is its type
_STATFS_SIZE = 512  # more than any architecture's
_libc = ctypes.CDLL(None, use_errno=True)
_HINTS = {
    "[io_uring]": "; MariaDB does without one with --innodb-use-native-aio=0, what is made with libuv (Node.js) with "
    "UV_USE_IO_URING=0 in its environment",
}
"""How programs can be kept from using what cannot be carried."""
_SOCKETS = {"TCP", "TCPv6", "UDP", "UDPv6", "UNIX", "UNIX-STREAM", "NETLINK"}
_TTY_MAJORS = {4, 5, *range(128, 144), 204}
_SHARED_MEMORY = re.compile(r"/SYSV[0-9a-f]{8}( \(deleted\))?$")
_PROCESS_FILE = re.compile(r"/proc/(\d+)(/|$)")
_NAMESPACES = [
    kind
    for kind in ("net", "mnt", "user", "ipc", "uts", "pid", "time")
    if Path(f"/proc/self/ns/{kind}").exists()
]


def find(app: App, destination: Host) -> str | None:
    """Say what keeps a program from being moved, or None.

    It has to be there at a second look: Redis, for one, opens /proc/self/stat ten times a second for a moment.
    """
    found = list(offences(app, destination))
    if found:
        time.sleep(SECOND_LOOK)
        still = set(offences(app, destination))
        found = [offence for offence in found if offence in still]
    return next(iter(found), None)


def offences(app: App, destination: Host) -> Iterator[str]:
    """List what keeps a program from being moved, each as a clause for a user."""
    pids = tree.processes(app.pid)
    seen: set[str] = set()
    if leaderless := [pid for pid in pids if tree.living_thread(pid) not in (0, pid)]:
        for pid in leaderless:
            yield (
                f"the main thread of process {pid} has ended (pthread_exit) and others go on, "
                "which CRIU would take for a process that has ended"
            )
        return  # of which /proc would tell nothing else
    unread, keyed = _unread_netlink(app.pid), descriptors.keyed_sockets(app.pid)
    pairs = Pairs(app.pid, pids, app.engine.engine.capitalize() if app.engine else None)
    inside = tree.mounts(app.pid) if app.container or app.engine else None
    if inside is not None:
        yield from _guests(app.pid, pids)
    for pid in pids:
        try:
            yield from _process(pid, app.pid)
            for file in tree.open_files([pid]):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    yield from _descriptor(file, unread, keyed, pairs)
                    if inside is not None:
                        yield from _outside(file, inside, None if app.engine else app.log)
                    elif (
                        _is_file(file.target)
                        and file.target not in seen
                        and not covers(app.volumes, file.target)
                    ):
                        seen.add(file.target)
                        yield from _place(file.target, f"/proc/{pid}/fd/{file.fd}", pid, destination)
            for path, link in _mapped(pid):
                if path not in seen and not covers(app.volumes, path):
                    seen.add(path)
                    with contextlib.suppress(FileNotFoundError):  # unmapped meanwhile
                        yield from _mapping(path, link, pid, None if inside is not None else destination)
        except OSError:
            if tree.is_running(pid):
                raise
    with contextlib.suppress(FileNotFoundError):  # it has ended
        if tree.namespace(app.pid, "ipc") != tree.namespace("self", "ipc"):  # else they are everybody's
            _, queues = namespaces.objects_of(app.pid)
            yield from (f"it has {descriptors.QUEUE % name}" for name in queues)


def _process(pid: int, root: int) -> Iterator[str]:
    status = dict(line.split(":\t", 1) for line in tree.read_or_empty(PROC / f"{pid}/status").splitlines())
    tracer = status.get("TracerPid", "0").strip()
    if tracer != "0":
        yield f"process {pid} is traced by process {tracer} (a debugger, or strace)"
    yield from descriptors.of_process(pid)
    for kind in _NAMESPACES:
        if _link(f"/proc/{pid}/ns/{kind}") != _link(f"/proc/{root}/ns/{kind}"):
            yield f"process {pid} is in a {kind} namespace of its own"
    if "time" in _NAMESPACES and _link(f"/proc/{pid}/ns/time_for_children") != _link(f"/proc/{pid}/ns/time"):
        yield f"process {pid} has another time namespace for its children than for itself (CLONE_NEWTIME)"


def _descriptor(file: OpenFile, unread: set[int], keyed: set[int], pairs: Pairs) -> Iterator[str]:
    """Look at one open descriptor."""
    path, target = f"/proc/{file.pid}/fd/{file.fd}", file.target
    having = f"process {file.pid} has %s open (descriptor {file.fd})"
    kind, _, rest = target.partition(":")
    if kind == "anon_inode" and rest not in _ANONYMOUS:
        yield having % _NAMES.get(rest, f"a {rest.strip('[]')} object") + _HINTS.get(rest, "")
    elif target == "anon_inode:inotify":
        yield from (having % what for what in descriptors.of_inotify(file))
    elif kind == "socket":
        protocol = _protocol(path)
        if protocol not in _SOCKETS:
            yield having % f"a {protocol} socket"
        elif protocol == "NETLINK" and int(rest.strip("[]")) in unread:
            yield having % "a netlink socket with unread messages"
        else:
            yield from (having % what for what in descriptors.of_socket(file, keyed))
    elif kind == "pipe" and _flags(file) & os.O_DIRECT:
        yield having % "a pipe in packet mode"
    elif kind in _NAMESPACES and rest.startswith("["):
        yield having % f"a {kind} namespace"
    elif target.startswith("/"):
        mode = Path(path).stat()
        if what := _UNREACHABLE.get(_file_system(path)):
            yield having % (f"{what} {target}" if what.startswith("the ") else what)
        if stat.S_ISCHR(mode.st_mode) and os.major(mode.st_rdev) in _TTY_MAJORS:
            what = having % f"the terminal {target}"
            yield from (f"{what}, but {reason}" for reason in pairs.why_not(file, mode))
        else:
            yield from (having % what for what in _device(target, mode))
        if match := _PROCESS_FILE.match(target):
            yield having % f"the file {target} of process {match[1]}"
        if stat.S_ISDIR(mode.st_mode):
            yield from (having % what for what in descriptors.of_directory(file))
        if stat.S_ISREG(mode.st_mode) and mode.st_nlink == 0 and mode.st_size > GHOST_LIMIT:
            size = mode.st_size >> 20
            yield having % f"the deleted file {target.removesuffix(DELETED)} of {size} MiB"


def _file_system(path: str) -> int:
    """Return the type of the file system that a file is in (statfs(2)), 0 if it is gone."""
    answer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _libc.statfs(os.fsencode(path), answer) != 0:
        return 0
    return int(_STATFS.unpack_from(answer)[0])


def _device(target: str, mode: os.stat_result) -> Iterator[str]:
    if stat.S_ISCHR(mode.st_mode) and os.major(mode.st_rdev) in _TTY_MAJORS:
        yield f"the terminal {target}"
    elif stat.S_ISBLK(mode.st_mode) or (stat.S_ISCHR(mode.st_mode) and Path(target).name not in _DEVICES):
        yield f"the device {target}"


def _guests(root: int, pids: list[int]) -> Iterator[str]:
    """List who was put into a container from outside (`runc exec`): CRIU carries the first one and its descendants."""
    space = _link(f"/proc/{root}/ns/pid")
    for folder in PROC.iterdir():
        if folder.name.isdigit() and int(folder.name) not in pids:
            with contextlib.suppress(OSError):
                if _link(f"{folder}/ns/pid") == space and tree.is_running(int(folder.name)):
                    command = tree.read_or_empty(folder / "comm").strip()
                    if int(folder.name) not in tree.processes(root):  # it may have been started meanwhile
                        yield f"process {folder.name} ({command}) was started in it from outside"


def _outside(file: OpenFile, inside: set[int], log: Path | None) -> Iterator[str]:
    """Look at a descriptor of a container: what it has open is on a mount of its own, except its log."""
    if not file.target.startswith("/") or file.target.startswith("/memfd:"):
        return
    mount = tree.fdinfo(file, "mnt_id")
    if mount and int(mount) not in inside:
        path = Path(f"/proc/{file.pid}/fd/{file.fd}")
        if log is None or not os.path.samestat(path.stat(), log.stat()):
            yield (
                f"process {file.pid} has {file.target} open (descriptor {file.fd}), which is not in the container"
            )


def _mapping(path: str, link: str, pid: int, destination: Host | None) -> Iterator[str]:
    """Look at one mapped file; without `destination` it is a container's, and goes along."""
    if _SHARED_MEMORY.match(path):
        if _link(f"/proc/{pid}/ns/ipc") == _link("/proc/self/ns/ipc"):  # restored or not, it is everybody's
            yield f"process {pid} has System V shared memory of the machine's IPC namespace"
    elif path.startswith("/dev/") and not path.startswith("/dev/shm/"):
        yield from (f"process {pid} maps {what}" for what in _device(path, Path(link).stat()))
    elif destination is not None and _is_file(path):
        yield from _place(path, link, pid, destination)


def _place(path: str, link: str, pid: int, destination: Host) -> Iterator[str]:
    """See that a file is the same one at the destination; of a deleted one the folder counts."""
    here = Path(link).stat()
    if path.endswith(DELETED):
        if here.st_nlink == 0 and path.startswith("/memfd:"):
            return
        folder = Path(path.removesuffix(DELETED)).parent
        there, here_folder = _stat_at(destination, folder), _stat_at_process(pid, folder)
        if there is None or here_folder is None or not os.path.samestat(there, here_folder):
            yield f"the folder {folder} of its deleted file {path.removesuffix(DELETED)} is not on {destination.name}"
        return
    there = _stat_at(destination, Path(path))
    if there is None:
        yield f"its file {path} is not on {destination.name}"
    elif not os.path.samestat(here, there):
        yield f"its file {path} is another one on {destination.name}"


def _stat_at(host: Host, path: Path) -> os.stat_result | None:
    return _stat_at_process(host.pid, path)


def _stat_at_process(pid: int, path: Path) -> os.stat_result | None:
    """Look a path up in the mount namespace of a process."""
    try:
        return Path(f"/proc/{pid}/root{path}").stat()
    except OSError:
        return None


def _is_file(path: str) -> bool:
    """Say whether a path of /proc names a file that must be found again at the destination."""
    return (
        path.startswith("/") and not path.startswith(("/dev/", "/memfd:", "/proc/", "/SYSV"))
    ) or path.startswith("/dev/shm/")


def _mapped(pid: int) -> Iterator[tuple[str, str]]:
    """List a process's mapped files, program, working directory and root: what they are called, and a way to them."""
    for name in ("exe", "cwd", "root"):
        link = f"/proc/{pid}/{name}"
        yield _link(link), link
    folder = f"/proc/{pid}/map_files"
    for name in os.listdir(folder):  # noqa: PTH208 (names only)
        with contextlib.suppress(FileNotFoundError):
            yield _link(f"{folder}/{name}"), f"{folder}/{name}"


def _link(path: str) -> str:
    return os.readlink(path)  # noqa: PTH115 (no Path objects: there are hundreds)


def _protocol(path: str) -> str:
    """Return what the kernel calls the protocol of a socket."""
    try:
        return os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode()
    except OSError as ex:
        if isinstance(ex, FileNotFoundError) or not _link(path).startswith("socket:"):
            raise FileNotFoundError(path) from ex  # closed meanwhile
        return "socket of an unknown kind"


def _flags(file: OpenFile) -> int:
    return int(tree.fdinfo(file, "flags") or "0", 8)


def _unread_netlink(pid: int) -> set[int]:
    """Return the inodes of the netlink sockets that have something to be read."""
    rows: Iterable[list[str]] = map(str.split, (PROC / f"{pid}/net/netlink").read_text().splitlines()[1:])
    return {int(row[9]) for row in rows if int(row[4]) > 0}
