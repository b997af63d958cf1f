#!/usr/bin/env python3
"""An HTTP server that remembers: each answer tells how many requests it has had, and for how long it has run.

    http_server.py [--host ADDRESS] [--port 8080]

GET / answers as JSON over HTTP/1.1 connections that stay open:
  requests            answered so far, this one included
  connections         that were ever opened to this program
  uptime_in_seconds   since it began, by a clock that moves with the program
A program that was started again instead of moved would count from 1. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn


class Server(ThreadingHTTPServer):
    """Counts what it serves."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int]) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._requests = self._connections = 0
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count a connection, and serve it in a thread."""
        self._connections += 1
        super().process_request(request, client_address)

    def told(self) -> dict[str, int]:
        """Count a request, and return what to tell."""
        with self._lock:
            self._requests += 1
            return {
                "requests": self._requests,
                "connections": self._connections,
                "uptime_in_seconds": int(time.monotonic() - self._began),
            }


class Handler(BaseHTTPRequestHandler):
    """One connection; it stays open, and each answer is one segment."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def do_GET(self) -> None:
        """Answer /."""
        if self.path == "/":
            self._answer(200, self.server.told())
        else:
            self._answer(404, {"error": f"there is no {self.path}, only /"})

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
    parser = argparse.ArgumentParser(prog="http_server.py", description="an HTTP server that counts")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--port", type=int, default=8080, choices=range(65536), metavar="PORT")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    try:
        server = Server((options.host, options.port))
    except OSError as ex:
        print(f"http_server: cannot listen on {options.host} port {options.port}: {ex}", file=sys.stderr)
        return 1
    print(f"listening on {options.host} port {server.server_port}", flush=True)
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
