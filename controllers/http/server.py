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


class HttpServer:
    """The API's server; the port is bound at once, so that one in use is noticed before anything else happens."""

    def __init__(self, controller: Controller, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        config = uvicorn.Config(
            make_app(controller),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
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
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Answer what was asked, and close."""
        self._server.should_exit = True
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
