"""What is known, chosen and refused before a migration touches anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path

from .diag import Diag
from .errors import Refused
from .inet import (
    Flow,
    InetSocket,
    Relocation,
    build_move,
    flow,
    is_internal,
    is_outward,
    local_ends,
)
from .model import App, Host
from .runtime import Runtime
from .steering import IpProtocol, Move
from .workspace import check_room

EPHEMERAL = range(32768, 60999)


@dataclass(frozen=True)
class Plan:
    """Who goes where, and which addresses change."""

    identity: str
    app: App
    source: Host
    destination: Host
    relocation: Relocation
    sockets: Sequence[InetSocket] = field(default=())

    def move(self, sockets: Sequence[InetSocket], sent: Mapping[int, int] | None = None) -> Move:
        """Describe to the network what moves, given the program's sockets (and how far each has sent)."""
        return build_move(
            self.identity, self.source.name, self.destination.name, sockets, self.relocation, sent
        )


def make_plan(identity: str, app: App, destination: Host, runtime: Runtime, images: Path) -> Plan:
    """Look at the program and its destination; raise Refused, naming the thing that cannot be moved."""
    if destination.name == app.host.name:
        raise Refused(f"{app.name} is on {destination.name} already")
    for host in (app.host, destination):
        if not Path(f"/proc/{host.pid}/ns/net").exists():
            raise Refused(f"host {host.name} is not there (its process {host.pid} has ended)")
    if not runtime.is_running(app):
        raise Refused(f"{app.name} is not running on {app.host.name} (process {app.pid})")
    runtime.check(app, destination)
    check_room(images, runtime.image_estimate(app), app.name)
    sockets = runtime.sockets(app)
    check_sockets(app, destination, sockets)
    with Diag(destination.pid) as diag:
        taken = diag.inet()
    check_ports(app, destination, sockets, taken)
    ports = choose_ports(sockets, taken)
    relocation = Relocation(app.host.address, destination.address, ports)
    return Plan(identity, app, app.host, destination, relocation, sockets)


def check_sockets(app: App, destination: Host, sockets: Sequence[InetSocket]) -> None:
    """Refuse sockets whose address does not belong to the host, or whose peer stays behind on it."""
    own = app.host.address
    ends = local_ends(sockets, own)
    for socket in sockets:
        if socket.local_port == 0:
            continue
        local = socket.local
        if isinstance(local, IPv6Address) and not (local.is_unspecified or local.is_loopback):
            raise Refused(
                f"{app.name} cannot be moved: {socket} is an IPv6 socket, only IPv4 is carried so far"
            )
        if not (local.is_loopback or is_outward(socket, own)):
            raise Refused(
                f"{app.name} cannot be moved: {socket} is not bound to {app.host.name}'s address {own}"
            )
        if socket.is_connection and socket.remote == destination.address:
            # The kernel there would look for the peer on its own host.
            raise Refused(
                f"{app.name} cannot be moved: {socket} has {destination.name}'s own address as its peer"
            )
        stays = socket.remote.is_loopback or socket.remote == own
        if socket.is_connection and stays and not is_internal(socket, ends):
            raise Refused(
                f"{app.name} cannot be moved: {socket} is connected with another program on {app.host.name}"
            )


def check_ports(
    app: App, destination: Host, sockets: Sequence[InetSocket], taken: Sequence[InetSocket]
) -> None:
    """Refuse listeners whose port is in use at the destination."""
    used = {(s.protocol, s.local_port): s for s in taken if s.is_receiver}
    for socket in sockets:
        if socket.is_receiver and (socket.protocol, socket.local_port) in used:
            name = IpProtocol(socket.protocol).name
            raise Refused(
                f"{app.name} cannot be moved: {name} port {socket.local_port} is taken on {destination.name}"
            )


def choose_ports(sockets: Sequence[InetSocket], taken: Sequence[InetSocket]) -> dict[Flow, int]:
    """Give connections a new local port where the destination uses the old one already."""
    used = {(s.protocol, s.local_port) for s in taken}
    served = {(s.protocol, s.local_port) for s in sockets if s.is_receiver}
    free = iter(EPHEMERAL)
    chosen: dict[Flow, int] = {}
    own = {(s.protocol, s.local_port) for s in sockets}
    for socket in sockets:
        key = (socket.protocol, socket.local_port)
        if not socket.is_connection or socket.local.is_loopback or key in served or key not in used:
            continue
        port = next(p for p in free if (socket.protocol, p) not in used | own)
        chosen[flow(socket)] = port
    return chosen
