"""Ports that programs have left behind on their first hosts, and still have: nobody else there is to get them.

A program that has moved keeps its address, and what is sent there goes to its new place. To the kernel of the first
host the port is free. Two things keep it from another program, which would never hear an answer:
  - a port of any kind is not chosen by the kernel any more (ip_local_reserved_ports of the host's namespace), for who
    connects does not care which one it gets;
  - a TCP port that accepts is bound by a socket of ours, so that a server which asks for it hears what it would hear if
    the other one were still there: the address is in use. It makes way for a program that moves to that port.

What was left is read from the rows, as they change. UDP ports are not bound: to a migration they would look taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Address
from pathlib import Path

from controllers import rows
from controllers.following import follow_forever
from controllers.hosts import Host, Hosts
from controllers.rows import Change, Key, Op, Row
from migration.namespaces import in_netns
from migration.steering import Endpoint, IpProtocol

LOG = logging.getLogger(__name__)
RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")


class LeftPorts:
    """Those of one load balancer; the coroutines belong to the controller's loop."""

    def __init__(self, hosts: Hosts, arriving: Callable[[], Collection[Endpoint]]) -> None:
        """Follow rows; `arriving` says to which locations programs are moving."""
        self._hosts = hosts
        self._arriving = arriving
        self._left: dict[Key, Endpoint] = {}
        self._reserved: dict[IPv4Address, set[int]] = {}
        self._before: dict[IPv4Address, set[int]] = {}
        self._bound: dict[Endpoint, socket.socket] = {}
        self._changed = asyncio.Event()
        self._working = asyncio.Lock()

    def note(self, changes: Iterable[Change]) -> None:
        """Hear what has become of rows."""
        for change in changes:
            key = change.row.key
            if key[0] not in ("connection", "destination"):
                continue
            identity = _left_by(change.row) if change.op is not Op.DELETE else None
            if identity != self._left.get(key):
                self._changed.set()
                self._left.pop(key, None)
                if identity is not None:
                    self._left[key] = identity

    def look(self) -> None:
        """Look again soon, since a move is over."""
        if self._left or self._bound:
            self._changed.set()

    async def make_way(self, locations: Collection[Endpoint]) -> None:
        """Let go of ports that programs are moving to."""
        if not self._bound.keys().isdisjoint(locations):
            async with self._working:
                self._unbind(self._bound.keys() & locations)

    async def free(self) -> None:
        """Let go of ports that nobody has any more, at once: whoever has freed them may give them to others."""
        async with self._working:
            self._unbind(self._bound.keys() - set(self._left.values()))

    async def follow_forever(self) -> None:
        """Keep what is left from others, as it changes."""
        await follow_forever(self._changed, self._working, self._follow)

    async def _follow(self) -> bool:
        """Do what the rows ask for; return True if nothing is left to be tried again.

        A port that something still has is: mostly the original of a program that is leaving.
        """
        known = {host.address: host for host in self._hosts.values()}
        left = {e for e in self._left.values() if e.address in known}
        loop, is_done = asyncio.get_running_loop(), True
        for address in ({e.address for e in left} | self._reserved.keys()) & known.keys():
            ports = {e.port for e in left if e.address == address}
            if ports != self._reserved.get(address, set()):
                await loop.run_in_executor(None, self._reserve, known[address], ports)
        accepting = {e for key, e in self._left.items() if key[0] == "destination" and e in left}
        wanted = {e for e in accepting if e.protocol is IpProtocol.TCP}
        self._unbind(self._bound.keys() - wanted)
        for endpoint in wanted - self._bound.keys() - set(self._arriving()):
            made = await loop.run_in_executor(None, bind, known[endpoint.address], endpoint)
            if made is None:
                is_done = False
            elif endpoint in self._arriving():
                made.close()
            else:
                self._bound[endpoint] = made
        return is_done

    def _reserve(self, host: Host, ports: set[int]) -> None:
        with contextlib.suppress(OSError):  # a /proc that is read-only
            if host.address not in self._before:
                self._before[host.address] = in_netns(host.pid, lambda: _parse(RESERVED.read_text()))
            every = sorted(ports | self._before[host.address])
            in_netns(host.pid, lambda: RESERVED.write_text(",".join(map(str, every)) + "\n"))
        self._reserved[host.address] = ports

    def _unbind(self, endpoints: Collection[Endpoint]) -> None:
        for endpoint in list(endpoints):
            self._bound.pop(endpoint).close()

    def close(self) -> None:
        """Let go of every port that is bound."""
        self._unbind(self._bound)


def bind(host: Host, endpoint: Endpoint) -> socket.socket | None:
    """Return a socket of a host that has a port and does nothing with it; None if another one has it."""

    def make() -> socket.socket | None:
        made = socket.socket()
        try:
            # What connections of the one that has left have still at the port does not hinder; others are hindered.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((str(endpoint.address), endpoint.port))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as ex:
            made.close()
            if ex.errno == errno.EADDRINUSE:
                return None
            raise
        return made

    try:
        return in_netns(host.pid, make)
    except OSError as ex:
        LOG.warning("port %d of %s cannot be kept from others: %s", endpoint.port, host.name, ex)
        return None


def _left_by(row: Row) -> Endpoint | None:
    """Return the identity that a row sends to another host, if it does."""
    if row.action not in ("send_to", "pin_to_location"):
        return None
    identity = rows.first_endpoint(row.key) if row.table == "destination" else rows.second_endpoint(row.key)
    return identity if rows.target(row, int(identity.protocol)).address != identity.address else None


def _parse(text: str) -> set[int]:
    """Read a list of ports and ranges."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
