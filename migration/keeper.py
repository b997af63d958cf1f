"""The keeper: a small process that starts, owns and reaps every moved or movable program.

A program must be a child of something that reaps at once (a zombie keeps its PID, and CRIU wants that PID
back), that has one thread (setns into a mount namespace, PDEATHSIG), and that outlives no testbed. So the
controller starts one keeper per runtime and asks it over a socket, in JSON, one answer per request:

    {"op": "spawn", "host": PID, "argv": […], "env": {…}, "cwd": "/", "log": "/path"}  →  {"pid": N}
    {"op": "group", "host": PID, "name": "pod1"}: the init of a group of programs      →  {"pid": N}
    {"op": "join", "host": PID, "group": N, …}: a program, as a child of that init     →  {"inner": N}
    {"op": "criu", "host": PID, "argv": […], "env": {…}, "copy": BOOL, "inherited": {…}} with descriptors as ancillary
        data: CRIU in the namespaces of the process, or in a copy of its mounts; what it restores has what
        attributes.Inherited says                                                      →  {"pid": N}
    {"op": "proc", "program": PID} with a socket as ancillary data: see proccover.py   →  {"pid": N}
    {"op": "guard", "worker": PID, "program": PID, "log": …} likewise: see guard.py    →  {"pid": N}
    {"op": "tool", "host": PID, "argv": […], …}: a command that ends by itself         →  {"pid": N}
    {"op": "mount", "host": PID, "source": …, "target": …, "kind": …, "data": …}       →  {}
    {"op": "unmount", "host": PID, "target": "/path"}                                  →  {}
    {"op": "hold", "name": "h1"}: a process that holds new namespaces for a host       →  {"pid": N}
    {"op": "hold", "name": "h1", "net": PID}: the same, with the network of a process  →  {"pid": N}
    {"op": "kill", "pid": N, "signal": S}                                              →  {}
    {"op": "status", "pid": N}                          →  {"running": true} or {"running": false, "status": S}
    {"op": "list"}                                      →  {"pid": OWN, "children": {"N": KIND, …}}
    {"op": "end"}: kill all that it owns, and end                                      →  {}

Anything else that goes wrong is {"error": "…"}. When the controller's end of the socket closes, a keeper with
a listening socket lives on with all that it owns, and takes the next controller that connects; without one it
kills all and ends. When the keeper itself is killed, PDEATHSIG takes the programs with it.
CRIU workers restore with rst_sibling, so restored programs are children of the keeper, too. So are the containers that
a tool, runc, has started: the keeper is a subreaper, and inherits what a child that ends leaves behind.

Run as `python -m migration.keeper FD` or `… --listen FD`. It knows nothing of migrations.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from migration import guard, proccover, tree
from migration import namespaces as ns
from migration.attributes import Inherited
from migration.cgroups import PROCESSES

MAX_MESSAGE = 1 << 18
MAX_REMEMBERED = 1024
# What a CRIU process gets are its descriptors 3, 4, …: its RPC socket first, if it is a worker.
FIRST_CRIU_FD = 3
MAX_CRIU_FDS = 4


class Keeper:
    """Serves one controller at a time: the one that started it, or whoever connects to its listener."""

    def __init__(self, control: socket.socket | None, listener: socket.socket | None = None) -> None:
        self.control = control
        self.listener = listener
        self.is_over = False
        self.kinds: dict[int, str] = {}
        self.exits: dict[int, int] = {}
        self.own_pidns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        """Answer requests and reap children until the controller's end closes."""
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while not self.is_over:
            source = self.control or self.listener
            assert source is not None
            poller = select.poll()
            poller.register(source, select.POLLIN)
            poller.register(wake_r, select.POLLIN)
            ready = {fd for fd, _ in poller.poll()}
            if wake_r in ready:
                os.read(wake_r, 4096)
            self.reap()
            if source.fileno() in ready:
                self.attend()

    def attend(self) -> None:
        """Serve a request or a controller that comes or goes."""
        if self.control is None:
            assert self.listener is not None
            self.control, _ = self.listener.accept()
            self.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)
        elif not self.answer(self.control):
            self.control.close()
            self.control = None
            self.is_over = self.is_over or self.listener is None

    def answer(self, control: socket.socket) -> bool:
        """Serve one request; say whether the controller is still there."""
        try:
            data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE, MAX_CRIU_FDS)
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
            control.send(json.dumps(reply).encode())
        except (BrokenPipeError, ConnectionError):
            return False
        return True

    def handle(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Do what one request asks."""
        match request["op"]:
            case "spawn":
                return {"pid": self.spawn(request)}
            case "group":
                return {"pid": self.spawn_group(request)}
            case "join":
                return {"inner": self.join(request)}
            case "criu":
                return {"pid": self.start_criu(request, fds)}
            case "proc":
                program, number = int(request["program"]), fds[0]
                return {"pid": self.fork("tool", lambda: become_proc_cover(program, number))}
            case "guard":
                number = fds[0]
                return {"pid": self.fork("tool", lambda: become_guard(request, number))}
            case "tool":
                return {"pid": self.fork("tool", lambda: become_tool(request))}
            case "mount":
                self.fork("tool", lambda: become_mounter(request))
                return {}
            case "unmount":
                self.fork("tool", lambda: become_unmounter(request))
                return {}
            case "hold":
                net = request.get("net")
                return {"pid": self.fork("holder", lambda: become_holder(str(request["name"]), net))}
            case "kill":
                self.kill(int(request["pid"]), int(request["signal"]))
                return {}
            case "status":
                return self.status(int(request["pid"]))
            case "list":
                return self.list()
            case "end":
                self.is_over = True
                return {}
        raise ValueError(f"unknown request {request['op']!r}")

    def spawn(self, request: dict[str, Any]) -> int:
        """Start a program in a host, as PID 1 of a PID namespace of its own."""
        return self.fork_first(lambda: become_app(request))

    def spawn_group(self, request: dict[str, Any]) -> int:
        """Start the init of a group, PID 1 of a PID namespace, in a host."""
        return self.fork_first(lambda: become_init(request))

    def fork_first(self, become: Callable[[], None]) -> int:
        """Fork the first process of a new PID namespace."""
        ns.unshare(ns.CLONE_NEWPID)
        try:
            return self.fork("program", become)
        finally:
            # Children to come are for the keeper's own namespace again.
            ns.setns(self.own_pidns, ns.CLONE_NEWPID)

    def join(self, request: dict[str, Any]) -> int:
        """Start a program in a group: by a process that ends at once, so that the group's init inherits it."""
        group = int(request["group"])
        if not is_child(group):
            raise ValueError(f"there is no group with the process {group}")
        inner_r, inner_w = os.pipe2(os.O_CLOEXEC)
        ns.enter(Path(f"/proc/{group}/ns/pid"), ns.CLONE_NEWPID)
        try:
            self.fork("joining", lambda: become_member(request, inner_w))
            return int(os.read(inner_r, 16))
        finally:
            ns.setns(self.own_pidns, ns.CLONE_NEWPID)
            os.close(inner_r)
            os.close(inner_w)

    def start_criu(self, request: dict[str, Any], fds: list[int]) -> int:
        """Start a CRIU process in a host's namespaces, with `fds` as its descriptors from 3 on."""
        return self.fork("worker", lambda: become_criu(request, fds))

    def fork(self, kind: str, become: Callable[[], None]) -> int:
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
        self.kinds[pid] = kind
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
            self.kinds.pop(pid, None)
            self.exits[pid] = os.waitstatus_to_exitcode(status)
            while len(self.exits) > MAX_REMEMBERED:
                del self.exits[next(iter(self.exits))]

    def list(self) -> dict[str, Any]:
        """Say who we are and whom we own; what we did not start was restored by a worker."""
        self.reap()
        children = {
            str(pid): self.kinds.get(pid, "restored") for pid in own_children() if tree.is_running(pid)
        }
        return {"pid": os.getpid(), "children": children}

    def status(self, pid: int) -> dict[str, Any]:
        """Say whether a child runs or how it ended."""
        self.reap()
        # A zombie that a CRIU worker traces cannot be reaped yet, but runs no more.
        if is_ours(pid) and tree.is_running(pid):
            return {"running": True}
        return {"running": False, "status": self.exits.get(pid)}

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to a program or worker of ours, and to nobody else."""
        self.reap()
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                # A group's programs are reaped by its init: the descriptor makes sure of whom we mean.
                if is_ours(pid):
                    signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)

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


def is_ours(pid: int) -> bool:
    """Say whether a PID is our child, or a program of a group: a child of our child."""
    children = own_children()
    return pid in children or tree.parent(pid) in children


def reset_signals() -> None:
    """Give the child default signal actions; Python ignores SIGPIPE, and exec would keep that."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become_app(request: dict[str, Any]) -> None:
    """Turn into the program, with nothing that CRIU could not dump."""
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    enter_cgroup(request)
    enter_with_mounts(int(request["host"]))
    ns.unshare(ns.CLONE_NEWIPC)
    run(request)


def become_tool(request: dict[str, Any]) -> None:
    """Turn into a command that runs in a host, and may make control groups."""
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    ns.enter_host(int(request["host"]))
    ns.uncover_cgroups()
    run(request)


def become_member(request: dict[str, Any], report: int) -> None:
    """Fork the program, which says its PID, and end. Only its group's init can die before it, and takes it along."""
    if os.fork() != 0:
        os._exit(0)
    os.write(report, str(os.getpid()).encode())
    enter_cgroup(request)
    ns.enter_host(int(request["group"]))  # its network, and the mounts of its own
    ns.enter(Path(f"/proc/{request['group']}/ns/ipc"), ns.CLONE_NEWIPC)
    run(request)


def become_init(request: dict[str, Any]) -> None:
    """Turn into a process that only inherits and reaps: the kernel reaps for whoever ignores SIGCHLD."""
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    enter_cgroup(request)
    enter_with_mounts(int(request["host"]))
    ns.unshare(ns.CLONE_NEWIPC)
    os.setsid()
    os.chdir(request["cwd"])
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, 900)
    os.closerange(901, os.sysconf("SC_OPEN_MAX"))
    os.execve("/bin/sleep", [f"p4ferry-group:{request['name']}", "infinity"], {"PATH": os.defpath})


def enter_cgroup(request: dict[str, Any]) -> None:
    """Join the program's own control group; its sockets belong to the one in which they are made."""
    if "cgroup" in request:
        (Path(request["cgroup"]) / PROCESSES).write_text("0")  # whoever writes: cgroups(7)


def enter_with_mounts(host: int) -> None:
    """Enter a host with a copy of its mounts, so that nothing else meets what is mounted for one program.

    Its pseudoterminals are its own, too: a copy that is built while the original is there has the same numbers.
    """
    machine = os.stat("/proc/self/ns/mnt").st_ino  # noqa: PTH116
    ns.enter_host(host)
    ns.copy_mounts(are_machines=os.stat("/proc/self/ns/mnt").st_ino == machine)  # noqa: PTH116
    with contextlib.suppress(
        OSError
    ):  # then its terminals are the machine's, and it is refused with one (refusals.py)
        ns.new_terminals()


def run(request: dict[str, Any]) -> None:
    """Become a program where we are."""
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


def become_criu(request: dict[str, Any], fds: list[int]) -> None:
    """Turn into a CRIU process, ahead of others: a program stands still while it works.

    What it restores gets its own priority back from the image.
    """
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, ns.URGENT)
    if request["copy"]:
        enter_with_mounts(int(request["host"]))
        ns.unshare(ns.CLONE_NEWIPC)  # for what it restores, unless the image has a namespace
    else:
        ns.enter_host(int(request["host"]))
        # CRIU carries the IPC namespace of a program if it is not its own. That takes time, for nothing most times.
        ns.enter_empty_ipc(int(request["host"]))
    if (inherited := request.get("inherited")) is not None:
        Inherited(**inherited).take()
    null = os.open("/dev/null", os.O_RDWR)
    for number, fd in enumerate(fds):
        os.dup2(fd, 800 + number)
    for number in range(FIRST_CRIU_FD):
        os.dup2(null, number)
    for number in range(len(fds)):
        os.dup2(800 + number, FIRST_CRIU_FD + number)
    os.closerange(FIRST_CRIU_FD + len(fds), 900)
    execute(request["argv"], {**os.environ, **request["env"]})


def become_proc_cover(program: int, fd: int) -> None:
    """Turn into what lays a proc of a program's PID namespace over /proc, in its mounts, when it is asked to."""
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(fd, 3)
    os.closerange(4, 901)  # errors go through the socket from here on
    proccover.serve(program, socket.socket(fileno=3))
    os._exit(0)


def become_guard(request: dict[str, Any], fd: int) -> None:
    """Turn into what watches over a CRIU worker while that dumps a program; ahead of others, as the worker is."""
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, ns.URGENT)
    os.dup2(fd, 3)
    os.closerange(4, 901)
    control = socket.socket(fileno=3)
    os._exit(guard.serve(int(request["worker"]), int(request["program"]), Path(request["log"]), control))


def become_mounter(request: dict[str, Any]) -> None:
    """Mount a file system in a host, and end."""
    ns.enter_host(int(request["host"]))
    ns.mount(request["source"], request["target"], request["kind"], request["data"])
    os._exit(0)


def become_unmounter(request: dict[str, Any]) -> None:
    """Take a mount of a host away, and end."""
    ns.enter_host(int(request["host"]))
    ns.unmount(request["target"])
    os._exit(0)


def become_holder(name: str, net: int | None) -> None:
    """Turn into a process that only holds a host's network and mount namespace, as Mininet makes them.

    The network is that of the process `net`, if there is one: a pod's.
    """
    ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
    if net is None:
        ns.unshare_network()
    else:
        ns.enter(Path(f"/proc/{net}/ns/net"), ns.CLONE_NEWNET)
    ns.unshare(ns.CLONE_NEWNS)
    ns.make_mounts_private()
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, 900)
    os.execvp("sleep", [f"p4ferry-host:{name}", "infinity"])


def execute(argv: list[str], env: dict[str, str]) -> None:
    """Become a program, or say which one there is not."""
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as ex:
        raise OSError(f"{argv[0]}: {ex.strerror}") from ex


def main() -> None:
    """Serve the socket whose descriptor is the last argument."""
    given = socket.socket(fileno=int(sys.argv[-1]))
    given.set_inheritable(False)
    ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the controller decides when we end
    keeper = Keeper(None, given) if sys.argv[1] == "--listen" else Keeper(given)
    try:
        keeper.serve()
    finally:
        keeper.end()


if __name__ == "__main__":
    main()
