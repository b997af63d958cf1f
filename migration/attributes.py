"""What a process and its threads have been given that is not in CRIU's image: where it is read, how a copy gets it.

Some of it can be written into another process from outside: `read` and `give`. Some can only be inherited. CRIU's
restore worker forks the copy, so the worker is started with it: `Inherited`, which is the first process's. The rest
cannot be given to the copy at all, and is reported: `losses` (docs/fidelity.md lists all three).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import tree
from .tree import PROC

# ioprio_set, ioprio_get: <asm/unistd.h>
_IOPRIO = {"x86_64": (251, 252), "aarch64": (30, 31)}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13
_BEST_EFFORT, _REAL_TIME, _IDLE = 2, 1, 3
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PR_MCE_KILL, _PR_MCE_KILL_SET, _PR_SET_IO_FLUSHER, _PR_SET_MEMORY_MERGE = 33, 1, 57, 67  # <linux/prctl.h>
DEFAULT_SLACK = 50_000  # nanoseconds
# <linux/personality.h>: what may be inherited by CRIU as well, without harm to it
ADDR_NO_RANDOMIZE = 0x0040000
_HARMLESS = {
    0x0020000: "UNAME26",
    ADDR_NO_RANDOMIZE: "ADDR_NO_RANDOMIZE",
    0x0200000: "ADDR_COMPAT_LAYOUT",
    0x1000000: "SHORT_INODE",
    0x2000000: "WHOLE_SECONDS",
    0x4000000: "STICKY_TIMEOUTS",
}
# include/linux/sched.h
_PF_MCE_PROCESS, _PF_MCE_EARLY = 0x00000080, 0x08000000
_PF_LOCAL_THROTTLE = 0x00100000
_SYSTEM_MAPPINGS = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "[uprobes]", "[sigpage]")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a copy has from the process that forks it."""

    personality: int = 0
    mce: int | None = None
    """The memory-failure policy (PR_MCE_KILL): 1 early, 0 late, None the machine's."""
    io_flusher: bool = False
    merges: bool = False
    """Whether all its memory may be merged with equal memory (PR_SET_MEMORY_MERGE)."""

    @classmethod
    def of(cls, pid: int) -> Inherited:
        """Read what a process has; raises OSError."""
        flags = int(tree.stat_fields(pid)[6])
        return cls(
            int((PROC / f"{pid}/personality").read_text(), 16),
            (1 if flags & _PF_MCE_EARLY else 0) if flags & _PF_MCE_PROCESS else None,
            bool(flags & _PF_LOCAL_THROTTLE),
            "ksm_merge_any: yes" in tree.read_or_empty(PROC / f"{pid}/ksm_stat"),
        )

    def take(self) -> None:
        """Give it to this process, and so to what it will fork; what the kernel does not know is left out."""
        if self.personality:
            _libc.personality(ctypes.c_ulong(self.personality))
        if self.mce is not None:
            _libc.prctl(_PR_MCE_KILL, _PR_MCE_KILL_SET, self.mce, 0, 0)
        if self.io_flusher:
            _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
        if self.merges:
            _libc.prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0)

    def names(self) -> Iterator[str]:
        """List what a process has of it, in words for a user."""
        if self.personality:
            yield f"personality (0x{self.personality:08x})"
        if self.mce is not None:
            yield "memory-failure policy (PR_MCE_KILL)"
        if self.io_flusher:
            yield "state as an I/O flusher (PR_SET_IO_FLUSHER)"
        if self.merges:
            yield "merging of all memory (PR_SET_MEMORY_MERGE)"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def strange(self) -> int:
        """The parts of the personality that CRIU could not work with."""
        return self.personality & ~sum(_HARMLESS)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is written into a thread of a copy; None for what it has anyway."""

    slack: int | None = None
    ioprio: int | None = None
    coredump_filter: str | None = None
    """Of a process, whose first thread has it here."""
    affinity: Sequence[int] | None = None
    """The processors that it may run on, if not all."""

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = Attributes()


def read(pid: int, tid: int) -> Attributes:
    """Read a thread's attributes; raises OSError."""
    slack = int(tree.read(f"{PROC}/{tid}/timerslack_ns"))
    kept = tree.read(f"{PROC}/{pid}/coredump_filter").strip() if pid == tid else _own_filter()
    return Attributes(
        slack if slack not in (0, DEFAULT_SLACK) else None,  # real-time threads have none
        _chosen_ioprio(tid),
        kept if kept not in ("", _own_filter()) else None,  # a zombie has none
        None if len(where := os.sched_getaffinity(tid)) == os.cpu_count() else sorted(where),
    )


@functools.cache
def _own_filter() -> str:
    return (PROC / "self/coredump_filter").read_text().strip()


def give(tid: int, attributes: Attributes) -> list[str]:
    """Write attributes into a thread of a copy; return what could not be."""
    failed = []
    if attributes.ioprio is not None and not _set_ioprio(tid, attributes.ioprio):
        failed.append("the I/O priority")
    if attributes.affinity is not None:
        try:
            os.sched_setaffinity(tid, attributes.affinity)
        except OSError:  # its cpuset has none of them
            failed.append("its processor affinity")
    files = {"timerslack_ns": attributes.slack, "coredump_filter": attributes.coredump_filter}
    for name, value in files.items():
        if value is not None:
            text = f"0x{value}" if isinstance(value, str) else str(value)
            try:
                (PROC / f"{tid}/{name}").write_text(text)
            except OSError:
                failed.append(f"{name} of /proc")
    return failed


def _chosen_ioprio(tid: int) -> int | None:
    """Return a thread's I/O priority unless it is what the kernel derives from its nice value."""
    numbers = _IOPRIO.get(platform.machine())
    if numbers is None:
        return None
    value = int(_libc.syscall(numbers[1], _IOPRIO_WHO_PROCESS, tid))
    if value <= 0:
        return None
    policy = os.sched_getscheduler(tid) & ~os.SCHED_RESET_ON_FORK
    kinds = {os.SCHED_IDLE: _IDLE, os.SCHED_FIFO: _REAL_TIME, os.SCHED_RR: _REAL_TIME}
    level = (os.getpriority(os.PRIO_PROCESS, tid) + 20) // 5
    derived = kinds.get(policy, _BEST_EFFORT) << _IOPRIO_CLASS_SHIFT | level
    return None if value == derived else value


def _set_ioprio(tid: int, value: int) -> bool:
    numbers = _IOPRIO.get(platform.machine())
    return numbers is not None and _libc.syscall(numbers[0], _IOPRIO_WHO_PROCESS, tid, value) == 0


# ---- what cannot be given to a copy


def losses(pids: list[int]) -> Iterator[str]:
    """List what processes have and their copies will not have, each as a sentence for a user."""
    first = Inherited.of(pids[0])
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            yield from (f"process {pid} {what}" for what in _losses(pid, first))


def told_again(pids: Sequence[int]) -> Iterator[str]:
    """List who is told once more that a child is stopped, which CRIU stops when all run, as sentences for a user."""
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            parent = tree.parent(pid)
            if tree.state(pid) == "T" and parent in pids and tree.hears(parent, signal.SIGCHLD):
                yield f"process {parent} is told once more (SIGCHLD) that its child {pid} is stopped"


def _losses(pid: int, first: Inherited) -> Iterator[str]:
    own = Inherited.of(pid)
    if own.personality != first.personality:
        yield f"has another personality (0x{own.personality:x}) than the first process, whose it gets"
    if replace(own, personality=0) != replace(first, personality=0):
        policies = "PR_MCE_KILL, PR_SET_IO_FLUSHER, PR_SET_MEMORY_MERGE"
        yield f"has another policy ({policies}) than the first process, whose it gets"
    status = dict(line.split(":\t", 1) for line in tree.read_or_empty(PROC / f"{pid}/status").splitlines())
    if status.get("VmLck", "0 kB").strip() != "0 kB":
        yield "has locked memory: what mlockall(MCL_FUTURE) may have promised for memory to come is not carried"
    if status.get("NoNewPrivs", "0").strip() == "1" and _has_landlock():
        yield "has no_new_privs set: a Landlock domain, which cannot be seen from outside, is not carried"
    if named := _count(pid, "maps", "[anon:"):
        yield f"has given names to {named} areas of memory (PR_SET_VMA_ANON_NAME), which are not carried"
    if count := sum(line.split()[1] != "default" for line in _lines(pid, "numa_maps")):
        yield f"has a NUMA policy for {count} areas of memory, which is not carried"
    if count := _sealed(pid):
        yield f"has sealed {count} areas of memory (mseal), which are not sealed any more"


def _lines(pid: int, name: str) -> list[str]:
    return tree.read_or_empty(PROC / f"{pid}/{name}").splitlines()


def _count(pid: int, name: str, text: str) -> int:
    return sum(text in line for line in _lines(pid, name))


def _sealed(pid: int) -> int:
    """Count the mappings that are sealed, but for the kernel's own."""
    count, name = 0, ""
    for line in _lines(pid, "smaps"):
        if line.startswith("VmFlags:"):
            count += " sl" in line and name not in _SYSTEM_MAPPINGS
        elif line[:1] in "0123456789abcdef":
            name = line.split(maxsplit=5)[5].strip() if len(line.split(maxsplit=5)) == 6 else ""
    return count


def _has_landlock() -> bool:
    return bool(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION) > 0)
