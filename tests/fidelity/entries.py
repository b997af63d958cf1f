"""State of a program besides its sockets' options, one row for each thing; programs are made from the rows.

`code` is what a program does to have it, `read` an expression that tells of it. What is restored is read before and
after the moves; what is refused or warned of has the words that must be said. The rows' names are the ledger's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Fate(Enum):
    """What becomes of a thing."""

    RESTORED = "restored"
    REFUSED = "refused before the freeze"
    WARNED = "warned of in the report"
    HIDDEN = "cannot be seen from outside of the program"


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing."""

    name: str
    code: str = ""
    read: str = "True"
    fate: Fate = Fate.RESTORED
    words: str = ""
    """A regular expression: the refusal or the warning."""
    note: str = ""


def _refused(name: str, code: str, words: str, note: str = "") -> Entry:
    return Entry(name, code, "True", Fate.REFUSED, words, note)


def _warned(name: str, code: str, words: str, note: str = "") -> Entry:
    return Entry(name, code, "True", Fate.WARNED, words, note)


_LIMITS = (
    *(
        "AS",
        "CORE",
        "CPU",
        "DATA",
        "FSIZE",
        "MEMLOCK",
        "MSGQUEUE",
        "NICE",
        "NOFILE",
        "NPROC",
        "RSS",
        "RTPRIO",
    ),
    *("RTTIME", "SIGPENDING", "STACK"),
)
_STATUS = (
    *(
        "Umask",
        "Uid",
        "Gid",
        "Groups",
        "NoNewPrivs",
        "Seccomp",
        "SigBlk",
        "SigIgn",
        "SigCgt",
        "ShdPnd",
        "SigPnd",
    ),
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "THP_enabled", "Cpus_allowed"),
)

PROCESS = (
    Entry("timer slack", "prctl(29, 123456)", "prctl(30)"),
    Entry("timer slack of a thread", "call_in(1, lambda: prctl(29, 77777))", "call_in(1, lambda: prctl(30))"),
    Entry("I/O priority", "syscall('ioprio_set', 1, 0, 2 << 13 | 6)", "syscall('ioprio_get', 1, 0)"),
    Entry(
        "I/O priority of a thread",
        "call_in(1, lambda: syscall('ioprio_set', 1, 0, 3 << 13 | 7))",
        "call_in(1, lambda: syscall('ioprio_get', 1, 0))",
    ),
    Entry(
        "personality",
        "personality()",
        "libc.personality(0xffffffff)",
        note="ADDR_NO_RANDOMIZE and the like",
    ),
    Entry(
        "coredump filter", "put('/proc/self/coredump_filter', '0x7f')", "text('/proc/self/coredump_filter')"
    ),
    Entry("memory-failure policy", "prctl(33, 1, 1)", "prctl(34)", note="PR_MCE_KILL"),
    Entry("merging of all memory", "prctl(67, 1)", "prctl(68)", note="PR_SET_MEMORY_MERGE"),
    Entry("I/O flusher", "prctl(57, 1)", "prctl(58)", note="PR_SET_IO_FLUSHER"),
    Entry("nice value", "os.nice(3)", "os.getpriority(0, 0)"),
    Entry(
        "nice value of a thread",
        "call_in(1, lambda: os.setpriority(0, threading.get_native_id(), 9))",
        "call_in(1, lambda: os.getpriority(0, threading.get_native_id()))",
    ),
    Entry(
        "scheduling policy",
        "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
        "[os.sched_getscheduler(0), os.sched_getparam(0).sched_priority]",
    ),
    Entry("processor affinity", "os.sched_setaffinity(0, {0})", "sorted(os.sched_getaffinity(0))"),
    Entry(
        "out-of-memory score", "put('/proc/self/oom_score_adj', '321')", "text('/proc/self/oom_score_adj')"
    ),
    Entry("name", "prctl(15, b'renamed')", "text('/proc/self/comm')"),
    Entry(
        "name of a thread",
        "call_in(1, lambda: prctl(15, b'second'))",
        "call_in(1, lambda: text('/proc/thread-self/comm'))",
    ),
    Entry("child subreaper", "prctl(36, 1)", "from_prctl(37)"),
    Entry("parent-death signal", "prctl(1, 12)", "from_prctl(2)"),
    Entry("transparent huge pages off", "prctl(41, 1)", "prctl(42)", note="PR_SET_THP_DISABLE"),
    Entry("dumpable", "prctl(4, 0)", "prctl(3)"),
    Entry("keep capabilities", "prctl(7 + 1, 1)", "prctl(7)"),
    Entry("secure bits", "", "prctl(27)"),
    Entry(
        "user and group IDs", "os.setgroups([5, 6, 7])", "[os.getresuid(), os.getresgid(), os.getgroups()]"
    ),
    Entry("process group and session", "", "[os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0)]"),
    Entry("file mode mask", "os.umask(0o027)", "[os.umask(0o027), os.umask(0o027)]"),
    Entry(
        "signal mask",
        "signal.pthread_sigmask(signal.SIG_BLOCK, {21})",
        "sorted(signal.pthread_sigmask(0, []))",
    ),
    Entry(
        "signal handlers",
        "signal.signal(13, signal.SIG_IGN); signal.signal(1, print)",
        "[str(signal.getsignal(n)) for n in range(1, 32)]",
    ),
    Entry("pending signal", "os.kill(os.getpid(), 21)", "sorted(signal.sigpending())"),
    Entry("real interval timer", "signal.setitimer(0, 1000, 50)", "signal.getitimer(0)[1]"),
    Entry("virtual interval timer", "signal.setitimer(1, 1000, 50)", "signal.getitimer(1)[1]"),
    Entry("profiling interval timer", "signal.setitimer(2, 1000, 50)", "signal.getitimer(2)[1]"),
    Entry("working directory", "os.chdir('/tmp')", "os.getcwd()"),
    Entry("root directory", "", "os.readlink('/proc/self/root')"),
    Entry("executable", "", "os.readlink('/proc/self/exe')"),
    Entry("command line", "", "text('/proc/self/cmdline')"),
    Entry("environment", "", "text('/proc/self/environ')"),
    Entry("auxiliary vector", "", "open('/proc/self/auxv', 'rb').read().hex()"),
    Entry("control groups", "", "text('/proc/self/cgroup')"),
    Entry(
        "limits",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (777, 888)); resource.setrlimit(resource.RLIMIT_CORE, (5, 5))",
        "text('/proc/self/limits')",
    ),
    *(Entry(f"limit RLIMIT_{name}", "", f"resource.getrlimit(resource.RLIMIT_{name})") for name in _LIMITS),
    *(Entry(f"status {name}", "", f"status({name!r})") for name in _STATUS),
    Entry("threads", "", "len(os.listdir('/proc/self/task'))"),
    Entry(
        "zombie child", "zombie()", "os.waitid(os.P_PID, keep['zombie'], os.WEXITED | os.WNOWAIT).si_status"
    ),
    Entry("stopped child", "stopped()", "state(keep['stopped'])"),
)

MEMORY = (
    Entry("locked memory", "area('locked'); libc.mlock(C(keep['locked']), 16384)", "flags('locked')"),
    Entry(
        "memory not inherited by children", "area('dontfork', 10)", "flags('dontfork')", note="MADV_DONTFORK"
    ),
    Entry("huge pages wanted", "area('huge', 14)", "flags('huge')", note="MADV_HUGEPAGE"),
    Entry("huge pages not wanted", "area('nohuge', 15)", "flags('nohuge')", note="MADV_NOHUGEPAGE"),
    Entry("memory not dumped", "area('dontdump', 16)", "flags('dontdump')", note="MADV_DONTDUMP"),
    Entry("memory wiped on fork", "area('wipe', 18)", "flags('wipe')", note="MADV_WIPEONFORK"),
    Entry("mergeable memory", "area('merge', 12)", "flags('merge')", note="MADV_MERGEABLE"),
    Entry("memory protection", "area('read', prot=1)", "flags('read')"),
    Entry("sparse memory", "area('sparse', size=1 << 24)", "flags('sparse')"),
)

FILES = (
    Entry("eventfd counter", "keep['plain'] = os.eventfd(7)", "fdinfo('plain', 'eventfd-count')"),
    Entry("eventfd counter of more than 32 bits", "wide()", "fdinfo('wide', 'eventfd-count')"),
    Entry(
        "eventfd semaphore",
        "keep['semaphore'] = os.eventfd(5, os.EFD_SEMAPHORE | os.EFD_NONBLOCK)",
        "[fdinfo('semaphore', 'eventfd-semaphore'), fdinfo('semaphore', 'eventfd-count')]",
    ),
    Entry("eventfd reads", "", "semaphore_read()"),
    Entry("pipe size", "pipe()", "fcntl.fcntl(keep['pipe'][0], 1032)"),
    Entry("pipe content", "", "available(keep['pipe'][0])"),
    Entry("memfd seals", "memfd()", "fcntl.fcntl(keep['memfd'], 1034)"),
    Entry("memfd content", "", "os.pread(keep['memfd'], 100, 0).hex()"),
    Entry("file offset", "file()", "keep['file'].tell()"),
    Entry(
        "file owner", "fcntl.fcntl(keep['file'], fcntl.F_SETOWN, os.getpid())", "fcntl.fcntl(keep['file'], 9)"
    ),
    Entry("file signal", "fcntl.fcntl(keep['file'], 10, 40)", "fcntl.fcntl(keep['file'], 11)"),
    Entry("file flags", "fcntl.fcntl(keep['file'], 4, os.O_APPEND)", "fcntl.fcntl(keep['file'], 3)"),
    Entry(
        "descriptor flags", "os.set_inheritable(keep['file'].fileno(), True)", "fcntl.fcntl(keep['file'], 1)"
    ),
    Entry("open path", "keep['path'] = os.open('/etc', os.O_PATH)", "fcntl.fcntl(keep['path'], 3)"),
    Entry("timerfd interval", "timerfd()", "timer_interval()"),
    Entry("epoll targets", "epoll()", "epoll_targets()"),
    Entry("inotify watches", "inotify()", "inotify_watches()"),
    Entry("unread inotify events", "", "inotify_told()", note="IN_Q_OVERFLOW is delivered in their place"),
    Entry("unread UNIX datagrams", "unix_datagrams()", "unix_peek()"),
    Entry("descriptors under way (SCM_RIGHTS)", "scm()", "scm_peek()"),
    Entry("peer's credentials", "", "keep['datagrams'][0].getsockopt(1, 17, 12).hex()"),
)

CONTAINER = (
    Entry("host name and domain name", "", "names()"),
    Entry("hostname file", "", "text('/etc/hostname')"),
    Entry("hosts file", "", "text('/etc/hosts')"),
    Entry("resolver's file", "", "text('/etc/resolv.conf')"),
    Entry("mounts", "", "mounts()"),
    Entry("devices", "", "devices()"),
    Entry("limits of control groups", "", "limits_of_groups()"),
    Entry(
        "files of every kind", "layer(prefix)", "layer_now(prefix)", note="kinds, modes, links, sizes, times"
    ),
    Entry("access times of files", "", "access_times(prefix)[0]"),
    Entry("access times of folders", "", "access_times(prefix)[1]"),
    Entry("bound UNIX socket", "", "reached(prefix)"),
    Entry("owner of a file", "chowned(prefix)", "chowned_now(prefix)"),
    Entry(
        "capability of a file",
        "capable(prefix)",
        "os.getxattr(f'{prefix}.capable', 'security.capability').hex()",
    ),
    Entry(
        "removed and replaced files of the image",
        "removed()",
        "[os.path.exists('/srv/fidelity/removed'), os.listdir('/srv/fidelity/replaced')]",
    ),
    Entry("deleted file that is open", "deleted(prefix)", "deleted_now()"),
    Entry("locks of files and records", "lock_files(prefix)", "locks_now()"),
    Entry("shared memory of POSIX", "shared_file()", "text('/dev/shm/fidelity')"),
    Entry("objects of System V", "segments()", "segments_now()"),
    Entry("shared memory that goes with its last user", "removed_segment()", "removed_segment_now()"),
    Entry("device and inode numbers of files", "", "identities(prefix)"),
    Entry("change times of files", "", "changed_at(prefix)"),
    Entry("signals that have come", "count_signals()", "counted()", note="SIGCHLD and SIGCONT"),
)
"""What a container has for itself."""

MULTICAST = (
    Entry("IPv4 membership", "join('group', '239.1.2.3')", "joined('group', '239.1.2.3')"),
    Entry("IPv4 membership with sources", "join_source()", "joined('sources', '239.1.2.4')"),
    Entry("IPv6 membership", "join6()", "joined('group6', 'ff05::77')"),
)

TERMINALS = (
    Entry(
        "number and name", "pty('plain')", "[os.ttyname(ptys['plain'][1]), ask(ptys['plain'][0], 0x80045430)]"
    ),
    Entry("settings", "settings()", "told('settings')"),
    Entry("any speed", "speed()", "ask(ptys['speed'][1], 0x802C542A, 44)", note="BOTHER"),
    Entry("locked settings", "locked()", "ask(ptys['locked'][1], termios.TIOCGLCKTRMIOS, 60)"),
    Entry(
        "window size",
        "fcntl.ioctl(pty('window')[1], termios.TIOCSWINSZ, struct.pack('4H', 11, 22, 33, 44))",
        "[ask(fd, termios.TIOCGWINSZ, 8) for fd in ptys['window']]",
    ),
    Entry("packet mode", "packets()", "packet_read()", note="TIOCPKT"),
    Entry("exclusive use", "exclusive()", "both('exclusive', 0x80045440)", note="TIOCEXCL"),
    Entry("lock of the slave", "lock()", "ask(ptys['lock'][0], 0x80045439)"),
    Entry("owner, mode and times of the slave", "owned()", "owned_as()"),
    Entry("unread lines and ends-of-file, and their echoes", "type_lines()", "typed_lines()"),
    Entry("unfinished line", "type_part()", "typed_part()"),
    Entry("unread bytes without lines", "type_bytes('raw')", "typed_bytes('raw')"),
    Entry("unread output", "say()", "said()"),
    Entry("as much unread output as there can be", "fill()", "full()"),
    Entry("output stopped by tcflow", "stopped_by_call()", "goes_on_after('tcflow')"),
    Entry("output stopped by its character", "stopped_by_character()", "goes_on_after('stop')"),
    Entry("master whose slaves have been closed", "hung()", "hung_up()"),
    Entry("master whose slave was never open", "never()", "everything(ptys['never'][0])"),
    Entry("session and foreground process group", "session()", "in_session()"),
    Entry(
        "controlling terminal",
        "ptys['session']",
        "interrupted()",
        note="whose interrupt character comes to the foreground",
    ),
    Entry("flags, owner and signal of terminals", "signalled()", "signalled_as()"),
)

REFUSED = (
    _refused(
        "a terminal whose master has been closed",
        "closed_master()",
        r"has the terminal /dev/pts/\d+ \(deleted\) open .* its other end has been closed",
    ),
    _refused(
        "a terminal with the number 32 or a higher one",
        "many()",
        "CRIU makes terminals below number 32 again",
    ),
    _refused("another line discipline", "other_discipline()", "its line discipline is number 27"),
    _refused("unread urgent data of TCP", "urgent()", r"urgent data that has not been read \(MSG_OOB\)"),
    _refused(
        "unread urgent data of a UNIX socket",
        "keep['pair'] = socket.socketpair(); keep['pair'][0].send(b'x', 1)",
        "a UNIX socket with urgent data",
    ),
    _refused("keys of TCP MD5 signatures", "md5()", r"keys of TCP MD5 signatures \(TCP_MD5SIG\)"),
    _refused(
        "a corked UDP socket (UDP_CORK)",
        "cork()",
        r"keeps parts of a datagram until the rest comes \(UDP_CORK",
    ),
    _refused(
        "half a datagram (MSG_MORE)", "more()", r"keeps parts of a datagram until the rest comes \(UDP_CORK"
    ),
    _refused(
        "a message queue of POSIX",
        "make_queue()",
        "the POSIX message queue /fidelity, which CRIU does not carry",
    ),
    _refused("dnotify", "dnotify()", r"the directory /tmp with a request to be notified \(F_NOTIFY\)"),
    _refused("an eBPF socket filter", "ebpf_filter()", r"an eBPF program as its filter \(SO_ATTACH_BPF\)"),
    _refused(
        "a personality that changes mappings",
        "libc.personality(0x0400000)",
        r"a personality that CRIU cannot have as well \(0x00400000",
        "READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, ADDR_LIMIT_32BIT, PER_LINUX32 and the like",
    ),
)

WARNED = (
    _warned(
        "a terminal that was opened as /dev/tty",
        "devtty()",
        r"descriptor \d+ of process \d+, opened as /dev/tty, has the name of its terminal",
        "it is the same terminal",
    ),
    _warned(
        "a state of packet mode that has not been read",
        "packet_state()",
        r"has lost a state of packet mode \(TIOCPKT\)",
    ),
    _warned("CPU times, CPU clocks, start times", "", "CPU times, CPU clocks and start times begin anew"),
    _warned(
        "the name of a deleted file, where another file has it now",
        "replaced()",
        r"descriptor \d+ of process \d+, a deleted file, has another name in /proc/PID/fd",
    ),
    _warned(
        "the user of a child that has ended and was not waited for",
        "anothers_zombie()",
        r"process \d+, which has ended and was not waited for, is root's now",
        "unless it was root",
    ),
    _warned("mlockall(MCL_FUTURE)", "libc.mlockall(2); area('after')", r"mlockall\(MCL_FUTURE\)"),
    _warned("sealed memory", "seal()", r"has sealed 1 areas of memory \(mseal\)"),
    _warned("NUMA policy", "numa()", r"has a NUMA policy for \d+ areas of memory"),
    _warned(
        "a Landlock domain",
        "prctl(38, 1)",
        "a Landlock domain, which cannot be seen",
        "wherever no_new_privs is set",
    ),
    _warned(
        "a BPF program that chooses among sockets of one port",
        "reuseport()",
        r"2 sockets share 0.0.0.0:7200 \(SO_REUSEPORT\): a BPF program",
        "SO_ATTACH_REUSEPORT_CBPF and _EBPF: wherever sockets share a port, for no call tells whether there is one",
    ),
    _warned(
        "the counter of zerocopy completions", "zerocopy()", "counts its zerocopy completions from 0 again"
    ),
    _warned("the counter of transmit time stamps", "stamps()", "counts its time stamps from 0 again"),
    _warned("an error that a socket has not told yet", "error()", "an error that had not been read"),
    _warned("joined netlink groups", "netlink()", "NETLINK_LIST_MEMBERSHIPS"),
    _warned(
        "policies of another process than the first",
        "other()",
        r"another policy \(PR_MCE_KILL",
        "PR_MCE_KILL, PR_SET_IO_FLUSHER, PR_SET_MEMORY_MERGE, personality",
    ),
)

HIDDEN = tuple(
    Entry(name, fate=Fate.HIDDEN, note=note)
    for name, note in (
        ("memory deny write execute", "prctl PR_SET_MDWE: off after a move"),
        ("reading of the time-stamp counter forbidden", "prctl PR_SET_TSC: allowed after a move"),
        ("the SYN that a listener has kept", "TCP_SAVED_SYN: reading it takes it away"),
        ("session, process and thread keyrings", "keyrings(7): those of whoever started the testbed"),
        (
            "that a child has run on",
            "waitid with WCONTINUED: told once in containers of Docker's and Podman's",
        ),
        ("adjustments of semaphores", "SEM_UNDO: not undone after a move"),
        ("flow labels of IPv6", "IPV6_FLOWLABEL_MGR: not leased after a move"),
    )
)
GROUPS = {
    "process": PROCESS,
    "memory": MEMORY,
    "files": FILES,
    "terminals": TERMINALS,
    "multicast": MULTICAST,
}
_WATCHES = ("inotify watches", "unread inotify events")
GROUPS_INSIDE = {
    **GROUPS,
    "files": tuple(entry for entry in FILES if entry.name not in _WATCHES),
    "container": CONTAINER,
}
"""Those of a container."""
REFUSED_INSIDE = (
    *REFUSED,
    _refused("inotify watches on an overlay", "inotify()", "an inotify instance with a watch on an overlay"),
)
CONTAINER_LOST: dict[str, str] = {
    "device and inode numbers of files": "device and inode numbers",
    "change times of files": "change times",
    "access times of folders": "access times of folders",
    "signals that have come": r"told once more \(SIGCHLD\) that its child",
}
"""What a container of runc's does not find as it was, and the words that the report has for it."""
DOCKER_LOST: dict[str, str] = {
    **{name: words for name, words in CONTAINER_LOST.items() if name != "signals that have come"},
    "control groups": "control groups have other names",
    "hostname file": "/etc/hostname is that of",
    "mounts": "its mounts at .* are others",
    "eventfd counter of more than 32 bits": "has not its whole counter",
    "eventfd semaphore": "is no semaphore",
    "eventfd reads": "is no semaphore",
    "personality": r"its personality \(0x0\w+\) is not carried",
    "memory-failure policy": r"memory-failure policy \(PR_MCE_KILL\) is not carried",
    "merging of all memory": r"\(PR_SET_MEMORY_MERGE\) is not carried",
    "I/O flusher": r"\(PR_SET_IO_FLUSHER\) is not carried",
}
"""The same of a container of Docker's."""
PODMAN_LOST = {
    **{name: words for name, words in DOCKER_LOST.items() if name != "hostname file"},
    "hosts file": "/etc/hosts is that of",
    # Set they are, but what is mounted at /sys/fs/cgroup shows another group.
    "limits of control groups": "its mounts at .*/sys/fs/cgroup",
}
"""The same of a container of Podman's."""
STOPPED = next(entry for entry in PROCESS if entry.name == "stopped child")
"""What a container of Docker's or Podman's is refused with where its control group is of version 1."""
ENGINE_REFUSED = dict.fromkeys(("terminals",), "terminals are not carried in containers of")
"""Groups with whose things a container of Docker's or Podman's is refused."""
