"""Command lines of the programs with a kept connection."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import NoReturn

from apps.status import replace

STATUS_PERIOD = 0.1


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def client_parser(prog: str, description: str, rate: float) -> Parser:
    """Return a parser with what every client has."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--connect", required=True, metavar="HOST:PORT", type=endpoint)
    parser.add_argument("--rate", type=rate_of, default=rate, help=f"requests a second ({rate:g})")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds to run")
    parser.add_argument("--requests", type=int, metavar="N", help="requests to send")
    parser.add_argument("--json", metavar="FILE", help="where the result goes (-: stdout)")
    parser.add_argument("--status", metavar="FILE", help="keep the result so far in this file")
    parser.add_argument("--wait", type=float, default=5.0, metavar="S", help="seconds to wait for the server")
    return parser


def endpoint(text: str) -> tuple[str, int]:
    """Parse HOST:PORT."""
    host, found, port = text.rpartition(":")
    if not found or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def rate_of(text: str) -> float:
    """Parse a rate."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate; it must be more than 0")
    return rate


class Until:
    """When a client is to end: a signal, a time, or a number of requests."""

    def __init__(self, now: float, duration: float | None, requests: int | None) -> None:
        self._is_stopped = False
        self._deadline = now + duration if duration is not None else None
        self._requests = requests
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self._is_stopped = True

    def is_over(self, now: float, requests: int) -> bool:
        """Say whether no further request is to be sent."""
        return (
            self._is_stopped
            or (self._deadline is not None and now >= self._deadline)
            or (self._requests is not None and requests >= self._requests)
        )


class Status:
    """Keeps a status file up to date, some times a second, and writes the result at the end."""

    def __init__(self, status: str | None, result: str | None, sum_up: Callable[[bool], str]) -> None:
        """Take the files' names, and what makes the text (told whether it is the last one)."""
        self._status, self._result, self._sum_up = status, result, sum_up
        self._next = 0.0

    def maybe(self, now: float) -> None:
        """Write the status if it is time."""
        if self._status is not None and now >= self._next:
            self._next = now + STATUS_PERIOD
            replace(self._status, self._sum_up(False))

    def finish(self) -> None:
        """Write the last word."""
        text = self._sum_up(True)
        if self._status is not None:
            replace(self._status, text)
        if self._result == "-":
            print(text, flush=True)
        elif self._result is not None:
            replace(self._result, text + "\n")
