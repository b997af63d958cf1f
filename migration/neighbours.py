"""Who else is there: the other programs of a testbed, its addresses, and whose socket a socket is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from . import tree
from .diag import Diag, UnixSocket
from .errors import Refused
from .inet import Address, InetSocket, State
from .model import App
from .steering import IpProtocol

_ACCEPT_S = 0.005  # in which a listener that is looked after accepts


@dataclass(frozen=True)
class Surroundings:
    """What a migration may know of the testbed around its program, asked for anew each time.

    `addresses` are those that the network leads to: of hosts, services and their gateways. Without them any peer is
    believed to be reachable.
    """

    apps: Callable[[], Sequence[App]] = list
    addresses: Callable[[], Collection[Address]] | None = None
    has_hairpins: bool = False
    """What a host sends to its own address reaches whoever has that as an identity, wherever it is: see ownroutes."""

    def leads_to(self, address: Address) -> bool:
        """Say whether the network leads to an address."""
        if self.addresses is None or address.is_multicast:
            return True
        return address in self.addresses()


NOWHERE = Surroundings()


@dataclass(frozen=True)
class Owner:
    """Who has a socket: an app, or some process."""

    name: str
    is_app: bool


def owner(inode: int, surroundings: Surroundings) -> Owner:
    """Find out whose socket it is, for a message."""
    for app in surroundings.apps():
        if inode in sockets_of(app):
            return Owner(app.name, True)
    for folder in tree.PROC.iterdir():
        if folder.name.isdigit() and _has_open(int(folder.name), inode):
            command = tree.read_or_empty(folder / "comm").strip()
            return Owner(f"process {folder.name} ({command})", False)
    return Owner("another program", False)


def _has_open(pid: int, inode: int) -> bool:
    """Say whether a process has a socket; one with more capabilities than we have cannot be looked into."""
    try:
        return inode in tree.socket_inodes(tree.open_files([pid]))
    except PermissionError:
        return False


def sockets_of(app: App) -> set[int]:
    """Return the inodes of a program's sockets."""
    return tree.socket_inodes(tree.open_files(tree.processes(app.pid)))


def other_end(socket: InetSocket, everything: Sequence[InetSocket]) -> InetSocket | None:
    """Return a connection's other end on the same host; None if nobody has it (any more)."""
    there = (socket.protocol, socket.remote, socket.remote_port, socket.local, socket.local_port)
    for other in everything:
        if (other.protocol, other.local, other.local_port, other.remote, other.remote_port) == there:
            is_abandoned = other.inode == 0 and other.state != State.ESTABLISHED and other.send_queue == 0
            return None if is_abandoned else other
    if socket.protocol == IpProtocol.TCP:
        return None
    # An unconnected UDP socket answers from where it is bound.
    return next((s for s in everything if s.is_receiver and (s.protocol, s.local_port) == there[:3:2]), None)


def check_unix(app: App, surroundings: Surroundings) -> None:
    """Refuse a program that a UNIX socket connects with another one: CRIU can carry such a pair only whole.

    It has to be there at a second look: a program that forks while its processes are gone through, as sshd at a
    login, has been seen with one end of a pair.
    """
    strange = _strange_sockets(app)
    if strange and (strange := strange & _strange_sockets(app)):
        other = owner(min(strange)[1], surroundings)
        hint = ": start both with the same --group" if other.is_app else ""
        raise Refused(f"{app.name} cannot be moved: a UNIX socket connects it with {other.name}{hint}")
    stuck = _stuck(app)
    if stuck:
        time.sleep(_ACCEPT_S)
        stuck &= _stuck(app)
    for _, what in sorted(stuck):
        raise Refused(f"{app.name} cannot be moved: {what}")


def _stuck(app: App) -> set[tuple[int, str]]:
    """List the connections at the program's UNIX listeners that CRIU gives up for: it makes them anew, but empty."""
    own = sockets_of(app)
    with Diag(app.host.pid) as diag:
        found = {one.inode: one for one in diag.unix()}
    stuck: set[tuple[int, str]] = set()
    for listener in (one for one in found.values() if one.inode in own):
        for inode in listener.waiting:
            if inode not in found:
                what = "has been closed by its other end"
            elif found[inode].unread:
                what = "has had data written to it"
            else:
                continue
            stuck.add((inode, f"a connection to its UNIX socket that it has not accepted yet {what}"))
    return stuck


def _strange_sockets(app: App) -> set[tuple[int, int]]:
    """Return the inodes of sockets of which the other end is not the program's, with those of the other ends."""
    own = sockets_of(app)
    with Diag(app.host.pid) as diag:
        return {(s.inode, s.peer) for s in diag.unix() if _is_strange(s, own)}


def _is_strange(socket: UnixSocket, own: set[int]) -> bool:
    """Say whether one end of a UNIX connection is the program's, and the other is not."""
    return socket.inode in own and socket.peer != 0 and socket.peer not in own
