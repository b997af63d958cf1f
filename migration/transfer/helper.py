"""A CRIU process of the transfer that is no worker: the page server, the lazy-pages daemon.

Each is a child of the keeper, so that it ends with it and can be ended by its PID. (Over RPC, CRIU would start a
page server as a child of a worker, out of reach.) What it is connected with is made before, and passed to it.
"""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..criu import Criu, error_lines
from ..custody import Custody
from ..errors import CriuFailed
from ..model import Host
from ..slowness import scaled

START_TIMEOUT = scaled(10.0)
END_TIMEOUT = scaled(5.0)


class Helper:
    """A running `criu COMMAND …`, whose descriptor 3 is `connection`."""

    def __init__(
        self,
        criu: Criu,
        custody: Custody,
        host: Host,
        command: Sequence[str],
        log: Path,
        action: str,
        connection: socket.socket,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; `env` is what it has in its environment besides ours."""
        self._custody, self._log, self._action = custody, log, action
        self._status, other = socket.socketpair()
        options = ["--ps-socket", "3", "--status-fd", "4", "-o", log.name, "-v2"]
        with other:
            argv = [str(criu.binary), *command, *options]
            self.pid = custody.start_criu(host.pid, argv, connection, other, env=env)

    def wait_until_ready(self) -> None:
        """Return when it serves; raises CriuFailed."""
        poller = select.poll()  # select(2) knows no descriptor above 1023
        poller.register(self._status, select.POLLIN)
        if not poller.poll(START_TIMEOUT * 1000) or self._status.recv(1) == b"":
            raise self.failure()

    def wait_for_end(self, timeout: float) -> bool:
        """Wait until it has ended by itself, having done its work; raises CriuFailed if it has not done it."""
        status = self._custody.wait_for_exit(self.pid, timeout)
        if status is None:
            return False
        if status != 0:
            raise self.failure()
        return True

    def is_running(self) -> bool:
        """Say whether it runs."""
        return self._custody.is_running(self.pid)

    def failure(self) -> CriuFailed:
        """Describe why it did not work."""
        return CriuFailed(self._action, error_lines(self._log))

    def close(self) -> None:
        """End it, wherever it stands."""
        self._status.close()
        self._custody.kill(self.pid, signal.SIGKILL)
        self._custody.wait(self.pid, END_TIMEOUT)
