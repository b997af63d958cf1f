#!/usr/bin/env python3
"""A client of app.py: asks GET /get at a steady rate over one HTTP connection, and watches what it is told.

    poller.py --connect HOST:PORT [--rate 100] [--duration S | --requests N] [--json FILE|-] [--status FILE] [--quiet]

Prints a line a second: counter, Redis's uptime, its connected clients, and the longest gap between two replies by
this process's own clock. Anomalies are counted: a counter or an uptime that went back, reconnects (its own connection
is never made anew; the backend tells of its own), connections that Redis or the backend got besides those that were
there at first, answers that are no 200, errors. It leaves with status 0 if there
were none. Without --duration and --requests it goes on until SIGINT or SIGTERM. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120

from apps.echo.client import Unreachable, connect
from apps.kept.options import Status, Until, client_parser
from apps.kept.watch import Watch, clock

REPLY_TIMEOUT = 60.0
CONNECTIONS = ("total_connections_received", "http_connections")
"""What the backend tells of connections that were ever made: to Redis, and to itself."""


class Poller:
    """Asks, and compares each answer with the one before."""

    def __init__(self, host: str, port: int, rate: float, wait: float, quiet: bool) -> None:
        sock = connect(host, port, wait)
        sock.settimeout(REPLY_TIMEOUT)
        self._http = http.client.HTTPConnection(host, port)
        self._http.sock = sock
        self._http.auto_open = 0  # http.client would connect again by itself
        self._quiet = quiet
        self.watch = Watch(sock, rate)
        self.counter_went_back = self.uptime_went_back = self.bad_answers = 0
        self.clients_min = self.clients_max = self.new_connections = 0
        self._first: dict[str, Any] | None = None
        self.last_bad_answer: str | None = None
        self.told: dict[str, Any] = {}

    def run(self, until: Until, status: Status) -> None:
        """Ask until told to stop, or until the connection is lost."""
        watch = self.watch
        line_due = clock() + 1
        while not until.is_over(now := clock(), watch.requests):
            status.maybe(now)
            watch.wait()
            watch.request()
            try:
                self._http.request("GET", "/get")
                response = self._http.getresponse()
                told = json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError) as ex:
                watch.fail(ex)
                return
            watch.reply()
            self._note(response.status, told)
            if clock() >= line_due:
                self._print_line(line_due - 1)
                line_due += 1

    def _note(self, status: int, told: dict[str, Any]) -> None:
        if status != 200:
            self.bad_answers += 1
            self.last_bad_answer = f"{status}: {told.get('error', told)}"
            return
        self.counter_went_back += told["counter"] < self.told.get("counter", 0)
        self.uptime_went_back += told["uptime_in_seconds"] < self.told.get("uptime_in_seconds", 0)
        clients = told["connected_clients"]
        if self._first is None:
            self._first, self.clients_min = told, clients
        self.clients_min = min(self.clients_min, clients)
        self.clients_max = max(self.clients_max, clients)
        self.new_connections = sum(told[name] - self._first[name] for name in CONNECTIONS)
        self.told = told

    def _print_line(self, since: float) -> None:
        if not self._quiet and self.told:
            print(
                f"counter {self.told['counter']}, Redis up {self.told['uptime_in_seconds']} s, "
                f"{self.told['connected_clients']} clients, longest gap {self.watch.longest_since(since):.1f} ms",
                flush=True,
            )

    @property
    def anomalies(self) -> int:
        """Return how often something was not as it had to be."""
        return (
            self.counter_went_back
            + self.uptime_went_back
            + self.bad_answers
            + self.new_connections
            + len(self.watch.errors)
            + int(self.told.get("reconnects", 0))
        )

    def result(self, done: bool) -> str:
        """Sum up as JSON."""
        return json.dumps(
            {
                "mode": "poller",
                "pid": os.getpid(),
                "counter": self.told.get("counter"),
                "uptime_in_seconds": self.told.get("uptime_in_seconds"),
                "connected_clients": self.told.get("connected_clients"),
                "clients_min": self.clients_min,
                "clients_max": self.clients_max,
                "counter_went_back": self.counter_went_back,
                "uptime_went_back": self.uptime_went_back,
                "new_connections": self.new_connections,
                "bad_answers": self.bad_answers,
                "last_bad_answer": self.last_bad_answer,
                "reconnects": 0,  # its own connection: made once, never again
                "backend_reconnects": self.told.get("reconnects"),
                "anomalies": self.anomalies,
                **self.watch.result(done),
            }
        )


def main() -> int:
    """Do what the command line asks."""
    parser = client_parser("poller.py", "poll GET /get over one HTTP connection", rate=100)
    parser.add_argument("--quiet", action="store_true", help="print no line a second")
    options = parser.parse_args()
    until = Until(clock(), options.duration, options.requests)
    host, port = options.connect
    try:
        poller = Poller(host, port, options.rate, options.wait, options.quiet)
    except Unreachable as ex:
        print(f"poller: {ex}", file=sys.stderr)
        return 1
    status = Status(options.status, options.json, poller.result)
    poller.run(until, status)
    status.finish()
    for error in poller.watch.errors:
        print(f"poller: {error}", file=sys.stderr)
    return 0 if poller.anomalies == 0 else 2


if __name__ == "__main__":
    sys.exit(main())
