"""The pins of established connections: written when the switch reports an opening, removed when they have ended.

The switch reports a connection of a service that it does not know by a digest (EVENT_OPENED), again with every
packet until the pin is there. Openings are collected and written in batches. A pin goes when its connection has been
silent long enough: hours for an open TCP connection, minutes for UDP, seconds after FIN or RST. (After one FIN the
other direction may go on for long, so it is silence that counts, not time.) Silence is measured by polling the pins'
direct counters.

With a pin goes what else was made for its connection: the exception in `connection_source`. Where it stops: one client
port that talks to a service and, at the same time, to the same backend by the backend's own address is one and the same
connection to that backend. If the latter one was closed already, the former takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from controllers import rows
from controllers.errors import SwitchError
from controllers.rows import Key, Row
from controllers.switchlink import SwitchLink
from controllers.tables import SwitchTables
from migration.steering import Endpoint, IpProtocol

LOG = logging.getLogger(__name__)

EVENT_OPENED, EVENT_CLOSING = 1, 2
TCP_FIN, TCP_RST = 0x01, 0x04
"""As in load_balancer.p4."""

_BATCH = 2048


@dataclass(frozen=True, slots=True)
class IdleLimits:
    """After how many silent seconds a pin goes, and how many there may be."""

    tcp: float = 4 * 3600.0
    udp: float = 180.0
    after_fin: float = 30.0
    after_rst: float = 5.0
    many: int = 120_000
    """How many pins may stay; the switch has room for 131072."""


Locate = Callable[[int], Endpoint | None]
"""Where a backend lives."""


@dataclass(slots=True)
class _Life:
    """What is known of a pin's traffic."""

    packets: int
    seen: float
    limit: float
    backend: int  # 0: pinned to a location


class Pins:
    """The connections of one switch."""

    def __init__(self, link: SwitchLink, tables: SwitchTables, limits: IdleLimits, locate: Locate) -> None:
        self.opened = 0
        self.refused = 0
        self._link = link
        self._tables = tables
        self._limits = limits
        self._locate = locate
        self._pending: dict[Key, Row] = {}
        self._lives: dict[Key, _Life] = {}
        self._by_backend: dict[int, int] = {}
        self.staying: dict[Key, tuple[Endpoint, Endpoint]] = {}
        """Of connections that their programs have closed: where each is, and its peer. See controllers.closing."""
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._lives)

    def of_backend(self, backend: int) -> int:
        """Return how many connections a backend has."""
        return self._by_backend.get(backend, 0)

    def adopt(self, table: Mapping[Key, Row]) -> None:
        """Take over the pins of a switch that another controller has filled, as if all had just spoken."""
        self._lives.clear()
        self._by_backend.clear()
        self.staying.clear()
        for row in table.values():
            if row.table == "connection":
                self._begin(row)

    def on_digest(self, events: Sequence[dict[str, int]]) -> None:
        """Take connection events; openings are written soon."""
        for event in events:
            source = rows.endpoint_of(event["protocol"], event["src_addr"], event["src_port"])
            destination = rows.endpoint_of(event["protocol"], event["dst_addr"], event["dst_port"])
            key = rows.connection_key(source, destination)
            if event["event"] == EVENT_CLOSING:
                self._closing(key, event["tcp_flags"])
            elif event["tcp_flags"] & (TCP_FIN | TCP_RST):
                continue  # the last words of a connection whose pin is gone already
            elif key not in self._tables.rows and key not in self._pending:
                self._pending[key] = rows.pin_to_backend(
                    source, destination, event["service"], event["backend"]
                )
                self._wake.set()

    def _closing(self, key: Key, flags: int) -> None:
        life = self._lives.get(key)
        if life is not None:
            limit = self._limits.after_rst if flags & TCP_RST else self._limits.after_fin
            life.limit = min(life.limit, limit)

    async def write_forever(self) -> None:
        """Write what was opened, as it comes."""
        while True:
            await self._wake.wait()
            await self._link.ready.wait()
            try:
                await self.flush()
            except SwitchError as ex:
                # The switch reports them again with their next packets.
                LOG.warning("connections could not be pinned: %s", ex)

    async def flush(self) -> None:
        """Return when every opening that was reported so far is pinned."""
        async with self._writing:
            while self._pending:
                batch = [self._pending.pop(key) for key in list(self._pending)[:_BATCH]]
                await self._write(batch)
            self._wake.clear()

    async def _write(self, batch: list[Row]) -> None:
        over = [key for row in batch if (key := self._replaced_by(row)) is not None]
        if over:
            await self.remove(over)
        refused = await self._tables.apply_each([row for row in batch if row.key not in self._tables.rows])
        if refused:
            self.refused += len(refused)
            LOG.warning("%d connections could not be pinned: %s", len(refused), next(iter(refused.values())))
        for row in batch:
            if row.key not in refused:
                self.track(row)

    def _replaced_by(self, opened: Row) -> Key | None:
        """Return the pin of a closed connection whose exception would speak for a service's new one."""
        location = self._locate(opened.params[1])
        if location is None:
            return None
        client = rows.first_endpoint(opened.key)
        exception = self._tables.rows.get(rows.connection_source_key(location, client))
        if exception is None:
            return None
        key = rows.connection_key(client, rows.target(exception, int(location.protocol)))
        life = self._lives.get(key)
        return key if life is not None and life.limit <= self._limits.after_fin else None

    def track(self, row: Row) -> None:
        """Watch a pin that is in the switch now (it may have replaced another)."""
        known = self._lives.get(row.key)
        if known is None:
            self.opened += 1
        elif known.backend == _backend_of(row) and (row.action == "stay_at") == (row.key in self.staying):
            return
        else:
            self.forget(row.key)
        self._begin(row)

    def touch(self, key: Key) -> None:
        """Take a pin for one whose connection has just spoken."""
        if (life := self._lives.get(key)) is not None:
            life.seen = time.monotonic()

    def _begin(self, row: Row) -> None:
        limit = self._limits.tcp if row.match[0] == IpProtocol.TCP else self._limits.udp
        backend = _backend_of(row)
        self._lives[row.key] = _Life(0, time.monotonic(), limit, backend)
        if row.action == "stay_at":
            peer = rows.first_endpoint(row.key)
            self.staying[row.key] = rows.target(row, int(peer.protocol)), peer
        if backend:
            self._by_backend[backend] = self.of_backend(backend) + 1

    async def age(self) -> int:
        """Remove the pins that were silent for too long; return how many went."""
        if not self._lives:
            return 0
        now = time.monotonic()
        async for row, packets in self._link.read_connection_counters():
            life = self._lives.get(row.key)
            if life is not None and packets != life.packets:
                life.packets, life.seen = packets, now
        over = [key for key, life in self._lives.items() if now - life.seen >= life.limit]
        if len(self._lives) - len(over) > self._limits.many:
            # Room for new ones is worth more than connections that have been silent the longest.
            silent = sorted(self._lives, key=lambda key: self._lives[key].seen)
            over = list(dict.fromkeys([*over, *silent[: len(self._lives) - self._limits.many]]))
        await self.remove(over)
        return len(over)

    async def remove(self, keys: Sequence[Key]) -> None:
        """Remove pins with all that was made for their connections."""
        for start in range(0, len(keys), _BATCH):
            batch = keys[start : start + _BATCH]
            deletes = [key for pin in batch for key in (pin, *self._companions(pin))]
            refused = await self._tables.apply_each((), deletes)
            for key in batch:
                if key not in refused:
                    self.forget(key)

    def forget(self, key: Key) -> None:
        """Stop watching a pin that is no longer in the switch."""
        self.staying.pop(key, None)
        life = self._lives.pop(key, None)
        if life is None or not life.backend:
            return
        left = self.of_backend(life.backend) - 1
        if left:
            self._by_backend[life.backend] = left
        else:
            self._by_backend.pop(life.backend, None)

    def _companions(self, pin: Key) -> list[Key]:
        row = self._tables.rows.get(pin)
        if row is None or row.action not in ("pin_to_location", "stay_at"):
            return []
        location = rows.target(row, int(rows.first_endpoint(pin).protocol))
        return [rows.connection_source_key(location, rows.first_endpoint(pin))]


def _backend_of(pin: Row) -> int:
    """Return the backend that a pin leads to; 0 if it leads to a location."""
    return pin.params[1] if pin.action == "pin_to_backend" else 0
