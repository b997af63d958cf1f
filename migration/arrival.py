"""Connections that are over, or nearly, at ports of the destination on which a program is about to accept again.

A listener without SO_REUSEADDR cannot be bound while its port has a connection in TIME_WAIT, as any that the program
has closed there is for a minute. After a move those protect nothing: what could still come for them goes to where the
program is. So they are ended. What still has to send or to hear something stays, and then the program has to wait.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable

from . import repair, tree
from .diag import Diag
from .errors import Refused
from .groups import members
from .inet import InetSocket, State, is_outward
from .model import App, Host
from .steering import IpProtocol, MovedListener


def make_room(app: App, destination: Host, listeners: Iterable[MovedListener], diag: Diag) -> None:
    """End what would keep the program's listeners from being bound at the destination; raise Refused if that lives."""
    ports = {m.new.port for m in listeners if m.new.protocol == IpProtocol.TCP}
    left = [s for s in diag.tcp_ending() if s.local_port in ports and is_outward(s, destination.address)]
    if not left:
        return
    strict = _strict_ports(app)
    for one in (s for s in left if s.local_port in strict):
        if one.state != State.TIME_WAIT:
            raise Refused(
                f"{app.name} cannot be moved: {one}, which it has closed on {destination.name}, is not over, and "
                f"its listener has no SO_REUSEADDR"
            )
        try:
            diag.destroy(one)
        except OSError as ex:
            if ex.errno == errno.ENOENT:  # over meanwhile
                continue
            raise Refused(
                f"{app.name} cannot be moved: {one} is in TIME_WAIT on {destination.name}, its listener has no "
                f"SO_REUSEADDR, and the kernel does not end it ({ex.strerror})"
            ) from ex


def end_waiting(sockets: Iterable[InetSocket], host: Host) -> None:
    """End what is over and would keep a program from being restored where it was, now that its original has ended."""
    ports = {s.local_port for s in sockets if s.protocol == IpProtocol.TCP and s.is_receiver}
    if not ports:
        return
    with Diag(host.pid) as diag:
        for one in diag.tcp_ending():
            if one.state == State.TIME_WAIT and one.local_port in ports:
                with contextlib.suppress(
                    OSError
                ):  # over by now, or a kernel that cannot: few programs need it
                    diag.destroy(one)


def _strict_ports(app: App) -> set[int]:
    """Return the ports of a program's TCP listeners that have no SO_REUSEADDR."""
    pids = [pid for member in members(app) for pid in tree.processes(member.pid)]
    with repair.tcp_sockets(pids) as sockets:
        listeners = [s for s in sockets if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
        return {
            s.getsockname()[1] for s in listeners if not s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        }
