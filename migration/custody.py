"""The controller's side of the keeper: start it, ask it, and let it go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from . import tree
from .attributes import Inherited
from .errors import KeeperLost, LaunchFailed
from .keeper import MAX_MESSAGE
from .slowness import scaled

PROJECT = Path(__file__).resolve().parent.parent
ADOPT_TIMEOUT = scaled(10.0)


class HasDescriptor(Protocol):
    """A socket or an open file."""

    def fileno(self) -> int:
        """Return its descriptor."""


class Custody:
    """A running keeper; closing it ends every program that it owns.

    With `listen`, the path of a UNIX socket, the keeper and all that it owns outlive this process, and
    `Custody.adopt` takes them over.
    """

    def __init__(self, listen: Path | None = None) -> None:
        self._lock = threading.Lock()
        self.announced: set[int] = set()
        """Restored programs of which their worker has told."""
        if listen is None:
            own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        else:
            own, other = _listening(listen)
        command = [sys.executable, "-m", "migration.keeper", *(["--listen"] if listen else [])]
        with contextlib.ExitStack() as stack:
            stack.enter_context(other)
            # A keeper that outlives us must not keep our terminal or pipe open.
            log = stack.enter_context(listen.with_suffix(".log").open("ab")) if listen else None
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [*command, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                start_new_session=True,
            )
        self._outlives_us = listen is not None
        self._socket = own
        self.pid = self._process.pid

    @classmethod
    def adopt(cls, path: Path) -> Custody:
        """Connect to a keeper whose controller is gone; raises KeeperLost."""
        self = cls.__new__(cls)
        self._lock = threading.Lock()
        self.announced = set()
        self._process = None
        self._outlives_us = True
        self._socket = _seqpacket()
        self.pid = 0
        try:
            self._socket.settimeout(ADOPT_TIMEOUT)
            self._socket.connect(str(path))
            self.pid = int(self._ask({"op": "list"})["pid"])
            self._socket.settimeout(None)
        except (OSError, KeeperLost) as ex:
            self._socket.close()
            raise KeeperLost(f"no keeper answers at {path}: {ex}") from ex
        return self

    def spawn(
        self,
        host: int,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        cgroup: Path | None = None,
    ) -> int:
        """Start a program in the namespaces of a host's process, and in a control group."""
        request = {"op": "spawn", "host": host, "argv": list(argv), "env": dict(env), **_cgroup(cgroup)}
        return int(self._ask({**request, "cwd": str(cwd), "log": str(log)})["pid"])

    def spawn_group(self, host: int, name: str, cwd: Path, cgroup: Path | None = None) -> int:
        """Start the init of a group of programs in the namespaces of a host's process, and in a control group."""
        request = {"op": "group", "host": host, "name": name, "cwd": str(cwd), **_cgroup(cgroup)}
        return int(self._ask(request)["pid"])

    def join(
        self,
        host: int,
        group: int,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        log: Path,
        cgroup: Path | None = None,
    ) -> int:
        """Start a program as a child of a group's init, and in a control group; return its PID inside the group."""
        request = {"op": "join", "host": host, "group": group, "argv": list(argv), "env": dict(env)}
        return int(self._ask({**request, **_cgroup(cgroup), "cwd": str(cwd), "log": str(log)})["inner"])

    def run_tool(
        self, host: int, argv: Sequence[str], env: Mapping[str, str], log: Path, timeout: float
    ) -> int | None:
        """Run a command in the namespaces of a host's process to its end; return its exit status, None if killed late.

        Its output is appended to `log`; what it leaves running becomes the keeper's child.
        """
        request = {"op": "tool", "host": host, "argv": list(argv), "env": dict(env)}
        pid = int(self._ask({**request, "cwd": "/", "log": str(log)})["pid"])
        if self.wait(pid, timeout):
            return self.exit_status(pid)
        self.kill(pid, signal.SIGKILL)
        self.wait(pid, timeout)
        return None

    def mount(self, host: int, source: str, target: Path, kind: str, data: str) -> None:
        """Mount a file system in a host; it is there when this returns."""
        request = {"op": "mount", "host": host, "source": source, "target": str(target)}
        self._ask({**request, "kind": kind, "data": data})

    def unmount(self, host: int, target: Path) -> None:
        """Take a mount of a host away."""
        self._ask({"op": "unmount", "host": host, "target": str(target)})

    def start_criu(
        self,
        process: int,
        argv: Sequence[str],
        *files: HasDescriptor,
        env: Mapping[str, str] | None = None,
        copy: bool = False,
        inherited: Inherited | None = None,
    ) -> int:
        """Start a CRIU process in the namespaces of a process, or with a `copy` of its mounts.

        `files` are its descriptors from 3 on, `env` what it has in its environment besides the keeper's.
        """
        request = {"op": "criu", "host": process, "argv": list(argv), "env": dict(env or {}), "copy": copy}
        if inherited is not None:
            request["inherited"] = inherited.to_json()
        return int(self._ask(request, [file.fileno() for file in files])["pid"])

    def start_proc_cover(self, program: int, file: HasDescriptor) -> int:
        """Start what can mount a program's own proc for it; it listens to the socket `file`, see proccover.py."""
        return int(self._ask({"op": "proc", "program": program}, [file.fileno()])["pid"])

    def start_guard(self, worker: int, program: int, log: Path, file: HasDescriptor) -> int:
        """Start what watches over a worker that dumps a program; it speaks through the socket `file`, see guard.py."""
        request = {"op": "guard", "worker": worker, "program": program, "log": str(log)}
        return int(self._ask(request, [file.fileno()])["pid"])

    def hold(self, name: str, net: int | None = None) -> int:
        """Start a process that holds new mounts for a host, and a new network or that of the process `net`."""
        return int(self._ask({"op": "hold", "name": name, "net": net})["pid"])

    def children(self, *kinds: str) -> list[int]:
        """List what the keeper owns of some kinds: "program", "restored" (a program), "worker" (CRIU), "holder"."""
        listed = self._ask({"op": "list"})["children"]
        return [int(pid) for pid, kind in listed.items() if kind in kinds]

    def kill(self, pid: int, number: int) -> None:
        """Signal a child of the keeper; do nothing when it is gone."""
        self._ask({"op": "kill", "pid": pid, "signal": number})

    def is_running(self, pid: int) -> bool:
        """Say whether a child of the keeper runs."""
        return bool(self._ask({"op": "status", "pid": pid})["running"])

    def exit_status(self, pid: int) -> int | None:
        """Return how a child ended (negative: by that signal), or None if it runs or nobody knows."""
        status = self._ask({"op": "status", "pid": pid}).get("status")
        return None if status is None else int(status)

    def wait_for_death(self, pid: int, timeout: float | None) -> bool:
        """Wait until a process runs no more (it may be a zombie still); say whether it ended in time."""
        return tree.ends_within(pid, timeout)

    def wait(self, pid: int, timeout: float) -> bool:
        """Wait until a child has ended and was reaped; say whether it did in time."""
        return self.wait_for_death(pid, timeout) and not self.is_running(pid)

    def wait_for_exit(self, pid: int, timeout: float) -> int | None:
        """Wait until a child has ended and return how (negative: by that signal); None if it has not in time."""
        if not self.wait_for_death(pid, timeout):
            return None
        answer = self._ask({"op": "status", "pid": pid})
        return None if answer["running"] else int(answer["status"])

    def let_go(self) -> None:
        """Leave a keeper that outlives us to the next controller."""
        self._socket.close()

    def close(self) -> None:
        """End the keeper and with it all its programs."""
        if self._outlives_us:
            with contextlib.suppress(KeeperLost, LaunchFailed):
                self._ask({"op": "end"})
        self._socket.close()
        if self._process is None:
            if not self.wait_for_death(self.pid, 10):
                os.kill(self.pid, signal.SIGKILL)
                self.wait_for_death(self.pid, 10)
            return
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        message = json.dumps(request).encode()
        if len(message) > MAX_MESSAGE // 2:
            raise LaunchFailed(
                f"arguments and environment take {len(message)} bytes; {MAX_MESSAGE // 2} is the limit"
            )
        with self._lock:
            try:
                socket.send_fds(self._socket, [message], list(fds))
                data = self._socket.recv(MAX_MESSAGE)
            except OSError as ex:
                raise KeeperLost(f"the keeper (process {self.pid}) cannot be reached: {ex}") from ex
        if not data:
            raise KeeperLost(f"the keeper (process {self.pid}) is gone, and all its programs with it")
        reply: dict[str, Any] = json.loads(data)
        if "error" in reply:
            raise LaunchFailed(reply["error"])
        return reply

    def __enter__(self) -> Custody:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.close()


def _seqpacket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)
    return made


def _listening(path: Path) -> tuple[socket.socket, socket.socket]:
    """Return a connection, not accepted yet, and the listener that it waits at."""
    listener = _seqpacket()
    listener.bind(str(path))
    listener.listen(1)
    own = _seqpacket()
    own.connect(str(path))
    return own, listener


def _cgroup(folder: Path | None) -> dict[str, str]:
    return {} if folder is None else {"cgroup": str(folder)}
