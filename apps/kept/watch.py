"""What a client notices on one kept connection: the gaps between replies, and what its kernel counts.

The figures have the names of the echo client's result (apps/echo/client.py), but times are those of CLOCK_TAI: an
engine's CRIU gives a program that it restores a time namespace in which CLOCK_MONOTONIC goes on from the freeze, so
that a program that was moved itself would not see its own pause.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from apps.echo import kernel
from apps.echo.client import STATUS_MEMORY, Gap, GapLog


def clock() -> float:
    """Return seconds by a clock that a migration does not stop, and that no leap second turns back."""
    return time.clock_gettime(time.CLOCK_TAI)


class Watch:
    """Counts requests and replies of one connection at a steady rate, by this process's clock."""

    def __init__(self, sock: socket.socket, rate: float) -> None:
        """Start the grid of deadlines: `rate` requests a second."""
        self.requests = self.replies = self.resets = 0
        self.errors: list[str] = []
        self._sock = sock
        self._period = 1 / rate
        self._started = self._due = clock()
        self._asked: float | None = None
        self._last: float | None = None
        self._gaps = GapLog()
        self._counters = kernel.CounterWatch()
        self._retransmits = self._last_total = 0

    def wait(self) -> None:
        """Sleep until the next request is due; one late reply does not shift those after it."""
        now = clock()
        if now < self._due:
            time.sleep(self._due - now)
            self._due += self._period
        else:
            self._due += (int((now - self._due) / self._period) + 1) * self._period

    def request(self) -> None:
        """Note that a request goes out."""
        self.requests += 1
        self._asked = clock()

    def reply(self) -> None:
        """Note that its reply is there."""
        now = clock()
        if self._last is not None:
            self._gaps.add(Gap(now - self._last, self._last, now, 0))
        self._last, self._asked = now, None
        self.replies += 1

    def fail(self, ex: BaseException) -> None:
        """Note what broke the connection."""
        causes = {type(cause) for cause in (ex, ex.__cause__, ex.__context__)}
        self.resets += any(issubclass(cause, ConnectionResetError) for cause in causes)
        self.errors.append(f"{type(ex).__name__}: {ex}")

    def longest_since(self, start: float) -> float:
        """Return the longest gap in milliseconds that ended since a time."""
        return max((gap.seconds * 1000 for gap in self._gaps.since(start)), default=0.0)

    def _count_retransmits(self) -> None:
        """Sum up what the kernel counts; where this process was moved to, a new socket counts from 0."""
        if self._sock.fileno() < 0:
            return
        total = kernel.total_retransmits(self._sock)
        self._retransmits += total - self._last_total if total >= self._last_total else total
        self._last_total = total

    def result(self, done: bool) -> dict[str, Any]:
        """Sum up; gaps are those of the last seconds, and at the end the worst ones of all."""
        now = clock()
        grown = self._counters.sample()
        self._count_retransmits()
        gaps = self._gaps.worst() if done else self._gaps.since(now - STATUS_MEMORY)
        longest = self._gaps.longest
        return {
            "time": round(now, 6),
            "seconds": round(now - self._started, 3),
            "done": done,
            "connections": 1,
            "requests": self.requests,
            "replies": self.replies,
            "gap_ms": longest.to_json()["ms"] if longest else None,
            "waiting_ms": round((now - self._asked) * 1000, 3) if self._asked else 0.0,
            "percentiles_ms": {f"p{p:g}": self._gaps.percentile(p) for p in (50, 90, 99, 99.9)},
            "resets": self.resets,
            "errors": self.errors,
            "retransmits": self._retransmits,
            "loss_probes": grown["TcpExt.TCPLossProbes"],
            "namespace": grown,
            "gaps": [gap.to_json() for gap in gaps],
        }
