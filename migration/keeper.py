"""The keeper: a small process that starts, owns and reaps every moved or movable program.

A program must be a child of something that reaps at once (a zombie keeps its PID, and CRIU wants that PID
back), that has one thread (setns into a mount namespace, PDEATHSIG), and that outlives no testbed. So the
controller starts one keeper per runtime and asks it over a socket, in JSON, one answer per request:

    {"op": "spawn", "host": PID, "argv": […], "env": {…}, "cwd": "/", "log": "/path"}  →  {"pid": N}
    {"op": "criu", "host": PID, "argv": […]} with a socket as ancillary data           →  {"pid": N}
    {"op": "kill", "pid": N, "signal": S}                                              →  {}
    {"op": "status", "pid": N}                          →  {"running": true} or {"running": false, "status": S}

Anything else that goes wrong is {"error": "…"}. When the controller's end of the socket closes, the keeper
kills all that it owns and ends; when the keeper itself is killed, PDEATHSIG takes the programs with it.
CRIU workers restore with rst_sibling, so restored programs are children of the keeper, too.

Run as `python -m migration.keeper FD`. It knows nothing of migrations.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from migration import namespaces as ns
from migration import tree

MAX_MESSAGE = 1 << 18
MAX_REMEMBERED = 1024
CRIU_SOCKET_FD = 3


class Keeper:
    """Serves one controller until it goes away."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.children: set[int] = set()
        self.exits: dict[int, int] = {}
        self.own_pidns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        """Answer requests and reap children until the controller's end closes."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(wake_r, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if wake_r in ready:
                os.read(wake_r, 4096)
            self.reap()
            if self.control.fileno() in ready and not self.answer():
                return

    def answer(self) -> bool:
        """Serve one request; say whether the controller is still there."""
        try:
            data, fds, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, 1)
        except ConnectionError:
            return False
        if not data:
            return False
        try:
            reply = self.handle(json.loads(data), fds)
        except (OSError, ValueError, KeyError, TypeError) as ex:
            reply = {"error": str(ex)}
        finally:
            for fd in fds:
                os.close(fd)
        try:
            self.control.send(json.dumps(reply).encode())
        except (BrokenPipeError, ConnectionError):
            return False
        return True

    def handle(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Do what one request asks."""
        match request["op"]:
            case "spawn":
                return {"pid": self.spawn(request)}
            case "criu":
                return {"pid": self.start_criu(request, fds[0])}
            case "kill":
                self.kill(int(request["pid"]), int(request["signal"]))
                return {}
            case "status":
                return self.status(int(request["pid"]))
        raise ValueError(f"unknown request {request['op']!r}")

    def spawn(self, request: dict[str, Any]) -> int:
        """Start a program in a host, as PID 1 of a PID namespace of its own."""
        ns.unshare(ns.CLONE_NEWPID)
        try:
            return self.fork(lambda: become_app(request))
        finally:
            # Children to come are for the keeper's own namespace again.
            ns.setns(self.own_pidns, ns.CLONE_NEWPID)

    def start_criu(self, request: dict[str, Any], fd: int) -> int:
        """Start a CRIU worker in a host's namespaces, its RPC socket being descriptor 3."""
        return self.fork(lambda: become_criu(request, fd))

    def fork(self, become: Any) -> int:
        """Fork; the child calls `become`, which ends in exec. Raise what went wrong there."""
        error_r, error_w = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            try:
                # Out of the way of the low descriptors that the program gets.
                high = os.dup2(error_w, 900, inheritable=False)
                signal.set_wakeup_fd(-1)
                reset_signals()
                become()
            except BaseException as ex:
                os.write(high, str(ex).encode()[:4000])
            finally:
                os._exit(127)
        os.close(error_w)
        with os.fdopen(error_r, "rb") as pipe:
            message = pipe.read().decode(errors="replace")
        if message:
            os.waitpid(pid, 0)
            raise OSError(message)
        self.children.add(pid)
        return pid

    def reap(self) -> None:
        """Collect every child that has ended, restored programs and their orphans included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.children.discard(pid)
            self.exits[pid] = os.waitstatus_to_exitcode(status)
            while len(self.exits) > MAX_REMEMBERED:
                del self.exits[next(iter(self.exits))]

    def status(self, pid: int) -> dict[str, Any]:
        """Say whether a child runs or how it ended."""
        self.reap()
        # A zombie that a CRIU worker traces cannot be reaped yet, but runs no more.
        if is_child(pid) and tree.is_running(pid):
            return {"running": True}
        return {"running": False, "status": self.exits.get(pid)}

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to a child of ours, and to nobody else."""
        self.reap()
        if is_child(pid):
            os.kill(pid, number)

    def end(self) -> None:
        """Kill and reap all children; what they leave behind becomes our child, and is next."""
        while children := own_children():
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            for pid in children:
                os.waitpid(pid, 0)


def own_children() -> list[int]:
    """List the calling process's children."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def is_child(pid: int) -> bool:
    """Say whether a PID is our child (and so cannot have been taken over by a stranger)."""
    return pid in own_children()


def reset_signals() -> None:
    """Give the child default signal actions; Python ignores SIGPIPE, and exec would keep that."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become_app(request: dict[str, Any]) -> None:
    """Turn into the program, with nothing that CRIU could not dump."""
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    ns.enter_host(int(request["host"]))
    os.setsid()
    os.chdir(request["cwd"])
    # Opened after setns: CRIU looks descriptors up in the mount namespace of the program.
    stdin = os.open("/dev/null", os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, fd in enumerate((stdin, log, log)):
        os.dup2(fd, number)
    os.closerange(3, 900)
    os.closerange(901, os.sysconf("SC_OPEN_MAX"))
    os.umask(0o022)
    execute(request["argv"], request["env"])


def become_criu(request: dict[str, Any], fd: int) -> None:
    """Turn into a CRIU worker, ahead of others: a program stands still while it works.

    What it restores gets its own priority back from the image.
    """
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, ns.URGENT)
    ns.enter_host(int(request["host"]))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(fd, 800)
    for number in range(3):
        os.dup2(null, number)
    os.dup2(800, CRIU_SOCKET_FD)
    os.closerange(CRIU_SOCKET_FD + 1, 900)
    execute(request["argv"], dict(os.environ))


def execute(argv: list[str], env: dict[str, str]) -> None:
    """Become a program, or say which one there is not."""
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as ex:
        raise OSError(f"{argv[0]}: {ex.strerror}") from ex


def main() -> None:
    """Serve the socket whose descriptor is the only argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the controller decides when we end
    keeper = Keeper(control)
    try:
        keeper.serve()
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
