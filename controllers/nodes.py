"""The original load balancer's nodes: backends of one service, named by address, reached by port and MAC.

A node's next hop becomes a /32 route where the network's own routes would not lead there. Pure but for `Nodes`, which
asks the load balancer.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from controllers import rows
from controllers.config import LbNode
from controllers.errors import Conflict, NotFound
from controllers.loadbalancer import LoadBalancer
from controllers.model import Backend, BackendState, Service
from controllers.rows import Key, Row
from migration.steering import Endpoint


def lookup(table: Mapping[Key, Row], address: IPv4Address) -> Row | None:
    """Return the route that a switch would take to an address: the longest prefix."""
    best: tuple[int, Row] | None = None
    for row in table.values():
        if row.table != "route" or not isinstance(row.match[0], tuple):
            continue
        network, length = row.match[0]
        if (int(address) ^ network) >> (32 - length) == 0 and (best is None or length > best[0]):
            best = (length, row)
    return best[1] if best is not None else None


def needed_route(table: Mapping[Key, Row], node: LbNode, own_mac: int) -> Row | None:
    """Return the route to write for a node, or None if the switch finds it already."""
    known = lookup(table, node.address)
    if (
        known is not None
        and known.action == "forward"
        and (known.params[0], known.params[2]) == (node.port, node.mac)
    ):
        return None
    out = (
        r for r in table.values() if r.table == "route" and r.action == "forward" and r.params[0] == node.port
    )
    neighbour = next(out, None)
    src_mac = neighbour.params[1] if neighbour is not None else own_mac
    return rows.route(IPv4Network((node.address, 32)), node.port, src_mac, node.mac)


class Nodes:
    """insert_node, update_node, delete_node."""

    def __init__(self, balancer: LoadBalancer, default_service: str | None) -> None:
        self._balancer = balancer
        self._default = default_service

    def service(self, name: str | None = None) -> Service:
        """Return the service that nodes belong to unless they say otherwise."""
        model = self._balancer.model
        wanted = name or self._default
        if wanted is None:
            if len(model.services) != 1:
                raise NotFound('there is no default service; name one with "service"')
            return next(iter(model.services.values()))
        return model.service(wanted)

    async def insert(self, node: LbNode, service: str | None = None, port: int | None = None) -> None:
        """Put a node into the pool."""
        owner = self.service(service)
        location = Endpoint(owner.endpoint.protocol, node.address, port or owner.endpoint.port)
        route = needed_route(self._balancer.table, node, self._balancer.options.vip_mac)
        await self._balancer.add_backend(owner.name, location, node.weight, route)

    async def update(
        self, old: IPv4Address, node: LbNode, service: str | None = None, port: int | None = None
    ) -> None:
        """Send a node's connections, old and new, to another address."""
        owner = self.service(service)
        known = self.find(owner, old)
        if any(b.location.address == node.address for b in self._listed(owner)):
            raise Conflict(f"{node.address} is already a node of service {owner.name!r}")
        new = Endpoint(known.location.protocol, node.address, port or known.location.port)
        route = needed_route(self._balancer.table, node, self._balancer.options.vip_mac)
        await self._balancer.move_backend(owner.name, known.location, new, route)

    async def delete(self, address: IPv4Address, drain: bool, service: str | None = None) -> None:
        """Take a node out of the pool."""
        owner = self.service(service)
        await self._balancer.remove_backend(owner.name, self.find(owner, address).location, drain)

    def find(self, service: Service, address: IPv4Address) -> Backend:
        """Return the node of an address."""
        found = [b for b in self._listed(service) if b.location.address == address]
        if not found:
            raise NotFound(f"{address} is not a node of service {service.name!r}")
        if len(found) > 1:
            raise Conflict(f"service {service.name!r} has {len(found)} nodes at {address}")
        return found[0]

    def _listed(self, service: Service) -> list[Backend]:
        pool = self._balancer.model.pool(service.id)
        return [b for b in pool if b.state is not BackendState.REMOVED]

    def view(self) -> list[dict[str, Any]]:
        """Return every node of every service."""
        return [
            self._view(service, backend)
            for service in self._balancer.model.services.values()
            for backend in self._listed(service)
        ]

    def _view(self, service: Service, backend: Backend) -> dict[str, Any]:
        route = lookup(self._balancer.table, backend.location.address)
        forward = route is not None and route.action == "forward"
        return {
            "service": service.name,
            "ipv4": str(backend.location.address),
            "port": backend.location.port,
            "home": f"{backend.home.address}:{backend.home.port}",
            "eport": route.params[0] if route is not None and forward else None,
            "dmac": mac_text(route.params[2]) if route is not None and forward else None,
            "weight": backend.weight,
            "state": backend.state.value,
            "connections": self._balancer.pins.of_backend(backend.id),
        }


def mac_text(mac: int) -> str:
    """Return a MAC address as people write it."""
    return ":".join(f"{byte:02x}" for byte in mac.to_bytes(6, "big"))
