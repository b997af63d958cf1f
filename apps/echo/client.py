"""The measuring client: requests at a steady rate on kept connections, every byte of the echo checked.

Each connection has at most one request under way. Its next one is due at the next point of an absolute grid
(so one late reply does not shift those after it), or at once if a reply was later than that. A gap is the
time between two replies on one connection by this process's own monotonic clock, so it includes the wait for
the grid (one period at most). Connections are never made anew: what breaks stays broken and is counted.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from apps.echo import kernel
from apps.echo.stream import WORD, EchoChecker, words

MAX_GAPS = 512
SELECT_LIMIT = 128
STATUS_PERIOD = 0.1
STATUS_MEMORY = 5.0
DRAIN = 5.0
CHUNK = 64 * 1024


class Unreachable(Exception):
    """The server could not be reached in time."""


def connect(host: str, port: int, wait: float) -> socket.socket:
    """Connect, trying again while nobody listens yet."""
    deadline = time.monotonic() + wait
    while True:
        try:
            sock = socket.create_connection((host, port), timeout=max(wait, 1.0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except socket.gaierror as ex:
            raise Unreachable(f"the server's name {host} is unknown: {ex.strerror}") from ex
        except OSError as ex:
            if time.monotonic() >= deadline:
                raise Unreachable(f"nobody answers at {host}:{port} ({ex.strerror or ex})") from ex
        time.sleep(0.02)


@dataclass(order=True, frozen=True)
class Gap:
    """A time without a reply on one connection; `start` and `end` are CLOCK_MONOTONIC seconds."""

    seconds: float
    start: float
    end: float
    connection: int

    def to_json(self) -> dict[str, Any]:
        """Return the gap as JSON values."""
        times = {"start": round(self.start, 6), "end": round(self.end, 6)}
        return {"ms": round(self.seconds * 1000, 3), **times, "connection": self.connection}


class GapLog:
    """All gaps in a histogram of tenths of a millisecond; of each tenth of a second, the longest one with its times.

    So an interruption that stops many connections takes one place, and a long run keeps its worst moments.
    """

    def __init__(self) -> None:
        self.count = 0
        self.longest: Gap | None = None
        self._histogram: dict[int, int] = {}
        self._by_time: dict[int, Gap] = {}

    def add(self, gap: Gap) -> None:
        """Note one gap."""
        self.count += 1
        tenth = int(gap.seconds * 10_000)
        self._histogram[tenth] = self._histogram.get(tenth, 0) + 1
        if self.longest is None or gap.seconds > self.longest.seconds:
            self.longest = gap
        moment = int(gap.end * 10)
        known = self._by_time.get(moment)
        if known is None or gap.seconds > known.seconds:
            self._by_time[moment] = gap
            if len(self._by_time) > 2 * MAX_GAPS:
                # The last moments stay, however short their gaps: a status is to tell of them.
                kept = [*self.since(gap.end - STATUS_MEMORY), *self.worst()]
                self._by_time = {int(one.end * 10): one for one in kept}

    def worst(self) -> list[Gap]:
        """Return the longest gap of each of the worst moments, longest first."""
        return heapq.nlargest(MAX_GAPS, self._by_time.values())

    def since(self, start: float) -> list[Gap]:
        """Return the longest gaps of the moments since a time."""
        return [gap for gap in self._by_time.values() if gap.end >= start]

    def percentile(self, percent: float) -> float:
        """Return a percentile in milliseconds."""
        rank = self.count * percent / 100
        seen = 0
        for tenth in sorted(self._histogram):
            seen += self._histogram[tenth]
            if seen >= rank:
                return tenth / 10
        return 0.0


@dataclass
class Connection:
    """One kept connection and what is known of it."""

    number: int
    sock: socket.socket
    checker: EchoChecker
    due: float
    sent: int = 0
    outgoing: bytes = b""
    last_reply: float | None = None
    replies: int = 0
    retransmits: int = 0
    error: str | None = None
    is_open: bool = field(default=True)

    @property
    def is_waiting(self) -> bool:
        """Say whether a request has not been answered completely."""
        return self.checker.position < self.sent


@dataclass(frozen=True)
class Load:
    """What to send: `rate` is that of all connections together, in requests a second."""

    connections: int
    rate: float
    size: int
    duration: float | None = None
    requests: int | None = None


class Client:
    """Runs a Load against a server and sums up."""

    def __init__(self, load: Load, tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.load = load
        self._tell = tell
        self._words = max(1, (load.size + WORD - 1) // WORD)
        self._period = load.connections / load.rate
        self._connections: list[Connection] = []
        self._gaps = GapLog()
        self._counters = kernel.CounterWatch()
        self._started = 0.0
        self._requests = 0
        self._resets = self._errors = 0
        self._is_stopped = False

    def stop(self) -> None:
        """Send nothing more; `run` returns when the last replies are there."""
        self._is_stopped = True

    def run(self, host: str, port: int, wait: float) -> dict[str, Any]:
        """Connect, send at the rate, wait for the last replies; return the result."""
        socks = [connect(host, port, wait) for _ in range(self.load.connections)]
        self._started = now = time.monotonic()
        for number, sock in enumerate(socks):
            sock.setblocking(False)
            due = now + self._period * number / self.load.connections
            self._connections.append(Connection(number, sock, EchoChecker(number), due))
        self._counters.sample()
        self._loop()
        for connection in self._connections:
            connection.checker.finish(connection.sent)
            self._close(connection)
        return self.result(self._gaps.worst())

    def _loop(self) -> None:
        by_fd = {connection.sock.fileno(): connection for connection in self._connections}
        agenda = [(connection.due, connection.number) for connection in self._connections]
        heapq.heapify(agenda)
        next_status = time.monotonic() + STATUS_PERIOD
        give_up = 0.0
        poller = Poller(list(by_fd))
        while any(connection.is_open for connection in self._connections):
            now = time.monotonic()
            if self._is_over(now):
                give_up = give_up or now + DRAIN
                agenda.clear()
                if now > give_up or not any(c.is_waiting and c.is_open for c in self._connections):
                    return
            while agenda and agenda[0][0] <= now and not self._is_over(now):
                self._request(self._connections[heapq.heappop(agenda)[1]], poller)
            wake = min(next_status, agenda[0][0] if agenda else now + STATUS_PERIOD)
            for fd in poller.wait(max(0.0, wake - time.monotonic())):
                connection = by_fd[fd]
                if self._exchange(connection, poller):
                    heapq.heappush(agenda, (connection.due, connection.number))
            if self._tell is not None and time.monotonic() >= next_status:
                self._tell(self.result(self._gaps.since(now - STATUS_MEMORY)))
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + STATUS_PERIOD

    def _is_over(self, now: float) -> bool:
        load = self.load
        return (
            self._is_stopped
            or (load.duration is not None and now >= self._started + load.duration)
            or (load.requests is not None and self._requests >= load.requests)
        )

    def _request(self, connection: Connection, poller: Poller) -> None:
        """Send a connection's next request."""
        if not connection.is_open:
            return
        data = words(connection.number, connection.sent // WORD, self._words)
        connection.sent += len(data)
        connection.outgoing += data
        self._requests += 1
        self._flush(connection, poller)

    def _flush(self, connection: Connection, poller: Poller) -> None:
        try:
            count = connection.sock.send(connection.outgoing)
            connection.outgoing = connection.outgoing[count:]
        except BlockingIOError:
            pass
        except OSError as ex:
            self._break(connection, poller, ex)
            return
        poller.want_write(connection.sock.fileno(), bool(connection.outgoing))

    def _exchange(self, connection: Connection, poller: Poller) -> bool:
        """Read from a ready connection; say whether this completed a reply."""
        if not connection.is_open:
            return False
        if connection.outgoing:
            self._flush(connection, poller)
        try:
            data = connection.sock.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError as ex:
            self._break(connection, poller, ex)
            return False
        if not data:
            self._break(connection, poller, ConnectionError("closed by the server"))
            return False
        now = time.monotonic()
        connection.checker.feed(data)
        if connection.is_waiting:
            return False
        self._note_reply(connection, now)
        return True

    def _note_reply(self, connection: Connection, now: float) -> None:
        if connection.last_reply is not None:
            self._gaps.add(Gap(now - connection.last_reply, connection.last_reply, now, connection.number))
        connection.last_reply = now
        connection.replies += 1
        missed = max(0, int((now - connection.due) / self._period))
        connection.due += (missed + 1) * self._period
        if missed:
            connection.due = now  # late: the next request is due at once, and then on the grid again

    def _break(self, connection: Connection, poller: Poller, ex: OSError) -> None:
        if isinstance(ex, ConnectionResetError):
            self._resets += 1
        self._errors += 1
        connection.error = str(ex)
        poller.remove(connection.sock.fileno())
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.is_open:
            connection.retransmits = kernel.total_retransmits(connection.sock)
            connection.is_open = False
            connection.sock.close()

    def result(self, gaps: list[Gap]) -> dict[str, Any]:
        """Sum up what was seen so far, with those gaps listed."""
        now = time.monotonic()
        grown = self._counters.sample()
        longest = self._gaps.longest
        # An unanswered request on an open connection is a gap that has not ended yet.
        waiting = [
            now - c.last_reply for c in self._connections if c.is_open and c.is_waiting and c.last_reply
        ]
        retransmits = sum(
            kernel.total_retransmits(c.sock) if c.is_open else c.retransmits for c in self._connections
        )
        return {
            "mode": "echo",
            "time": round(now, 6),
            "seconds": round(now - self._started, 3),
            "connections": len(self._connections),
            "open": sum(c.is_open for c in self._connections),
            "requests": self._requests,
            "replies": sum(c.replies for c in self._connections),
            "bytes_sent": sum(c.sent for c in self._connections),
            "lost_bytes": sum(c.checker.lost_bytes for c in self._connections),
            "duplicated_bytes": sum(c.checker.duplicated_bytes for c in self._connections),
            "corrupt_bytes": sum(c.checker.corrupt_bytes for c in self._connections),
            "gap_ms": longest.to_json()["ms"] if longest else None,
            "waiting_ms": round(max(waiting, default=0.0) * 1000, 3),
            "percentiles_ms": {name: self._gaps.percentile(p) for name, p in PERCENTILES.items()},
            "resets": self._resets,
            "errors": sorted({c.error for c in self._connections if c.error}),
            "reconnects": 0,
            "retransmits": retransmits,
            "loss_probes": grown["TcpExt.TCPLossProbes"],
            "namespace": grown,
            "gaps": [gap.to_json() for gap in gaps],
        }


PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def gap_between(result: dict[str, Any], start: float, end: float) -> float | None:
    """Return the longest gap in milliseconds that touches a time window, from a client's result or status.

    Times are CLOCK_MONOTONIC seconds. A status lists the gaps of the last five seconds, a result those of the
    worst moments; None: none of them touches the window.
    """
    touching = [gap["ms"] for gap in result["gaps"] if gap["end"] >= start and gap["start"] <= end]
    return max(touching, default=None)


class Poller:
    """Waits for sockets with microsecond timeouts where possible: epoll_wait(2) counts in milliseconds."""

    def __init__(self, fds: list[int]) -> None:
        self._fds = set(fds)
        self._writers: set[int] = set()
        self._uses_select = len(fds) <= SELECT_LIMIT and max(fds, default=0) < 1024
        self._poll = select.poll()
        for fd in fds:
            self._poll.register(fd, select.POLLIN)

    def want_write(self, fd: int, wants: bool) -> None:
        """Wait for room to write as well, or no more."""
        if wants == (fd in self._writers):
            return
        (self._writers.add if wants else self._writers.discard)(fd)
        self._poll.modify(fd, select.POLLIN | (select.POLLOUT if wants else 0))

    def remove(self, fd: int) -> None:
        """Wait for this one no more."""
        self._fds.discard(fd)
        self._writers.discard(fd)
        self._poll.unregister(fd)

    def wait(self, timeout: float) -> list[int]:
        """Return the descriptors that are ready, or none when the time is over."""
        if self._uses_select:
            readable, writable, _ = select.select(self._fds, self._writers, (), timeout)
            return list({*readable, *writable})
        return [fd for fd, _ in self._poll.poll(timeout * 1000)]
