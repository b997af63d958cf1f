"""What is known, chosen and refused before a migration touches anything."""

from __future__ import annotations

import contextlib
import fcntl
import socket as sockets_of_python
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path

from . import ownroutes
from .diag import Diag
from .errors import Refused
from .groups import Member, members
from .inet import (
    Address,
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
from .namespaces import in_netns
from .neighbours import NOWHERE, Surroundings, other_end, owner
from .runtime import Runtime
from .slowness import scaled
from .steering import IpProtocol, Move, Spoken
from .transfer.modes import DEFAULT_WISH, STOP_SHARED, Choice, Mode, Wish
from .workspace import check_room

CLOSING_TIMEOUT = scaled(0.5)
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
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
    choice: Choice = STOP_SHARED

    def move(
        self,
        sockets: Sequence[InetSocket],
        sent: Mapping[int, Spoken] | None = None,
        closing: Sequence[InetSocket] = (),
    ) -> Move:
        """Describe to the network what moves, given the program's sockets (how far each has sent; what stays)."""
        return build_move(
            self.identity, self.source.name, self.destination.name, sockets, self.relocation, sent, closing
        )


def make_plan(
    identity: str,
    app: App,
    destination: Host,
    runtime: Runtime,
    images: Path,
    wish: Wish = DEFAULT_WISH,
    surroundings: Surroundings = NOWHERE,
) -> Plan:
    """Look at the program and its destination; raise Refused, naming the thing that cannot be moved."""
    for member in members(app):
        if member.host.name != app.host.name:
            raise Refused(
                f"{app.name} cannot be moved together: {member.name} is on {member.host.name}, "
                f"{members(app)[0].name} on {app.host.name}"
            )
        if isinstance(member, Member):
            group = member.group.name
            raise Refused(f"{member.name} belongs to the group {group}, which moves as one: migrate {group}")
    if destination.name == app.host.name:
        raise Refused(f"{app.name} is on {destination.name} already")
    for host in (app.host, destination):
        if not Path(f"/proc/{host.pid}/ns/net").exists():
            raise Refused(f"host {host.name} is not there (its process {host.pid} has ended)")
    if not runtime.is_running(app):
        raise Refused(f"{app.name} is not running on {app.host.name} (process {app.pid})")
    runtime.check(app, destination, surroundings)
    choice = runtime.choose(app, destination, wish)
    # Images and pages land on the destination's side. Post-copy's pages never lie in a file.
    needed = 0 if choice.mode is Mode.LAZY else runtime.image_estimate(app)
    check_room(images, needed, app.name)
    sockets = runtime.sockets(app)
    check_sockets(app, destination, sockets, surroundings)
    with Diag(destination.pid) as diag:
        taken = diag.inet()
    check_ports(app, destination, sockets, taken)
    ports = choose_ports(sockets, taken)
    here, there = device_of(app.host), device_of(destination)
    devices = {here: there} if here and there else {}
    relocation = Relocation(app.host.address, destination.address, ports, devices)
    return Plan(identity, app, app.host, destination, relocation, sockets, choice)


def device_of(host: Host) -> str:
    """Return the name of the interface that has a host's address; "" if none has."""

    def look() -> str:
        with sockets_of_python.socket(sockets_of_python.AF_INET, sockets_of_python.SOCK_DGRAM) as sock:
            for _, name in sockets_of_python.if_nameindex():
                with contextlib.suppress(OSError):  # it has none
                    answer = fcntl.ioctl(sock, SIOCGIFADDR, struct.pack("16s24x", name.encode()))
                    if answer[20:24] == host.address.packed:
                        return name
        return ""

    return in_netns(host.pid, look)


def check_sockets(
    app: App, destination: Host, sockets: Sequence[InetSocket], surroundings: Surroundings = NOWHERE
) -> None:
    """Refuse sockets whose address does not belong to the host, or whose peer cannot be reached from elsewhere."""
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
        if socket.is_connection and not is_internal(socket, ends):
            check_peer(app, destination, socket, surroundings)


def check_peer(app: App, destination: Host, socket: InetSocket, surroundings: Surroundings) -> None:
    """Refuse a connection whose peer cannot be reached, or not as it was, from the destination."""
    if socket.remote == destination.address and not surroundings.has_hairpins:
        # The kernel there would look for the peer on its own host.
        raise Refused(
            f"{app.name} cannot be moved: {socket} has {destination.name}'s own address as its peer"
        )
    if socket.remote == app.host.address and _is_steered(app.host, socket):
        return  # its peer only has that address as its identity, and may be anywhere
    if socket.remote.is_loopback or socket.remote == app.host.address:
        if (end := peer_on(app.host, socket)) is None:
            return  # closed by its peer: there is nobody to be left behind
        other = owner(end.inode, surroundings)
        hint = f": move both, {app.name} and {other.name}, in one migration" if other.is_app else ""
        raise Refused(
            f"{app.name} cannot be moved: {socket} is connected with {other.name} on {app.host.name}{hint}"
        )
    if not surroundings.leads_to(socket.remote):
        raise Refused(
            f"{app.name} cannot be moved: {socket} has a peer outside of the testbed "
            f"({socket.remote} is no host's and no service's address)"
        )


def _is_steered(host: Host, socket: InetSocket) -> bool:
    """Say whether what a host sends to its own address on a connection goes over the switch."""
    return ownroutes.leads(ownroutes.read(host.pid), socket.protocol, socket.local_port, socket.remote_port)


def peer_on(host: Host, socket: InetSocket) -> InetSocket | None:
    """Return the other end of a connection within a host; one that is being closed gets a moment to be."""
    deadline = time.monotonic() + CLOSING_TIMEOUT
    with Diag(host.pid) as diag:
        while (end := other_end(socket, diag.inet())) is not None:
            if end.inode or time.monotonic() > deadline:
                return end
            time.sleep(0.01)
    return None


def check_ports(
    app: App, destination: Host, sockets: Sequence[InetSocket], taken: Sequence[InetSocket]
) -> None:
    """Refuse listeners whose port is in use at the destination."""
    used: dict[tuple[int, int], list[InetSocket]] = {}
    for other in taken:
        if other.is_receiver:
            used.setdefault((other.protocol, other.local_port), []).append(other)
    for socket in sockets:
        if not socket.is_receiver:
            continue
        local = destination.address if socket.local == app.host.address else socket.local
        if any(overlap(local, other.local) for other in used.get((socket.protocol, socket.local_port), ())):
            name = IpProtocol(socket.protocol).name
            raise Refused(
                f"{app.name} cannot be moved: {name} port {socket.local_port} is taken on {destination.name}"
            )


def overlap(one: Address, other: Address) -> bool:
    """Say whether two sockets bound to these addresses would claim the same packets."""
    return one == other or one.is_unspecified or other.is_unspecified


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
