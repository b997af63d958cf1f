#!/usr/bin/env python3
"""A backend with an HTTP endpoint: tells what Redis tells it, over one connection that it keeps.

    app.py --redis HOST:PORT [--host ADDRESS] [--port 8080] [--key counter]

GET /get answers as JSON, over HTTP/1.1 connections that stay open; it is 502 when Redis does not answer:
  counter, uptime_in_seconds, connected_clients, total_connections_received    what Redis says
  http_connections                                                             that were ever opened to this program
  reconnects, errors                                                           attempts of the Redis library to
connect again; they are refused, so that a lost connection cannot go unseen. Needs Debian's python3-redis.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120

from apps.echo.client import Unreachable
from apps.kept.connection import KeptRedis, RedisError
from apps.kept.options import Parser, endpoint

TOLD = {
    "server": "uptime_in_seconds",
    "clients": "connected_clients",
    "stats": "total_connections_received",
}
"""What is told of which section of Redis's INFO."""


class Backend:
    """Asks Redis, for one request at a time."""

    def __init__(self, redis: KeptRedis, key: str) -> None:
        self._redis = redis
        self._key = key
        self._errors = 0
        self._lock = threading.Lock()

    def get(self) -> tuple[int, dict[str, Any]]:
        """Return an HTTP status and what to tell."""
        with self._lock:
            try:
                told = self._ask()
                status = 200
            except (RedisError, OSError, ValueError) as ex:
                self._errors += 1
                told, status = {"error": f"Redis does not answer: {ex}"}, 502
            return status, {**told, "reconnects": self._redis.reconnects, "errors": self._errors}

    def _ask(self) -> dict[str, Any]:
        asked = self._redis.client.pipeline(transaction=False).get(self._key)
        for section in TOLD:
            asked.info(section)
        counter, *sections = asked.execute()
        told = {name: info[name] for name, info in zip(TOLD.values(), sections, strict=True)}
        return {"counter": int(counter or 0), **told}


class Server(ThreadingHTTPServer):
    """Answers for a backend."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], backend: Backend) -> None:
        self.backend = backend
        self.connections = 0
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count a connection, and serve it in a thread."""
        self.connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection; it stays open, and each answer is one segment."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def do_GET(self) -> None:
        """Answer /get."""
        if self.path != "/get":
            self._answer(404, {"error": f"there is no {self.path}, only /get"})
            return
        status, told = self.server.backend.get()
        self._answer(status, {**told, "http_connections": self.server.connections})

    def _answer(self, status: int, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a line for each request would be thousands."""


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def main() -> int:
    """Serve until a signal ends it."""
    parser = Parser(prog="app.py", description="an HTTP backend that asks Redis over one kept connection")
    parser.add_argument("--redis", required=True, metavar="HOST:PORT", type=endpoint)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, choices=range(65536), metavar="PORT")
    parser.add_argument("--key", default="counter", help="the key to tell (counter)")
    parser.add_argument("--wait", type=float, default=5.0, metavar="S", help="seconds to wait for Redis")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    redis_host, redis_port = options.redis
    try:
        backend = Backend(KeptRedis(redis_host, redis_port, options.wait), options.key)
        server = Server((options.host, options.port), backend)
    except Unreachable as ex:
        print(f"app: {ex}", file=sys.stderr)
        return 1
    except OSError as ex:
        print(f"app: cannot listen on {options.host} port {options.port}: {ex.strerror}", file=sys.stderr)
        return 1
    print(f"listening on {options.host} port {server.server_port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
