"""Which hosts have to send what is for their own address to the switch: see migration.ownroutes.

It follows the rows, as they change, and what is about to move:

    destination      packets to an address and port of a host that somebody else has, or has first (a moved program, or
                     a backend, whose clients know it by its service's address)
    endpoint_source  packets from a port whose program is called something else, so that the switch can say so; and
                     packets to it, so that the answers to them are not the only ones that take that way

Of a connection that has moved to where its peer's identity is the host's own address, packets at its host, unless they
are from such a port. That is asked for by its move, and lasts as long as the connection's pin, which says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address

from controllers import rows
from controllers.following import follow_forever
from controllers.hosts import Hosts
from controllers.rows import Change, Key, Op, Row
from migration import ownroutes
from migration.ownroutes import OwnRoute
from migration.steering import Endpoint, Move, SteeringError

LOG = logging.getLogger(__name__)

Routes = dict[IPv4Address, set[OwnRoute]]


class Hairpins:
    """Those of one load balancer; the coroutines belong to the controller's loop."""

    def __init__(self, hosts: Hosts) -> None:
        """Follow rows."""
        self._hosts = hosts
        self._by_row: dict[Key, Routes] = {}
        self._pinned: dict[Key, tuple[IPv4Address, OwnRoute]] = {}
        """What connections would need that were pinned to a location; most have no need of it."""
        self._by_move: dict[str, Routes] = {}
        self._written: set[IPv4Address] = set()
        """Hosts that may have routes."""
        self._changed = asyncio.Event()
        self._working = asyncio.Lock()

    def note(self, changes: Iterable[Change]) -> None:
        """Hear what has become of rows."""
        for change in changes:
            key = change.row.key
            if key[0] == "connection":
                self._note_pin(change)
            elif key[0] in ("destination", "endpoint_source"):
                routes = _of_row(change.row) if change.op is not Op.DELETE else {}
                if routes != self._by_row.get(key, {}):
                    self._changed.set()
                    self._by_row.pop(key, None)
                    if routes:
                        self._by_row[key] = routes

    def _note_pin(self, change: Change) -> None:
        pinned = _of_pin(change.row) if change.op is not Op.DELETE else None
        if pinned != (before := self._pinned.get(change.row.key)):
            self._pinned.pop(change.row.key, None)
            if pinned is not None:
                self._pinned[change.row.key] = pinned
            if before is not None and before[0] in self._written:
                self._changed.set()

    async def prepare(self, move: Move) -> None:
        """Make the routes that a program needs as soon as it is built at its destination; raises SteeringError."""
        routes = _of_move(move)
        if routes == self._by_move.get(move.id):
            return
        self._by_move[move.id] = routes
        async with self._working:
            for address, new in routes.items():
                problem = await self._write(address, new, None)
                if problem:
                    raise SteeringError(problem)

    def over(self, move: Move) -> None:
        """Hear that a move has come to its end, or to that of its way back: from now on the rows say all."""
        if self._by_move.pop(move.id, None) is not None:
            self._changed.set()

    async def follow_forever(self) -> None:
        """Keep the hosts' routes as the rows ask for."""
        await follow_forever(self._changed, self._working, self._follow)

    def wanted(self) -> Routes:
        """Return the routes of every host, by its address."""
        found: Routes = {}
        for routes in (*self._by_row.values(), *self._by_move.values()):
            for address, some in routes.items():
                found.setdefault(address, set()).update(some)
        return found

    async def _follow(self) -> bool:
        """Do what the rows ask for; return True if nothing is left to be tried again."""
        wanted, pinned, is_done = self.wanted(), set(self._pinned.values()), True
        for address in {*wanted, *self._written}:
            problem = await self._write(address, wanted.get(address, set()), pinned)
            if problem:
                LOG.warning("%s", problem)
                is_done = False
        return is_done

    async def _write(
        self,
        address: IPv4Address,
        wanted: set[OwnRoute],
        pinned: Collection[tuple[IPv4Address, OwnRoute]] | None,
    ) -> str | None:
        """Make a host's routes, and, with `pinned`, remove whatever is not wanted; return what went wrong."""
        host = next((host for host in self._hosts.values() if host.address == address), None)
        if host is None or not host.pid:
            self._written.discard(address)
            return None

        def work() -> None:
            old: set[OwnRoute] = set()
            if pinned is not None:
                unasked = ownroutes.read(host.pid) - wanted
                old = {r for r in unasked if (address, r) not in pinned and not _is_kept(r, wanted)}
            ownroutes.write(host.pid, address, wanted, old)

        self._written.add(address)
        try:
            await asyncio.get_running_loop().run_in_executor(None, work)
        except ownroutes.FAILURES as ex:
            return f"host {host.name} cannot be told to send packets for {address} to its switch: {ex}"
        return None


def _is_kept(route: OwnRoute, wanted: set[OwnRoute]) -> bool:
    """Say whether a connection within a host may be there: no row tells, so it goes with the ports of its ends."""
    return route.is_inner and any(
        not other.is_inner and (other.involves(route.protocol, end))
        for other in wanted
        for end in (route.source_port, route.port)
    )


def _of_row(row: Row) -> Routes:
    """Return what a row asks for."""
    if row.action not in ("send_to", "direct", "speak_as"):
        return {}
    end = rows.first_endpoint(row.key)
    to = OwnRoute(int(end.protocol), 0, end.port)
    if row.table == "destination":
        return {end.address: {to}}
    return {end.address: {to, OwnRoute(int(end.protocol), end.port, 0)}}


def _of_pin(row: Row) -> tuple[IPv4Address, OwnRoute] | None:
    """Return what a connection needs where it was pinned to a host that has its peer's identity as its address."""
    if row.action != "pin_to_location":
        return None
    peer = rows.first_endpoint(row.key)
    location = rows.target(row, int(peer.protocol))
    if location.address != peer.address:
        return None
    return location.address, OwnRoute(int(peer.protocol), location.port, peer.port)


def _of_move(move: Move) -> Routes:
    """Return what a program needs at its destination, and those need who call it from its source."""
    found: Routes = {}

    def add(at: Endpoint, source_port: int, port: int, is_inner: bool = False) -> None:
        route = OwnRoute(int(at.protocol), source_port, port, is_inner)
        found.setdefault(at.address, set()).add(route)

    for listener in move.listeners:
        if listener.old != listener.new:
            add(listener.old, 0, listener.old.port)
            add(listener.new, listener.new.port, 0)
            add(listener.new, 0, listener.new.port)
    served = {listener.new for listener in move.listeners}
    for connection in move.connections:
        if connection.new not in served and connection.peer.address == connection.new.address:
            add(connection.new, connection.new.port, connection.peer.port)
    for inner in move.inner:
        add(inner.new, inner.new.port, inner.peer.port, is_inner=True)
    return found
