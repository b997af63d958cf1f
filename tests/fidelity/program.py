"""The program that is moved: it does what a plan (JSON) says, and tells what it finds whenever it is asked.

Run by any Python, without the project: `program.py PLAN PREFIX`. It waits for the plan, which a container gets when it
runs, and is ready when it prints "ready". Whenever the file PREFIX.ask is there, it removes it and writes what it finds
to PREFIX.N, N being 1, 2, …

A plan has "entries" (name → [code, expression], in their order, see entries.py, whose helpers are here), "peer"
(address and port of a TCP server), and "options": rows [level, number, size, values to try].
"""

import ctypes
import fcntl
import json
import os
import queue
import resource  # noqa: F401 (for entries)
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time

from layers import *  # noqa: F403 (for entries)
from ptys import *  # noqa: F403 (for entries)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
C = ctypes.c_void_p


def _checked(result, function, _):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function.__name__)
    return result


CHECKED = "prctl personality syscall madvise mlock mlockall timerfd_create timerfd_settime inotify_init1"
for _name in (*CHECKED.split(), "inotify_add_watch"):
    getattr(libc, _name).errcheck = _checked
keep = {}
NUMBERS = {
    "x86_64": {"ioprio_set": 251, "ioprio_get": 252, "bpf": 321, "set_mempolicy": 238},
    "aarch64": {"ioprio_set": 30, "ioprio_get": 31, "bpf": 280, "set_mempolicy": 237},
}[os.uname().machine]
NUMBERS["mseal"] = 462


def prctl(option, *values):
    return libc.prctl(
        option, *[ctypes.c_ulong(v) if isinstance(v, int) else v for v in (*values, 0, 0, 0, 0)[:4]]
    )


def from_prctl(option):
    value = ctypes.c_int(-1)
    libc.prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value


def syscall(name, *values):
    return libc.syscall(NUMBERS[name], *values)


def text(path):
    with open(path) as file:
        return file.read()


def put(path, value):
    with open(path, "w") as file:
        file.write(value)


def status(key):
    return [line for line in text("/proc/self/status").splitlines() if line.startswith(f"{key}:")]


# ---- threads and children

_work, _done = queue.Queue(), queue.Queue()


def _serve():
    while True:
        try:
            _done.put(_work.get()())
        except Exception as ex:
            _done.put(f"failed: {ex}")


threading.Thread(target=_serve, daemon=True).start()


def call_in(_, function):
    _work.put(function)
    return _done.get()


def replaced():
    """Have a deleted file whose name another one has."""
    path = f"{prefix}.replaced"
    for number in range(2):
        keep[f"replaced{number}"] = open(path, "w+")
        if number == 0:
            os.unlink(path)


def anothers_zombie():
    """Have an ended child that was another user's."""
    keep["anothers"] = pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        os._exit(3)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def zombie():
    keep["zombie"] = pid = os.fork()
    if pid == 0:
        os._exit(7)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def stopped():
    keep["stopped"] = pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(1000)
    os.kill(pid, signal.SIGSTOP)


def state(pid):
    """Return whether a child is seen as stopped, which is told as often as one asks (WNOWAIT)."""
    told = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    return told and [told.si_status, told.si_code]


def other():
    """Let a child have another policy: of merging, or, where that may not be had, of memory failures."""
    if os.fork() == 0:
        try:
            prctl(67, 1)
        except OSError:
            prctl(33, 1, 1)
        time.sleep(1000)
    time.sleep(0.5)


def personality():
    """Have a personality that does no harm: the first one that may be had."""
    try:
        libc.personality(0x40000)
    except OSError:
        libc.personality(0x20000)


_come = {}


def count_signals():
    """Count the signals that a stop and its end would bring."""
    for number in (signal.SIGCHLD, signal.SIGCONT):
        _come[number.name] = 0
        signal.signal(number, _count)


def _count(number, _):
    _come[signal.Signals(number).name] += 1


def counted():
    """Return how many have come."""
    return dict(_come)


# ---- memory


def area(name, advice=None, prot=3, size=16384):
    at = libc.mmap(None, size, prot, 0x22, -1, 0)
    libc.mmap(None, 4096, 0, 0x22, -1, 0)  # lest it be merged with its neighbour
    if prot & 2:
        ctypes.memset(at, 1, min(size, 8192))
    if advice is not None:
        libc.madvise(C(at), size, advice)
    keep[name] = at


def flags(name):
    """Return the flags of the mapping that an area is in: equal neighbours may have become one."""
    found = False
    for line in text("/proc/self/smaps").splitlines():
        begin, dash, end = line.partition(" ")[0].partition("-")
        if dash:
            found = int(begin, 16) <= keep[name] < int(end, 16)
        elif found and line.startswith("VmFlags:"):
            return sorted(set(line.split()[1:]) - {"sd"})
    return None


def seal():
    area("sealed")
    syscall("mseal", C(keep["sealed"]), 16384, 0)


def numa():
    syscall("set_mempolicy", 3, ctypes.byref(ctypes.c_ulong(1)), 2)
    area("numa")


# ---- files


def fdinfo(name, key):
    return [line for line in text(f"/proc/self/fdinfo/{keep[name]}").splitlines() if line.startswith(key)]


def wide():
    keep["wide"] = os.eventfd(0)
    os.eventfd_write(keep["wide"], 1 << 40 | 5)


def semaphore_read():
    one = os.eventfd_read(keep["semaphore"])
    os.eventfd_write(keep["semaphore"], one)
    return one


def pipe():
    keep["pipe"] = os.pipe()
    fcntl.fcntl(keep["pipe"][0], 1031, 1 << 17)
    os.write(keep["pipe"][1], b"x" * 70000)


def available(fd):
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]


def memfd():
    keep["memfd"] = os.memfd_create("m", os.MFD_ALLOW_SEALING)
    os.write(keep["memfd"], b"content")
    fcntl.fcntl(keep["memfd"], 1033, 0x2 | 0x4)


def file():
    keep["file"] = file = open(f"{prefix}.data", "w+")
    file.write("x" * 5000)
    file.flush()
    file.seek(1234)


def timerfd():
    keep["timerfd"] = libc.timerfd_create(1, 0)
    libc.timerfd_settime(keep["timerfd"], 0, struct.pack("qqqq", 50, 0, 1000, 0), None)


def timer_interval():
    buffer = ctypes.create_string_buffer(32)
    libc.timerfd_gettime(keep["timerfd"], buffer)
    return struct.unpack("qqqq", buffer.raw)[0]


def epoll():
    keep["epoll"] = one = select.epoll()
    one.register(keep["semaphore"], select.EPOLLIN | select.EPOLLET)
    one.register(keep["pipe"][0], select.EPOLLIN | select.EPOLLONESHOT)


def epoll_targets():
    lines = text(f"/proc/self/fdinfo/{keep['epoll'].fileno()}").splitlines()
    return sorted(" ".join(line.split()[:4]) for line in lines if line.startswith("tfd"))


def inotify():
    keep["folder"] = f"{prefix}.folder"
    os.mkdir(keep["folder"])
    keep["inotify"] = libc.inotify_init1(os.O_NONBLOCK)
    libc.inotify_add_watch(keep["inotify"], keep["folder"].encode(), 0x100)
    inotify_told()


def inotify_watches():
    lines = text(f"/proc/self/fdinfo/{keep['inotify']}").splitlines()
    return [line.partition("ignored_mask")[0] for line in lines if line.startswith("inotify")]


def inotify_told():
    """Say whether the last file's event, or that events were lost, can be read; then make another file."""
    got, data = [], b""
    try:
        data = os.read(keep["inotify"], 1 << 20)
    except BlockingIOError:
        pass
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        got.append(mask)
        data = data[16 + length :]
    keep["files"] = keep.get("files", 0) + 1
    open(f"{keep['folder']}/{keep['files']}", "w").close()
    return [mask in (0x100, 0x4000) for mask in got]


def unix_datagrams():
    keep["datagrams"] = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for word in (b"one", b"three"):
        keep["datagrams"][0].send(word)


def unix_peek():
    return keep["datagrams"][1].recv(10, socket.MSG_PEEK).decode()


def scm():
    keep["scm"] = socket.socketpair()
    with open(f"{prefix}.sent", "w+") as sent:
        sent.write("sent")
        sent.flush()
        socket.send_fds(keep["scm"][0], [b"x"], [sent.fileno()])


def scm_peek():
    _, told, _, _ = keep["scm"][1].recvmsg(10, socket.CMSG_LEN(4), socket.MSG_PEEK)
    (fd,) = struct.unpack("i", told[0][2])
    content = os.pread(fd, 10, 0).decode()
    os.close(fd)
    return content


# ---- multicast


def join(name, group):
    keep[name] = one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(0, 35, socket.inet_aton(group) + socket.inet_aton("0.0.0.0"))


def join_source():
    keep["sources"] = one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own = socket.inet_aton(plan["own"])
    one.setsockopt(0, 39, socket.inet_aton("239.1.2.4") + own + socket.inet_aton("10.9.9.9"))


def join6():
    keep["group6"] = one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    one.setsockopt(41, 20, socket.inet_pton(socket.AF_INET6, "ff05::77") + struct.pack("=I", 1))


def joined(name, group):
    """Return the filter mode and the number of sources of a group on any interface, as the socket has it."""
    version = 41 if ":" in group else 0
    for index, _ in socket.if_nameindex():
        if version:
            address = struct.pack("=H2x4x16s", socket.AF_INET6, socket.inet_pton(socket.AF_INET6, group))
        else:
            address = struct.pack("=H2x4s", socket.AF_INET, socket.inet_aton(group))
        head = struct.pack("=I4x", index) + address.ljust(128, b"\0") + struct.pack("=II", 0, 8)
        buffer = ctypes.create_string_buffer(head, 144 + 8 * 128)
        length = ctypes.c_uint32(len(buffer))
        if libc.getsockopt(keep[name].fileno(), version, 48, buffer, ctypes.byref(length)) == 0:
            return struct.unpack_from("=II", buffer, 136)
    return None


# ---- what is refused or warned of


def _pair():
    listener = socket.create_server(("127.0.0.1", 0))
    one = socket.create_connection(listener.getsockname())
    return listener, one, listener.accept()[0]


def urgent():
    keep["pair"] = pair = _pair()
    pair[1].send(b"!", socket.MSG_OOB)


def md5():
    keep["md5"] = one = socket.create_server(("0.0.0.0", 7300))
    peer = struct.pack("=H2x4s", 2, socket.inet_aton("10.77.1.2"))
    one.setsockopt(6, 14, struct.pack("=128sHHI80s", peer, 0, 3, 0, b"key").ljust(216, b"\0"))


def _half():
    keep["half"] = one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.connect(("127.0.0.1", 9))
    return one


def cork():
    one = _half()
    one.setsockopt(17, 1, 1)
    one.send(b"half")


def more():
    _half().send(b"half", 0x8000)


def dnotify():
    signal.signal(29, signal.SIG_IGN)
    keep["directory"] = os.open("/tmp", os.O_RDONLY)
    fcntl.fcntl(keep["directory"], fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)


def ebpf_filter():
    """Attach a program that takes every packet whole; the program's descriptor is closed."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0)  # r0 = -1; exit
    code, license = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    values = struct.pack("=IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(license)).ljust(128, b"\0")
    program = syscall("bpf", 5, values, len(values))
    keep["filtered"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    keep["filtered"].setsockopt(1, 50, program)
    os.close(program)


def reuseport():
    keep["reuseport"] = sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "ab"]
    for one in sockets:
        one.setsockopt(1, 15, 1)
        one.bind(("0.0.0.0", 7200))


def zerocopy():
    keep["pair"] = pair = _pair()
    pair[1].setsockopt(1, 60, 1)


def stamps():
    keep["pair"] = pair = _pair()
    pair[1].setsockopt(1, 37, 1 << 7 | 1 << 1 | 1 << 4)


def error():
    keep["error"] = one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.connect(("127.0.0.1", 9))
    one.send(b"x")
    time.sleep(0.2)


def netlink():
    keep["netlink"] = one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    one.bind((0, 0))
    one.setsockopt(270, 1, 1)


# ---- sockets with options


def sockets():
    """Make one socket of each kind."""
    made = {}
    for name, family, anywhere, port in (
        ("4", socket.AF_INET, "0.0.0.0", 7000),
        ("6", socket.AF_INET6, "::", 7005),
    ):
        made[f"listening{name}"] = socket.create_server(
            (anywhere, port), family=family, dualstack_ipv6=name == "6"
        )
        made[f"datagram{name}"] = one = socket.socket(family, socket.SOCK_DGRAM)
        one.bind((anywhere, port + 1))
        made[f"idle{name}"] = socket.socket(family, socket.SOCK_STREAM)
    made["connected4"] = socket.create_connection(tuple(plan["peer"]))
    made["connected datagram4"] = one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.connect(tuple(plan["peer"]))
    print("listening", flush=True)
    made["accepted4"] = made["listening4"].accept()[0]
    made["accepted6"] = made["listening6"].accept()[0]
    for name, kind in (("stream", 1), ("datagram", 2), ("seqpacket", 5)):
        made[f"UNIX {name}"], keep[f"other {name}"] = socket.socketpair(socket.AF_UNIX, kind)
    return made


def get(one, level, number, size):
    try:
        return one.getsockopt(level, number, size or 256).hex()
    except OSError as ex:
        return f"error {ex.errno}"


def choose(name, one):
    """Set every option to the first value that the socket takes and that changes what it tells."""
    for level, number, size, values in plan["options"]:
        before = get(one, level, number, size)
        for value in values:
            try:
                one.setsockopt(level, number, bytes.fromhex(value))
            except OSError:
                continue
            if get(one, level, number, size) != before:
                break


def look():
    found = {}
    for name, (_, expression) in plan["entries"].items():
        try:
            found[name] = eval(expression, globals())
        except Exception as ex:
            found[name] = f"failed: {why(ex)}"
    for name, one in made.items():
        found[name] = {
            f"{level}.{number}": get(one, level, number, size) for level, number, size, _ in plan["options"]
        }
    return found


def why(ex):
    """Return an exception, and the file that it is about."""
    file = getattr(ex, "filename", None)
    return repr(ex) if file is None else f"{ex!r} {file}"


while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
with open(sys.argv[1]) as _file:
    plan = json.load(_file)
prefix, made, failed = sys.argv[2], {}, {}
for _name, (_code, _) in plan["entries"].items():
    try:
        exec(_code, globals())
    except Exception as _ex:
        failed[_name] = why(_ex)
if plan.get("options"):
    made = sockets()
    for _name, _one in made.items():
        choose(_name, _one)
with open(f"{prefix}.tmp", "w") as _file:
    json.dump(failed, _file)
os.rename(f"{prefix}.tmp", f"{prefix}.failed")
print("ready", flush=True)
asked = 0
while True:
    if os.path.exists(f"{prefix}.ask"):
        os.unlink(f"{prefix}.ask")
        asked += 1
        with open(f"{prefix}.tmp", "w") as _file:
            json.dump(look(), _file)
        os.rename(f"{prefix}.tmp", f"{prefix}.{asked}")
    time.sleep(0.02)
