"""A process that watches over a CRIU that dumps a program: when CRIU is killed, the program goes on as it was.

A tracer that dies lets all that it traces run at once, wherever it stands. For a program in the middle of a dump that
is the end: its threads stand in CRIU's code, with its registers, and their sockets are in repair mode, where sending
fails. So CRIU is traced itself, with PTRACE_O_TRACEEXIT: before it ends, by whatever, it stops once more, while it
still holds the program. Then this happens, and nobody needs to be quick:

1. The program is frozen, each process in a control group of its own; where there is no freezer, they get SIGSTOP.
2. CRIU ends. Every thread is seized, and the freeze taken back: a thread stops again before its next instruction.
3. Registers, signal masks and words of code are what they were, by the log that undolog.c has written inside CRIU;
   what CRIU has mapped and opened in the program goes, and its sockets leave repair mode.
4. The threads are let go.

Tracing costs CRIU nothing as long as no signal comes to it, which undolog.c sees to. When the image is complete, it
is ended; a killed process that traces another one lets it run on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import tree
from .cgroups import UNIFIED, groups_of
from .freezer import pin
from .ptrace import CONT, DETACH, EVENT_STOP, SEIZE, WALL, peek, set_mask
from .ptrace import request as _ptrace
from .repair import getfd, unrepair
from .slowness import scaled

if TYPE_CHECKING:
    from .custody import Custody

READY = b"ready"
LOG = "undo.log"
PINNED = 1
"""The exit status of a guard that has left the program stopped: it goes on with SIGCONT."""
TIMEOUT = scaled(5.0)  # seconds in which CRIU ends, or a thread stops
FINISH_TIMEOUT = scaled(20.0)  # in which all is put right
_PAUSE = 0.0005
# <linux/ptrace.h>
_POKEDATA = 5
_GETREGSET, _SETREGSET, _INTERRUPT = 0x4204, 0x4205, 0x4207
_LISTEN = 0x4208
_O_TRACEEXIT = 1 << 6
_O_SUSPEND_SECCOMP = 1 << 21
_EVENT_EXIT = 6
_NT_PRSTATUS = 1
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
# The structures of undolog.c.
_THREADS, _WORDS = 8192, 4096
_WORD = struct.Struct("=IIQQQ")
_THREAD = struct.Struct("=IIIIQ488s")
# x86-64: struct user_regs_struct, and the instructions `syscall; int3`.
_RAX, _RIP, _ORIG_RAX = 10, 16, 15
_ARGUMENTS = (14, 13, 12)  # rdi, rsi, rdx
_REGISTERS = struct.Struct("=27Q")
_CODE = bytes.fromhex("0f05cc")
_SYSCALL = _CODE[:2]
_CLOSE, _MUNMAP, _RESTART_SYSCALL = 3, 11, 219
_RESTART_BLOCK = 516  # ERESTART_RESTARTBLOCK of the kernel's own errno.h


class Guard:
    """The controller's side of a guard."""

    def __init__(self, custody: Custody, worker: int, program: int, log: Path) -> None:
        """Let a new process watch over a worker that is about to dump a program."""
        self._custody = custody
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(TIMEOUT)
        with other:
            self.pid = custody.start_guard(worker, program, log, other)

    def wait_until_ready(self) -> None:
        """Return when it watches, or cannot: then a CRIU that is killed may cost the program, as said in docs."""
        with contextlib.suppress(OSError):
            self._socket.recv(4096)

    def end(self) -> None:
        """Let nobody watch over the worker any more."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> int | None:
        """Wait, the worker having ended, until the program has been put right; return how (0, PINNED), None if not."""
        status = self._custody.wait_for_exit(self.pid, FINISH_TIMEOUT)
        return status if status in (0, PINNED) else None

    def close(self) -> None:
        """End it, if it is there, and see it gone."""
        self._socket.close()
        self._custody.kill(self.pid, signal.SIGKILL)
        self._custody.wait(self.pid, TIMEOUT)


@dataclass
class UndoLog:
    """What CRIU has changed, by threads: registers, signal masks, and words of memory."""

    registers: dict[int, bytes] = field(default_factory=dict)
    masks: dict[int, int] = field(default_factory=dict)
    words: list[tuple[int, int, int]] = field(default_factory=list)


def make_log(path: Path) -> None:
    """Make an empty log; it takes room only as it is written."""
    with path.open("wb") as file:
        file.truncate(_WORDS * _WORD.size + _THREADS * _THREAD.size)


def read_log(content: bytes) -> UndoLog:
    """Read what undolog.c has written."""
    log = UndoLog()
    for tid, is_set, address, value, _ in _WORD.iter_unpack(content[: _WORDS * _WORD.size]):
        if is_set:
            log.words.append((tid, address, value))
    for tid, size, has_mask, _, mask, registers in _THREAD.iter_unpack(content[_WORDS * _WORD.size :]):
        if size:
            log.registers[tid] = registers[:size]
        if has_mask:
            log.masks[tid] = mask
    return log


def serve(worker: int, program: int, log: Path, control: socket.socket) -> int:
    """Watch over a worker until it ends; return the exit status."""
    try:
        _ptrace(SEIZE, worker, 0, _O_TRACEEXIT)
    except OSError as ex:
        control.send(str(ex).encode())
        return 0
    control.send(READY)
    if not _wait_for_exit(worker):
        return 0
    held = [pid for pid in tree.processes(program) if _is_traced_by(pid, worker)]
    if not held:
        _ptrace(DETACH, worker)
        return 0
    return _take_over(worker, program, log)


def _wait_for_exit(worker: int) -> bool:
    """Wait until a process is about to end, letting its signals through; False if it has ended."""
    while True:
        try:
            _, status = os.waitpid(worker, WALL)
        except ChildProcessError:
            return False
        if not os.WIFSTOPPED(status):
            return False
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_EXIT:
            return True
        with contextlib.suppress(ProcessLookupError):
            if event == EVENT_STOP and number in _STOPS:
                _ptrace(_LISTEN, worker)
            else:
                _ptrace(CONT, worker, 0, 0 if event else number)


def _take_over(worker: int, program: int, log: Path) -> int:
    with _held(program) as is_pinned:
        _ptrace(DETACH, worker)
        _wait_until_gone(worker, program)
        pids = tree.processes(program)
        threads = [thread for pid in pids for thread in tree.threads(pid)]
        seized = [thread for thread in threads if _seize(thread)]
    stopped = [thread for thread in seized if _has_stopped(thread)]
    _put_back(read_log(log.read_bytes()), stopped)
    for pid in pids:
        if pid in stopped:
            _clean(pid, worker, log.parent)
    unrepair(pids)
    for thread in stopped:
        _let_go(thread)
    return PINNED if is_pinned else 0


def _is_traced_by(pid: int, worker: int) -> bool:
    return any(tree.tracer(thread) == worker for thread in tree.threads(pid))


def _wait_until_gone(worker: int, program: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while any(_is_traced_by(pid, worker) for pid in tree.processes(program)):
        if time.monotonic() > deadline:
            return
        time.sleep(_PAUSE)


# ---- holding all threads


@contextmanager
def _held(program: int) -> Iterator[bool]:
    """Keep a tree from running; the value says whether by SIGSTOP, which stays in force."""
    frozen: list[tuple[Path, Path, list[int]]] = []
    try:
        if not _freeze(program, frozen):
            pin(tree.processes(program))
            yield True
            return
        yield False
    finally:
        for group, before, pids in frozen:
            _control(group, False)
            for pid in pids:
                with contextlib.suppress(OSError):
                    (before / "cgroup.procs").write_text(str(pid))
            with contextlib.suppress(OSError):
                group.rmdir()


def _freeze(program: int, frozen: list[tuple[Path, Path, list[int]]]) -> bool:
    """Put a tree into groups of its own and freeze them, noting each in `frozen`; say whether all of it is."""
    known: set[int] = set()
    try:
        while new := [pid for pid in tree.processes(program) if pid not in known]:
            for pid in new:
                group = _freezable(pid)
                if group is None:
                    return False
                own = group / f"p4ferry-guard-{pid}"
                own.mkdir()
                frozen.append((own, group, [pid]))
                (own / "cgroup.procs").write_text(str(pid))
                _control(own, True)
            known.update(new)
    except OSError:
        return False
    return all(_is_frozen(group) for group, _, _ in frozen)


def _freezable(pid: int) -> Path | None:
    """Return the group of a process in a hierarchy that can freeze."""
    groups = groups_of(pid)
    if (group := groups.get("freezer")) is not None:
        return group
    unified = groups.get(UNIFIED)
    return unified if unified is not None and (unified / "cgroup.procs").exists() else None


def _control(group: Path, freeze: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        if (state := group / "freezer.state").exists():
            state.write_text("FROZEN" if freeze else "THAWED")
        else:
            (group / "cgroup.freeze").write_text("1" if freeze else "0")


def _is_frozen(group: Path) -> bool:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if (state := group / "freezer.state").exists():
            if state.read_text().strip() == "FROZEN":
                return True
            state.write_text("FROZEN")  # it asks to be told again
        elif "frozen 1" in (group / "cgroup.events").read_text().splitlines():
            return True
        time.sleep(_PAUSE)
    return False


# ---- putting back


def _seize(thread: int) -> bool:
    # Its filter does not know what it executes for us, and would have it killed (Linux 4.3, with CAP_SYS_ADMIN).
    for options in (_O_SUSPEND_SECCOMP, 0):
        try:
            _ptrace(SEIZE, thread, 0, options)
            _ptrace(_INTERRUPT, thread)
        except OSError:  # it has ended; or the kernel cannot
            continue
        return True
    return False


def _has_stopped(thread: int) -> bool:
    """Wait until a thread has stopped for us, before its next instruction; signals on the way are kept for later."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            pid, status = os.waitpid(thread, WALL | os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            time.sleep(_PAUSE)
            continue
        return os.WIFSTOPPED(status)
    return False


def _put_back(log: UndoLog, stopped: Iterable[int]) -> None:
    """Give threads their registers, masks and words of code."""
    for thread in stopped:
        with contextlib.suppress(OSError):
            if thread in log.registers:
                _set_registers(thread, log.registers[thread])
            if thread in log.masks:
                set_mask(thread, log.masks[thread])
    for thread, address, value in log.words:
        with contextlib.suppress(OSError):  # what CRIU had mapped may be gone
            _ptrace(_POKEDATA, thread, address, value)


def _clean(pid: int, worker: int, folder: Path) -> None:
    """Take away what CRIU has opened and mapped in a stopped process, by system calls that the process executes."""
    if platform.machine() != "x86_64":
        return
    calls: list[tuple[int, tuple[int, ...]]] = [(_CLOSE, (fd,)) for fd in _left_open(pid, worker, folder)]
    calls += [(_MUNMAP, area) for area in _left_mapped(pid)]
    for number, arguments in calls:
        with contextlib.suppress(OSError):
            _execute(pid, number, arguments)


def _left_open(pid: int, worker: int, folder: Path) -> Iterator[int]:
    """Yield the descriptors that CRIU has opened in a process: its memory, its log, and a connection with itself."""
    for file in tree.open_files([pid]):
        is_file = file.target.startswith(("/memfd:CRIU", f"{folder}/"))
        if is_file or (file.target.startswith("socket:") and _peer(pid, file.fd) == worker):
            yield file.fd


def _peer(pid: int, fd: int) -> int:
    try:
        with socket.socket(fileno=getfd(pid, fd)) as one:
            if one.family != socket.AF_UNIX:
                return 0
            return int(struct.unpack("=iii", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    except OSError:
        return 0


def _left_mapped(pid: int) -> Iterator[tuple[int, int]]:
    """Yield start and size of what CRIU has mapped in a process."""
    for line in tree.read_or_empty(tree.PROC / str(pid) / "maps").splitlines():
        if "/memfd:CRIU" in line:
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            yield start, end - start


def _execute(thread: int, number: int, arguments: tuple[int, ...]) -> None:
    """Make a stopped thread execute a system call; its registers and its code are as before."""
    before, mask = _get_registers(thread), set_mask(thread, (1 << 64) - 1)
    registers = list(_REGISTERS.unpack(before))
    at = registers[_RIP]
    word = peek(thread, at)
    code = int.from_bytes(_CODE + word.to_bytes(8, "little")[len(_CODE) :], "little")
    registers[_RAX], registers[_ORIG_RAX] = number, (1 << 64) - 1
    for place, value in zip(_ARGUMENTS, arguments, strict=False):
        registers[place] = value
    try:
        _ptrace(_POKEDATA, thread, at, code)
        _set_registers(thread, _REGISTERS.pack(*registers))
        _ptrace(CONT, thread)
        os.waitpid(thread, WALL)
    finally:
        _ptrace(_POKEDATA, thread, at, word)
        _set_registers(thread, before)
        set_mask(thread, mask)


def _let_go(thread: int) -> None:
    """Detach a thread, without a trap that CRIU's code may have left to be delivered."""
    with contextlib.suppress(OSError):
        while tree.in_masks(thread, signal.SIGTRAP, "SigPnd"):
            _ptrace(CONT, thread)
            os.waitpid(thread, WALL)
        _make_call_anew(thread)
        _ptrace(DETACH, thread)


def _make_call_anew(thread: int) -> None:
    """Do without restart_syscall(2), by which the kernel lets a thread with a filter go on: see undolog.c."""
    if platform.machine() != "x86_64" or not tree.has_filter(thread):
        return
    registers = list(_REGISTERS.unpack(_get_registers(thread)))
    is_at_call = not registers[_ORIG_RAX] >> 63
    if is_at_call and registers[_RAX] == (1 << 64) - _RESTART_BLOCK:
        registers[_RIP] -= len(_SYSCALL)
    elif not (is_at_call and registers[_RAX] == _RESTART_SYSCALL != registers[_ORIG_RAX]):
        return  # the latter: the kernel has begun with it
    if peek(thread, registers[_RIP]).to_bytes(8, "little").startswith(_SYSCALL):
        registers[_RAX], registers[_ORIG_RAX] = registers[_ORIG_RAX], (1 << 64) - 1
        _set_registers(thread, _REGISTERS.pack(*registers))


# ---- ptrace(2)


class _Part(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _get_registers(tid: int) -> bytes:
    room = ctypes.create_string_buffer(512)
    part = _Part(ctypes.addressof(room), len(room))
    _ptrace(_GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(part))
    return room.raw[: part.size]


def _set_registers(tid: int, registers: bytes) -> None:
    room = ctypes.create_string_buffer(registers, len(registers))
    part = _Part(ctypes.addressof(room), len(registers))
    _ptrace(_SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(part))
