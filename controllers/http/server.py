"""uvicorn on the controller's loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import uvicorn

from controllers.errors import ConfigError
from controllers.http.app import make_app
from migration.slowness import scaled

if TYPE_CHECKING:
    from controllers.controller import Controller

_STARTED_S = scaled(10.0)
_DATE_S = 1.0  # for which the replies' header Date stays as it is
_CLOSING_S = 1.0  # in which what was asked is answered
_PAUSE_S = 0.005


class _Server(uvicorn.Server):
    """uvicorn's server, which ends when it is told to: its own looks ten times a second, and then pauses once more."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ends = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for the end; once a second a tick."""
        while not self.ends.is_set():
            await self.on_tick(0)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ends.wait(), _DATE_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, answer those that there are, and close their connections."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CLOSING_S
        while (self.server_state.connections or self.server_state.tasks) and loop.time() < deadline:
            await asyncio.sleep(_PAUSE_S)
        for task in list(self.server_state.tasks):
            task.cancel()


class HttpServer:
    """The API's server; the port is bound at once, so that one in use is noticed before anything else happens."""

    def __init__(self, controller: Controller, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        config = uvicorn.Config(
            make_app(controller),
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        bound = self._socket.getsockname()
        self.url = f"http://{bound[0]}:{bound[1]}"

    async def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        deadline = asyncio.get_running_loop().time() + _STARTED_S
        while not self._server.started:
            if self._task.done() or asyncio.get_running_loop().time() > deadline:
                raise ConfigError(f"the HTTP API at {self.url} did not start")
            await asyncio.sleep(_PAUSE_S)

    async def stop(self) -> None:
        """Answer what was asked, and close."""
        self._server.ends.set()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as ex:
        bound.close()
        reason = ex.strerror if isinstance(ex, OSError) else "no such port"
        raise ConfigError(
            f"the HTTP API cannot listen on {host}:{port}: {reason}; choose another port"
        ) from ex
    bound.set_inheritable(False)
    return bound
