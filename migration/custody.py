"""The controller's side of the keeper: start it, ask it, and let it go."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import KeeperLost, LaunchFailed
from .keeper import MAX_MESSAGE

PROJECT = Path(__file__).resolve().parent.parent


class Custody:
    """A running keeper; closing it ends every program that it owns."""

    def __init__(self) -> None:
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (own, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "migration.keeper", str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                start_new_session=True,
            )
        self._socket = own
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The keeper's own PID."""
        return self._process.pid

    def spawn(self, host: int, argv: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> int:
        """Start a program in the namespaces of a host's process."""
        request = {"op": "spawn", "host": host, "argv": list(argv), "env": dict(env)}
        return int(self._ask({**request, "cwd": str(cwd), "log": str(log)})["pid"])

    def start_criu(self, host: int, argv: Sequence[str], rpc: socket.socket) -> int:
        """Start a CRIU worker in the namespaces of a host's process, with `rpc` as its socket."""
        request = {"op": "criu", "host": host, "argv": list(argv)}
        return int(self._ask(request, [rpc.fileno()])["pid"])

    def kill(self, pid: int, signal: int) -> None:
        """Signal a child of the keeper; do nothing when it is gone."""
        self._ask({"op": "kill", "pid": pid, "signal": signal})

    def is_running(self, pid: int) -> bool:
        """Say whether a child of the keeper runs."""
        return bool(self._ask({"op": "status", "pid": pid})["running"])

    def exit_status(self, pid: int) -> int | None:
        """Return how a child ended (negative: by that signal), or None if it runs or nobody knows."""
        status = self._ask({"op": "status", "pid": pid}).get("status")
        return None if status is None else int(status)

    def wait_for_death(self, pid: int, timeout: float) -> bool:
        """Wait until a process runs no more (it may be a zombie still); say whether it ended in time."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            return bool(poller.poll(timeout * 1000))
        finally:
            os.close(fd)

    def wait(self, pid: int, timeout: float) -> bool:
        """Wait until a child has ended and was reaped; say whether it did in time."""
        return self.wait_for_death(pid, timeout) and not self.is_running(pid)

    def close(self) -> None:
        """End the keeper and with it all its programs."""
        self._socket.close()
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
