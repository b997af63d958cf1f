"""A program's own /proc, for the moment in which it is dumped.

A program in a PID namespace of its own sees the machine's /proc. CRIU's code in it needs one of that namespace. It
looks whether that is at /proc, and otherwise makes one in the program's working directory, with the program's rights,
which only root has, and only where it may write. So such a proc is mounted over /proc, in the mounts that the program
has for itself, when it has been stopped, and taken away before it runs again; it never sees it. CRIU finds its own in
a folder of it (preload.py).

The work is a process of the keeper's (`serve`): it has one thread, which can enter namespaces, and takes the mount
away when its controller is gone. What it mounts is made beforehand, for that needs a process in the PID namespace.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from . import namespaces as ns
from .errors import MigrationError
from .preload import PROC
from .slowness import scaled

if TYPE_CHECKING:
    from .custody import Custody

TIMEOUT = scaled(5.0)
READY, COVER, UNCOVER, HAS_IPC = b"ready", b"cover", b"uncover", b"System V IPC"
_PROC = "/proc"


class ProcCover:
    """Covers /proc in the mounts of a program while its block runs."""

    def __init__(self, custody: Custody, program: int) -> None:
        """Begin to get ready; what a killed one has left is away when this returns. Raises MigrationError."""
        self._is_ready = False
        self.has_ipc = False
        """Whether the program had objects of System V IPC when it was stopped."""
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(TIMEOUT)
        try:
            with other:
                custody.start_proc_cover(program, other)
            if Path(f"/proc/{program}/root{_PROC}").stat().st_dev != Path(_PROC).stat().st_dev:
                self.wait_until_ready()
        except OSError as ex:
            self._socket.close()
            raise MigrationError(f"no proc can be mounted for the program: {ex}") from ex
        except BaseException:
            self._socket.close()
            raise

    def wait_until_ready(self) -> None:
        """Return when the program's /proc can be covered at once; raises MigrationError."""
        if not self._is_ready:
            self._expect(READY)
            self._is_ready = True

    def _ask(self, what: bytes, *answers: bytes) -> bytes:
        try:
            self._socket.send(what)
        except OSError as ex:
            raise MigrationError(f"the process that mounts a proc for the program is gone ({ex})") from ex
        return self._expect(what, *answers)

    def _expect(self, *answers: bytes) -> bytes:
        try:
            said = self._socket.recv(4096)
        except OSError as ex:
            raise MigrationError(
                f"the process that mounts a proc for the program says nothing ({ex})"
            ) from ex
        if not said.startswith(answers):
            raise MigrationError(f"no proc can be mounted for the program: {said.decode() or 'it is gone'}")
        return said

    def __enter__(self) -> ProcCover:
        self.wait_until_ready()
        said = self._ask(COVER, HAS_IPC)
        self.has_ipc = said.startswith(HAS_IPC)
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket.fileno() >= 0:
            self._ask(UNCOVER)

    def close(self) -> None:
        """Let it end, which takes away what it has mounted."""
        self._socket.close()


def serve(program: int, control: socket.socket) -> None:
    """Do what is asked over `control` in the mounts of a program, and leave nothing mounted."""
    try:
        own = _prepare(program)
        machines = ns.copy_mount(_PROC)
        control.send(READY)
    except OSError as ex:
        control.send(str(ex).encode())
        return
    is_covered = False
    try:
        while request := control.recv(16):
            try:
                if request == COVER:
                    ns.move_mount(own, _PROC)
                    is_covered = True
                    ns.move_mount(machines, PROC)
                    if ns.has_system_v_objects():
                        request = HAS_IPC
                elif is_covered:
                    ns.unmount(_PROC)
                    is_covered = False
                control.send(request)
            except OSError as ex:
                control.send(str(ex).encode())
    finally:
        if is_covered:
            ns.unmount(_PROC)


def _prepare(program: int) -> int:
    """Enter the mounts of a program, take away what a killed one has left, and return a proc of its PID namespace."""
    pids = os.open(f"/proc/{program}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    machine = Path(_PROC).stat().st_dev
    ipc = os.open(f"/proc/{program}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
    ns.enter_host(program)
    ns.setns(ipc, ns.CLONE_NEWIPC)
    while Path(_PROC).stat().st_dev != machine:
        ns.unmount(_PROC)
    ns.setns(pids, ns.CLONE_NEWPID)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        if (child := os.fork()) == 0:
            _send_proc(theirs)
        os.waitpid(child, 0)
        message, fds, _, _ = socket.recv_fds(ours, 4096, 1, socket.MSG_DONTWAIT)
    if not fds:
        raise OSError(message.decode())
    return fds[0]


def _send_proc(theirs: socket.socket) -> None:
    """Make a proc where we are, hand it over, and end."""
    try:
        socket.send_fds(theirs, [READY], [ns.new_proc()])
    except BaseException as ex:
        theirs.send(str(ex).encode())
    finally:
        os._exit(0)
