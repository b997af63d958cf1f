"""System calls in which a program was when it was stopped, and that it goes on with where it arrives.

A stopped thread has left its system call. The kernel would take it up again by itself: with the same arguments, or,
for poll(2), nanosleep(2) and futex(2), by restart_syscall(2) with what is left of the time. CRIU keeps the former.
For the latter, and for calls that answer EINTR to a stop even without a signal handler (signal(7), "Interruption of
system calls": epoll_wait, semop, sigtimedwait, sockets with a time-out), its image says that the call has returned
EINTR, as if there had been a signal.

So the registers in the image are set back to the call, and its time-out is what is left. That needs to know when the
call began, which nobody notes. But since then the thread has slept: /proc/PID/task/TID/sched says when it last ran
(se.exec_start), and by the count of its switches whether that was still the same sleep when it was stopped. If it was
not, or the kernel has no such file, the call counts as having begun with the stop, so that it ends late, never early.

A time-out in memory is the program's own, which is not written to. The new one is put where a signal handler's frame
would be, which is free: into the alternate signal stack, else below the stack and its red zone (128 bytes, psABI for
x86-64).
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import namespaces as ns
from . import tree
from .deadline import Deadline
from .errors import MigrationError
from .images import BadImage, join, split
from .model import App

_EINTR = 4
_TIMESPEC = struct.Struct("<qq")
_INSTRUCTION = 2  # bytes of the instruction `syscall`
_RED_ZONE = 128
_BELOW = _RED_ZONE + 64
_NATIVE = 1  # user_regs_entry.mode of CRIU: not a 32-bit program
_TIMER_ABSTIME = 1
_FUTEX_WAIT, _FUTEX_COMMAND = 0, 0x7F  # <linux/futex.h>
_SS_DISABLE = 2
_ARGUMENTS = ("di", "si", "dx", "r10", "r8", "r9")

# The numbers of <asm/unistd_64.h>. Calls that are not here keep their EINTR: a connect(2) made again says EALREADY.
POLL, NANOSLEEP, CLOCK_NANOSLEEP, FUTEX = 7, 35, 230, 202
EPOLL_WAIT, EPOLL_PWAIT, EPOLL_PWAIT2 = 232, 281, 441
SEMOP, SEMTIMEDOP, SIGTIMEDWAIT, IO_GETEVENTS = 65, 220, 128, 208
# read, write, readv, writev, accept, sendto, recvfrom, sendmsg, recvmsg, msgsnd, msgrcv, accept4. The time-out of a
# socket (SO_RCVTIMEO, SO_SNDTIMEO) begins anew.
_AGAIN = {0, 1, 19, 20, 43, 44, 45, 46, 47, 69, 70, 288}
# Which argument is a relative time-out: in milliseconds, or a pointer to a timespec.
_IN_MS = {POLL: 2, EPOLL_WAIT: 3, EPOLL_PWAIT: 3}
_IN_MEMORY = {
    NANOSLEEP: 0,
    CLOCK_NANOSLEEP: 2,
    FUTEX: 3,
    EPOLL_PWAIT2: 3,
    SEMTIMEDOP: 3,
    SIGTIMEDWAIT: 2,
    IO_GETEVENTS: 4,
}
# Where the kernel writes what is left when it is interrupted, if the program gave a place.
_REMAINDER = {NANOSLEEP: 1, CLOCK_NANOSLEEP: 3}
RESTARTED = {SEMOP} | _AGAIN | set(_IN_MS) | set(_IN_MEMORY)


@dataclass(frozen=True)
class Call:
    """A system call in which a thread sleeps, with its six arguments."""

    number: int
    arguments: tuple[int, ...]

    @property
    def milliseconds(self) -> int | None:
        """The time-out that it has as a number; None if it has none."""
        place = _IN_MS.get(self.number)
        if place is None:
            return None
        value = self.arguments[place] & 0xFFFFFFFF
        return None if value & 0x80000000 else value

    @property
    def timeout_at(self) -> int:
        """The address of its relative time-out; 0 if it has none."""
        place = _IN_MEMORY.get(self.number)
        if place is None:
            return 0
        if self.number == FUTEX and self.arguments[1] & _FUTEX_COMMAND != _FUTEX_WAIT:
            return 0  # the others wait until a time
        if self.number == CLOCK_NANOSLEEP and self.arguments[1] & _TIMER_ABSTIME:
            return 0
        return self.arguments[place]

    @property
    def remainder_at(self) -> int:
        """The address of what is left, which the kernel has written there when the thread was stopped; 0 if nowhere."""
        place = _REMAINDER.get(self.number)
        return self.arguments[place] if place is not None and self.timeout_at else 0

    @property
    def ends(self) -> bool:
        """Whether it ends by itself after a time that is not written anywhere."""
        return self.milliseconds is not None or (self.timeout_at != 0 and self.remainder_at == 0)


@dataclass(frozen=True)
class Sleep:
    """A sleep in such a call: since when (of the monotonic clock), and after how many switches of the thread."""

    call: Call
    since: float
    switches: int


@dataclass(frozen=True)
class Pending:
    """A time-out to be written into the copy before it runs."""

    process: int
    """As its PID namespace numbers it."""
    address: int
    ends: float
    """When it is due, of the monotonic clock."""


class Sleepers:
    """The threads of a program that sleep with a time-out: seen before it is stopped, and again when it is."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._sleeps: dict[int, Sleep] = {}
        self.stopped_at = 0.0
        if platform.machine() != "x86_64":
            return
        offsets: dict[int, float] = {}
        for tid in [tid for pid in pids for tid in tree.threads(pid)]:
            call = sleeping_in(tid)
            if call is not None and call.ends and (sched := _sched(tid)) is not None:
                processor = tree.processor(tid)
                if processor not in offsets:
                    offsets[processor] = _offset(processor)
                self._sleeps[tid] = Sleep(call, sched[0] + offsets[processor], sched[1])

    def stopped(self) -> None:
        """See who was still in the same sleep: it was woken once, to be stopped."""
        self.stopped_at = time.monotonic()
        for tid, sleep in list(self._sleeps.items()):
            sched = _sched(tid)
            if sched is None or sched[1] != sleep.switches + 1:
                del self._sleeps[tid]

    def by_inner_tid(self) -> dict[int, Sleep]:
        """Return the sleeps by the threads' numbers in their PID namespace, which images have."""
        return {tree.inside(tid): sleep for tid, sleep in self._sleeps.items()}


def sleeping_in(tid: int) -> Call | None:
    """Return the system call in which a thread sleeps (proc_pid_syscall(5)); None if it does not."""
    words = tree.read_or_empty(f"{tree.PROC}/{tid}/syscall").split()
    if len(words) < 9:  # "running", or "-1 SP PC"
        return None
    return Call(int(words[0]), tuple(int(word, 16) for word in words[1:7]))


def restarted(image: bytes, core: Any) -> tuple[bytes, Any, Call] | None:
    """Return a core image whose thread is back before its system call, the message that it is made of, and the call.

    None if it was in none, in one that is left as it is, or has a signal that interrupts it.
    """
    magics, messages = split(image)
    if len(messages) != 1:
        raise BadImage(f"a core image of {len(messages)} messages")
    entry = core.core_entry.FromString(messages[0])
    if not entry.HasField("thread_info"):
        return None
    registers = entry.thread_info.gpregs
    number = _signed(registers.orig_ax)
    interrupted = _signed(registers.ax) == -_EINTR and number in RESTARTED
    if not interrupted or (registers.HasField("mode") and registers.mode != _NATIVE) or _has_signal(entry):
        return None
    call = Call(number, tuple(int(getattr(registers, name)) for name in _ARGUMENTS))
    registers.ax = registers.orig_ax
    registers.ip -= _INSTRUCTION
    return magics, entry, call


class Restarts:
    """The calls of a program's threads that are made again, and the time-outs that they still need.

    In this order: `look` before the program is stopped, `stopped` when it is, `change` its image, `write` to its copy.
    `core` and `pstree` are pycriu's modules of those names.
    """

    def __init__(self, core: Any, pstree: Any) -> None:
        self._core, self._pstree = core, pstree
        self._sleepers: Sleepers | None = None
        self._stopped_at = 0.0
        self._pending: list[Pending] = []

    def look(self, pids: Iterable[int]) -> None:
        """See which threads sleep in a call with a time-out."""
        self._sleepers = Sleepers(pids)

    def stopped(self) -> None:
        """See which still did when they were stopped."""
        if self._sleepers is not None:
            self._sleepers.stopped()

    def change(self, images: Path, pids: Iterable[int]) -> dict[str, bytes]:
        """Return the core images that are to be changed; `pids` are the processes that stand still."""
        self._pending.clear()
        memory: dict[int, int] = {}
        if self._sleepers is None or platform.machine() != "x86_64":
            return {}
        changed: dict[str, bytes] = {}
        sleeps = self._sleepers.by_inner_tid()
        self._stopped_at = self._sleepers.stopped_at
        for process, threads in self._threads(images):
            for tid in threads:
                path = images / f"core-{tid}.img"
                found = restarted(path.read_bytes(), self._core)
                if found is None:
                    continue
                magics, entry, call = found
                if call.timeout_at and not memory:
                    memory = by_inner_pid(pids)
                with contextlib.suppress(OSError):  # a time-out that cannot be read: EINTR is true, at least
                    self._shorten(entry, call, sleeps.get(tid), process, memory.get(process, 0))
                    changed[path.name] = join(magics, [entry.SerializeToString()])
        return changed

    def _threads(self, images: Path) -> list[tuple[int, list[int]]]:
        """List the processes of an image and their threads."""
        found = []
        for message in split((images / "pstree.img").read_bytes())[1]:
            entry = self._pstree.pstree_entry.FromString(message)
            found.append((int(entry.pid), [tid for tid in entry.threads if _exists(images, tid)]))
        return found

    def _shorten(self, entry: Any, call: Call, sleep: Sleep | None, process: int, pid: int) -> None:
        """Give a call what is left of its time-out."""
        known = sleep is not None and sleep.call == call
        since = sleep.since if sleep is not None and known else self._stopped_at
        registers = entry.thread_info.gpregs
        if call.milliseconds is not None:
            left = max(since + call.milliseconds / 1e3 - time.monotonic(), 0.0)
            name = _ARGUMENTS[_IN_MS[call.number]]
            setattr(registers, name, min(math.ceil(left * 1e3), call.milliseconds))
        elif call.timeout_at:
            at = call.remainder_at
            seconds = _read_time(pid, at or call.timeout_at)
            # The kernel has written what was left when the thread was stopped.
            ends = (self._stopped_at if at else since) + seconds
            place = _free_place(entry)
            setattr(registers, _ARGUMENTS[_IN_MEMORY[call.number]], place)
            self._pending.append(Pending(process, place, ends))

    def write(self, app: App, copy: int, deadline: Deadline) -> None:
        """Write what is left of time-outs into a copy that has not run; raises MigrationError.

        In post-copy it waits for the page, if that has not come yet.
        """
        if not self._pending:
            return
        errors: list[Exception] = []

        def work() -> None:
            try:
                self._write(by_inner_pid(tree.processes(copy)))
            except (OSError, KeyError) as ex:
                errors.append(ex)

        # In a thread: a page whose daemon is gone may not come.
        thread = threading.Thread(target=work, name="time-outs", daemon=True)
        thread.start()
        thread.join(deadline.left())
        deadline.check()
        if errors:
            raise MigrationError(f"a time-out of {app.name} cannot be written into its copy: {errors[0]}")

    def _write(self, copies: Mapping[int, int]) -> None:
        """Write all; `copies` are the copy's processes by inner PIDs."""
        for pending in self._pending:
            left = max(pending.ends - time.monotonic(), 0.0)
            whole = math.floor(left)
            content = _TIMESPEC.pack(whole, int((left - whole) * 1e9))
            ns.write_memory(copies[pending.process], pending.address, content)


def by_inner_pid(pids: Iterable[int]) -> dict[int, int]:
    """Return processes by their numbers in their PID namespace."""
    return {tree.inside(pid): pid for pid in pids}


def _signed(value: int) -> int:
    """Return a register as a signed number."""
    return int(value) - (1 << 64) if int(value) >= 1 << 63 else int(value)


def _exists(images: Path, tid: int) -> bool:
    return (images / f"core-{tid}.img").exists()  # a zombie has no threads' images


def _has_signal(entry: Any) -> bool:
    """Say whether a signal waits for a thread that does not block it, and will interrupt the call."""
    blocked = entry.thread_core.blk_sigset if entry.HasField("thread_core") else 0
    if not blocked and entry.HasField("tc"):
        blocked = entry.tc.blk_sigset
    queues = [entry.thread_core.signals_p] if entry.HasField("thread_core") else []
    queues += [entry.tc.signals_s] if entry.HasField("tc") else []
    numbers = [struct.unpack_from("<i", one.siginfo)[0] for queue in queues for one in queue.signals]
    return any(not blocked >> (number - 1) & 1 for number in numbers)


def _free_place(entry: Any) -> int:
    """Return where a thread may have 16 bytes of its memory overwritten."""
    stack = int(entry.thread_info.gpregs.sp)
    if entry.HasField("thread_core") and entry.thread_core.HasField("sas"):
        sas = entry.thread_core.sas
        begin, size = int(sas.ss_sp), int(sas.ss_size)
        if not sas.ss_flags & _SS_DISABLE and size and not begin <= stack < begin + size:
            return (begin + 63) & ~63  # its far end: a frame begins at the other one
    return (stack - _BELOW) & ~15


def _read_time(pid: int, address: int) -> float:
    """Read a timespec of a process's memory, in seconds."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        content = os.pread(file.fileno(), _TIMESPEC.size, address)
    if len(content) != _TIMESPEC.size:
        raise OSError(f"no timespec at {address:#x} of process {pid}")
    seconds, nanoseconds = _TIMESPEC.unpack(content)
    return float(seconds + nanoseconds / 1e9)


def _sched(tid: int | str) -> tuple[float, int] | None:
    """Return when a thread last began to run, in seconds of its processor's clock, and how often it was switched."""
    began: float | None = None
    for line in tree.read_or_empty(f"{tree.PROC}/{tid}/sched").splitlines():
        if line.startswith("se.exec_start"):
            began = float(line.rpartition(":")[2]) / 1e3
        elif line.startswith("nr_voluntary_switches"):
            return None if began is None else (began, int(line.rpartition(":")[2]))
    return None


def _offset(processor: int) -> float:
    """Return what is to be added to the time of a processor's own clock for that of the monotonic one."""
    found: list[float] = []

    def look() -> None:
        with contextlib.suppress(OSError):  # not a processor of ours: all are nearly the same
            os.sched_setaffinity(0, {processor})
        now = time.monotonic()  # it has just begun to run there
        if (sched := _sched("thread-self")) is not None:
            found.append(now - sched[0])

    thread = threading.Thread(target=look, name="clock")
    thread.start()
    thread.join()
    return found[0] if found else 0.0
