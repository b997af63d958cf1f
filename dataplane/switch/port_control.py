"""Ports that come and go while the switch runs: `--port-socket NAME`, since P4Runtime has no message for it.

NAME is an abstract Unix socket (it ends with the process, whatever ends that), which serves root only. A request is one
line on a connection of its own, `add PORT INTF` or `remove PORT`; the answer is one line, `ok` or why not. `ask` is
the client.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from dataplane.switch.pipeline import Engine, PipelineError
from dataplane.switch.slowness import scaled

_TIMEOUT = scaled(5.0)  # seconds for a request or an answer
_LINE_MAX = 1024
OK = "ok"


class PortControl:
    """Serves requests, one at a time, until it is closed."""

    def __init__(self, name: str, engine: Engine) -> None:
        """Listen; raises OSError."""
        self._engine = engine
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(f"\0{name}")
            self._listener.listen()
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="ports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(_TIMEOUT)
                answer = (
                    self._do(connection.makefile("r").readline(_LINE_MAX))
                    if _is_root(connection)
                    else "not root"
                )
                connection.sendall(f"{answer}\n".encode())

    def _do(self, line: str) -> str:
        """Do what a request says; returns the answer."""
        try:
            match line.split():
                case ["add", port, interface] if port.isdecimal():
                    self._engine.add_port(int(port), interface)
                case ["remove", port] if port.isdecimal():
                    self._engine.remove_port(int(port))
                case _:
                    return f"{line.strip()!r} is neither `add PORT INTF` nor `remove PORT`"
        except PipelineError as ex:
            return str(ex)
        return OK


def _is_root(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == 0)


def ask(name: str, *words: str) -> str:
    """Send a request to the switch that listens at `name`; returns its answer. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT)
        connection.connect(f"\0{name}")
        connection.sendall(f"{' '.join(words)}\n".encode())
        return connection.makefile("r").readline().strip()
