"""A connection between two hosts over the management network, and how many bytes have passed it.

Both ends are made here, one in each host's network namespace, and then given to whoever talks over them: CRIU's
processes, or this one. So there are no ports to choose and nothing to connect while a program stands still.
Hosts of a shared transfer need no network: their ends are a socket pair.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

from pyroute2 import IPRoute

from ..errors import MigrationError
from ..model import Host
from ..namespaces import in_netns
from ..slowness import scaled

CONNECT_TIMEOUT = scaled(5.0)
UNCORK_POLL = 0.0005
SO_SNDBUFFORCE = 32  # <asm-generic/socket.h>
# A lazy-pages daemon does not wait until its request for a page fits into the buffer, and fails. There is one for each
# thread that waits for a page, and the kernel counts about 1 KiB for each on a socket pair.
REQUESTS = 64 << 20
CONGESTION_CONTROL = b"cubic"
# <linux/tcp.h>: struct tcp_info, tcpi_bytes_received
_INFO_SIZE = 232
_BYTES_RECEIVED = 128


class Link:
    """Two connected stream sockets: `near` at the source, `far` at the destination."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far

    def close(self) -> None:
        """Close both ends here; processes that were given one keep it."""
        self.near.close()
        self.far.close()

    def received(self) -> int:
        """Return how many bytes have arrived at the far end (0 for a pair, which counts none)."""
        return bytes_received(self.far)


def pair() -> Link:
    """Make a link that is no network."""
    return Link(*socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))


def connect(source: Host, destination: Host) -> Link:
    """Connect two hosts over their management addresses."""
    here, there = management(source), management(destination)
    try:
        with in_netns(
            destination.management_place, lambda: socket.create_server((str(there), 0), backlog=1)
        ) as listener:
            listener.settimeout(CONNECT_TIMEOUT)
            near = in_netns(
                source.management_place,
                lambda: socket.create_connection(listener.getsockname()[:2], CONNECT_TIMEOUT, (str(here), 0)),
            )
            try:
                far, _ = listener.accept()
            except OSError:
                near.close()
                raise
    except OSError as ex:
        raise MigrationError(
            f"no connection over the management link from {source.name} ({here}) to {destination.name} ({there}): {ex}"
        ) from ex
    for end in (near, far):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # BBR, the default of some machines, sets out slowly and paces; this link has no queues to spare.
        with contextlib.suppress(OSError):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL)
    return Link(near, far)


def enlarge(end: socket.socket) -> None:
    """Let a send buffer take as many requests as a program can have threads, as far as that is permitted."""
    try:
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, REQUESTS)
    except PermissionError:  # it takes CAP_NET_ADMIN
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUESTS)


def management(host: Host) -> IPv4Address:
    """Return a host's management address, which a plan has made sure of."""
    assert host.management is not None
    return host.management


def bandwidth(host: Host) -> float | None:
    """Return to how many bytes a second a token bucket limits what a host sends over its link; None for no limit."""
    return in_netns(host.management_place, lambda: _bucket(str(management(host))))


def _bucket(address: str) -> float | None:
    with IPRoute() as ip:
        for interface in ip.get_addr(address=address):
            for queue in ip.get_qdiscs(index=interface["index"]):
                if queue.get_attr("TCA_KIND") == "tbf":
                    return float(queue.get_nested("TCA_OPTIONS", "TCA_TBF_PARMS")["rate"])
    return None


def uncork(end: socket.socket) -> None:
    """Push what a corked connection keeps back; a socket pair has no cork."""
    if end.family == socket.AF_INET:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


@contextlib.contextmanager
def uncorked(end: socket.socket) -> Iterator[None]:
    """While the block runs, take the cork off a connection as soon as CRIU has put it on.

    CRIU corks its connection to a page server and forgets to push its last command, which then waits for the
    kernel's 200 ms, within the freeze.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(UNCORK_POLL):
            if end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK):
                uncork(end)
                return

    thread = threading.Thread(target=watch, name="uncork", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def bytes_received(end: socket.socket) -> int:
    """Return what TCP has received on a connection since it began."""
    if end.family != socket.AF_INET:
        return 0
    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    return int(struct.unpack_from("=Q", info, _BYTES_RECEIVED)[0])
