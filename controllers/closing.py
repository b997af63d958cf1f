"""The rows of connections that their programs have closed, for as long as a kernel still has them.

A connection whose program has closed it, and gone elsewhere or ended, lives on in the kernel of the host where it was:
what was written has to arrive. It stays there by rows of its own (`relocation.staying_rows`). How much silence that
takes is the reader's business, so it is the kernel of that host that is asked, not the packets; when it has none any
more, the rows go.
"""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address

from controllers.errors import ControllerError
from controllers.hosts import Host, Hosts
from controllers.pins import Pins
from migration.diag import Diag
from migration.steering import Endpoint, IpProtocol

LOG = logging.getLogger(__name__)
POLL_S = 1.0

Ends = tuple[Endpoint, Endpoint]
"""A connection: where it is, and its peer."""


class ClosingConnections:
    """Those of one load balancer; the coroutines belong to the controller's loop."""

    def __init__(self, pins: Pins, hosts: Hosts) -> None:
        self._pins = pins
        self._hosts = hosts

    async def watch_forever(self) -> None:
        """Remove the rows of what is over, and keep the others from being taken for silent ones."""
        while True:
            await asyncio.sleep(POLL_S)
            if not self._pins.staying:
                continue
            try:
                await self.look()
            except (OSError, ControllerError) as ex:
                LOG.warning("connections that were closed could not be followed: %s", ex)

    async def look(self) -> None:
        """Ask the kernels once."""
        rows = dict(self._pins.staying)
        known = {host.address: host for host in self._hosts.values()}
        for address in {location.address for location, _ in rows.values()} & known.keys():
            living = await asyncio.get_running_loop().run_in_executor(None, closing_on, known[address])
            here = [key for key, (location, _) in rows.items() if location.address == address]
            for key in here:
                if rows[key] in living:
                    self._pins.touch(key)
            if over := [key for key in here if rows[key] not in living]:
                await self._pins.remove(over)


def closing_on(host: Host) -> set[Ends]:
    """List what the kernel of a host is closing."""
    with Diag(host.pid) as diag:
        return {
            (
                Endpoint(IpProtocol.TCP, s.local, s.local_port),
                Endpoint(IpProtocol.TCP, s.remote, s.remote_port),
            )
            for s in diag.tcp_closing()
            if isinstance(s.local, IPv4Address) and isinstance(s.remote, IPv4Address)
        }
