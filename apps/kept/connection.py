"""One connection to Redis (Debian's python3-redis) that is never made anew.

The library connects again by itself when a connection was lost, and the next command just works: the loss would go
unseen. Here the first connection is the only one; an attempt to make another is counted and refused.
"""

from __future__ import annotations

import socket
from typing import Any

import redis
from redis.connection import Connection, ConnectionPool

from apps.echo.client import connect

RedisError = redis.RedisError
REPLY_TIMEOUT = 60.0  # seconds; a migration takes a fraction of one


class Reconnected(redis.ConnectionError):  # type: ignore[misc] # the library has no types for mypy
    """The library wanted a second connection, since the first one is gone."""


class KeptRedis:
    """A client whose connection must last as long as itself."""

    def __init__(self, host: str, port: int, wait: float) -> None:
        """Connect, waiting at most `wait` seconds until the server listens; raises apps.echo.client.Unreachable."""
        self.reconnects = 0
        self.sock = connect(host, port, wait)
        self._is_taken = False
        owner = self

        class Once(Connection):  # type: ignore[misc]
            """The library's own connection, on the one socket that there is."""

            def _connect(self) -> socket.socket:
                return owner._take()

        pool = ConnectionPool(
            connection_class=Once, host=host, port=port, socket_timeout=REPLY_TIMEOUT, max_connections=1
        )
        self.client: Any = redis.Redis(connection_pool=pool)

    def _take(self) -> socket.socket:
        if self._is_taken:
            self.reconnects += 1
            raise Reconnected("the connection to Redis was lost")
        self._is_taken = True
        self.sock.settimeout(REPLY_TIMEOUT)
        return self.sock
