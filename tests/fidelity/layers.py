"""What program.py does with what a container has for itself, see entries.py; run by any Python, without the project."""

import contextlib
import ctypes
import fcntl
import os
import socket
import stat
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_held = {}
MQ_FLAGS = 0o102  # O_CREAT | O_RDWR


def _call(name, *values):
    result = getattr(_libc, name)(*values)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def _read(path):
    with open(path) as file:
        return file.read()


# ---- names and mounts


def names():
    """Return what the container calls itself."""
    return [os.uname().nodename, socket.gethostname(), _read("/proc/sys/kernel/domainname")]


def mounts():
    """Return what is mounted where, and with which options, in no order; of overlays, not where their layers are."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        words, (kind, source, options) = head.split(), tail.split()
        peers = [word.partition(":")[0] for word in words[6:]]
        own = [one for one in options.split(",") if not one.partition("=")[0].endswith("dir")]
        found.append([words[4], words[5], peers, kind, source, sorted(own)])
    return sorted(found, key=str)


def devices():
    """Return what is in /dev: kinds, rights, numbers, and where links lead."""
    found = []
    for name in sorted(os.listdir("/dev")):
        status = os.lstat(f"/dev/{name}")
        link = os.readlink(f"/dev/{name}") if stat.S_ISLNK(status.st_mode) else ""
        found.append([name, oct(status.st_mode), status.st_rdev, link])
    return found


LIMITS = (
    *(
        "memory.limit_in_bytes",
        "pids.max",
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpuset.cpus",
        "memory.max",
        "cpu.max",
    ),
    "cpu.weight",
)


def limits_of_groups():
    """Return what its control groups say, as far as they can be seen."""
    found = {}
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for place in (
            f"/sys/fs/cgroup/{controllers}{path}",
            f"/sys/fs/cgroup/{controllers}",
            "/sys/fs/cgroup",
        ):
            for name in LIMITS:
                with contextlib.suppress(OSError):
                    found.setdefault(name, _read(f"{place}/{name}"))
    return found


# ---- files


def layer(prefix):
    """Make files of every kind."""
    folder = f"{prefix}.layer"
    os.mkdir(folder)
    with open(f"{folder}/plain", "w") as file:
        file.write("content")
    os.link(f"{folder}/plain", f"{folder}/linked")
    os.symlink("plain", f"{folder}/symbolic")
    os.mkfifo(f"{folder}/fifo", 0o640)
    with open(f"{folder}/sparse", "w") as file:
        file.truncate(1 << 24)
    with contextlib.suppress(OSError):
        os.setxattr(f"{folder}/plain", "user.note", b"kept")
    os.mkdir(f"{folder}/folder", 0o750)
    os.chmod(f"{folder}/sparse", 0o4711)
    os.utime(f"{folder}/plain", ns=(10**18 + 1, 10**18 + 2))
    os.utime(f"{folder}/symbolic", ns=(10**18 + 3, 10**18 + 4), follow_symlinks=False)
    os.utime(f"{folder}/folder", ns=(10**18 + 5, 10**18 + 6))
    _held["bound"] = one = socket.socket(socket.AF_UNIX)
    one.bind(f"{folder}/bound")
    one.listen()


def layer_now(prefix):
    """Return what is to be known of them."""
    found = []
    for name in sorted(os.listdir(f"{prefix}.layer")):
        path = f"{prefix}.layer/{name}"
        status = os.lstat(path)
        try:
            told = os.getxattr(path, "user.note", follow_symlinks=False).decode()
        except OSError:
            told = ""
        is_sparse = status.st_blocks * 512 < status.st_size
        changed = 0 if stat.S_ISSOCK(status.st_mode) else status.st_mtime_ns
        what = [oct(status.st_mode), status.st_nlink, status.st_size, is_sparse, changed, told]
        found.append([name, *what])
    return found


def reached(prefix):
    """See that whoever connects to the bound socket comes to it."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(f"{prefix}.layer/bound")
        _held["bound"].accept()[0].close()
    return True


def access_times(prefix):
    """Return when files were read last, without reading them."""
    return [os.lstat(f"{prefix}.layer/{name}").st_atime_ns for name in ("plain", "folder")]


def chowned(prefix):
    with open(f"{prefix}.chowned", "w"):
        pass
    os.chown(f"{prefix}.chowned", 1, 2)


def chowned_now(prefix):
    status = os.stat(f"{prefix}.chowned")
    return [status.st_uid, status.st_gid]


def capable(prefix):
    """Give a file a capability, net_bind_service."""
    with open(f"{prefix}.capable", "w"):
        pass
    os.setxattr(
        f"{prefix}.capable", "security.capability", struct.pack("<IIIII", 0x2000001, 1 << 10, 0, 0, 0)
    )


def removed():
    """Remove a file of the image, and make a folder of a file of it."""
    os.unlink("/srv/fidelity/removed")
    os.unlink("/srv/fidelity/replaced")
    os.mkdir("/srv/fidelity/replaced")


def deleted(prefix):
    _held["deleted"] = fd = os.open(f"{prefix}.deleted", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"deleted")
    os.unlink(f"{prefix}.deleted")


def deleted_now():
    fd = _held["deleted"]
    return [os.pread(fd, 100, 0).decode(), os.fstat(fd).st_nlink, os.readlink(f"/proc/self/fd/{fd}")]


def identities(prefix):
    """Return by what a file is known: device and number."""
    status = os.stat(f"{prefix}.data")
    return [status.st_dev, status.st_ino]


def changed_at(prefix):
    return os.stat(f"{prefix}.data").st_ctime_ns


def lock_files(prefix):
    """Lock a file, and some bytes of another; a descriptor that is closed would take the latter away."""
    for name in ("locked", "records"):
        _held[name] = open(f"{prefix}.{name}", "w+")
        _held[f"other {name}"] = open(f"{prefix}.{name}", "r+")
    fcntl.flock(_held["locked"], fcntl.LOCK_EX)
    fcntl.lockf(_held["records"], fcntl.LOCK_EX, 10, 5)


def locks_now():
    """Return whether a file is locked for others, and which bytes of another are (F_OFD_GETLK)."""
    try:
        fcntl.flock(_held["other locked"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = "free"
    except OSError:
        found = "taken"
    asked = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
    kind, _, begin, length, _ = struct.unpack("hhqqi", fcntl.fcntl(_held["other records"], 36, asked))
    return [found, kind == fcntl.F_WRLCK, begin, length]


def shared_file():
    """Put something into /dev/shm."""
    with open("/dev/shm/fidelity", "w") as file:
        file.write("shared")


# ---- System V and POSIX


def segments():
    """Make shared memory, a semaphore and a queue of System V."""
    _held["shm"] = _call("shmget", 0x7001, 4096, 0o1640)
    at = _libc.shmat(_held["shm"], None, 0)
    ctypes.memmove(at, b"shared", 6)
    _held["at"] = at
    _held["sem"] = _call("semget", 0x7002, 2, 0o1600)
    _call("semctl", _held["sem"], 1, 16, 7)
    _held["msg"] = _call("msgget", 0x7003, 0o1600)
    _call("msgsnd", _held["msg"], struct.pack("l6s", 5, b"queued"), 6, 0)


def segments_now():
    lines = [
        line.split() for name in ("shm", "sem", "msg") for line in _read(f"/proc/sysvipc/{name}").splitlines()
    ]
    ids = [words[:3] for words in lines]
    return [ids, ctypes.string_at(_held["at"], 6).decode(), _call("semctl", _held["sem"], 1, 12)]


def removed_segment():
    """Make shared memory that goes when nobody has it any more."""
    _held["going"] = _call("shmget", 0, 4096, 0o1600)
    _held["going at"] = _libc.shmat(_held["going"], None, 0)
    ctypes.memmove(_held["going at"], b"going", 5)
    _call("shmctl", _held["going"], 0, None)


def removed_segment_now():
    lines = [line.split() for line in _read("/proc/sysvipc/shm").splitlines()]
    return [
        [words[:3] for words in lines if words[1] == str(_held["going"])],
        ctypes.string_at(_held["going at"], 5).decode(),
    ]


def make_queue():
    """Put a message into a POSIX queue, and close it."""
    fd = _call("mq_open", b"/fidelity", MQ_FLAGS, 0o600, None)
    _call("mq_send", fd, b"kept", 4, 3)
    _call("mq_close", fd)
