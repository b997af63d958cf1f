"""Ports of a container that are reached on the machine, although the container has no network of the engine's.

A thread of ours lives in the container's network namespace; listeners, made outside, are served there: whoever connects
to the machine's port is connected with the container's port on its loopback. TCP only.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

from migration.namespaces import CLONE_NEWNET, enter
from migration.slowness import scaled
from topo.errors import BadNetwork

_CHUNK = 1 << 16
_START_TIMEOUT = scaled(5.0)  # seconds


class PublishedPorts:
    """The published ports of one container; `close` ends them and their connections."""

    def __init__(self, host: str, pid: int, bindings: Mapping[str, str]) -> None:
        """Listen on the machine for a container's ports ("80/tcp" at "8080" or "127.0.0.1:8080"); raises BadNetwork."""
        self._listeners: list[tuple[socket.socket, int]] = []
        self.at: dict[str, int] = {}
        """Where each port is reached; a binding to port 0 has chosen one."""
        try:
            for inside, outside in bindings.items():
                self._listen(host, inside, outside)
        except BaseException:
            self._close_listeners()
            raise
        self._loop = asyncio.new_event_loop()
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(pid,), name=f"ports of {host}", daemon=True)
        self._thread.start()
        self._is_ready.wait(_START_TIMEOUT)

    def _listen(self, host: str, inside: str, outside: str) -> None:
        number, _, protocol = inside.partition("/")
        if protocol != "tcp":
            raise BadNetwork(
                f"{host}: port {inside} cannot be published: only TCP can without network_mode=bridge"
            )
        address, _, port = outside.rpartition(":")
        listener = socket.socket()
        self._listeners.append((listener, int(number)))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, int(port)))
        except OSError as ex:
            raise BadNetwork(f"{host}: port {inside} cannot be published at {outside}: {ex.strerror}") from ex
        listener.listen()
        self.at[inside] = listener.getsockname()[1]

    def close(self) -> None:
        """Publish nothing any more."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._close_listeners()

    def _close_listeners(self) -> None:
        for listener, _ in self._listeners:
            listener.close()

    def _serve(self, pid: int) -> None:
        """Move this thread into the container's network, and relay there until it is told to stop."""
        enter(Path(f"/proc/{pid}/ns/net"), CLONE_NEWNET)
        for listener, port in self._listeners:
            self._loop.run_until_complete(asyncio.start_server(_Relay(port), sock=listener))
        self._is_ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_all())
        self._loop.close()


class _Relay:
    """What happens with each connection to a published port."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry bytes both ways until both sides have ended."""
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:  # nobody listens there: neither does anybody here
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        except OSError:
            return
        finally:
            inner_writer.close()
            writer.close()


async def _cancel_all() -> None:
    """End every relay."""
    relays = asyncio.all_tasks() - {asyncio.current_task()}
    for relay in relays:
        relay.cancel()
    await asyncio.gather(*relays, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
