"""A network namespace for one test: ports for an engine, and the far ends of their cables.

The test process itself moves into a new namespace, so nothing is left when it moves back, whatever happened.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: int) -> None:
    if getattr(_libc, name)(*args):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@contextmanager
def own_namespace() -> Iterator[None]:
    """Run in a new network namespace without IPv6 chatter."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _call("unshare", _CLONE_NEWNET)
        for kind in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{kind}/disable_ipv6").write_text("1")
        yield
    finally:
        _call("setns", before, _CLONE_NEWNET)
        os.close(before)


class Cable:
    """A veth pair: `port` is the switch's end, `host` the other, which is spoken raw."""

    def __init__(self, number: int) -> None:
        self.port, self.host = f"sw{number}", f"h{number}"
        with IPRoute() as ip:
            ip.link("add", ifname=self.port, kind="veth", peer={"ifname": self.host})
            for name in (self.port, self.host):
                index = ip.link_lookup(ifname=name)[0]
                ip.link("set", index=index, state="up", arp=False)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self.socket.bind((self.host, _ETH_P_ALL))

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)

    def receive(self, timeout: float = 2.0) -> bytes | None:
        """Return the next frame that the switch sent, None if there is none in time."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                frame, address = self.socket.recvfrom(1 << 18)
            except TimeoutError:
                return None
            if address[2] != socket.PACKET_OUTGOING:
                return frame
        return None

    def close(self) -> None:
        self.socket.close()


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 5.0) -> None:
    """Wait until a condition holds; fail with what was awaited."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout} s")
        time.sleep(0.002)


class Host:
    """A namespace with the far end of a cable in it: a real TCP/IP stack."""

    def __init__(self, cable: Cable, address: str, mac: str, neighbours: dict[str, str]) -> None:
        cable.close()
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call("unshare", _CLONE_NEWNET)
            self.namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        finally:
            _call("setns", here, _CLONE_NEWNET)
            os.close(here)
        with IPRoute() as ip:
            index = ip.link_lookup(ifname=cable.host)[0]
            ip.link("set", index=index, address=mac, arp=True)
            ip.link("set", index=index, net_ns_fd=self.namespace)
        with self.inside(), IPRoute() as ip:
            index = ip.link_lookup(ifname=cable.host)[0]
            ip.addr("add", index=index, address=address, prefixlen=16)
            for name in ("lo", cable.host):
                ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")
            for neighbour, lladdr in neighbours.items():
                ip.neigh("add", dst=neighbour, lladdr=lladdr, ifindex=index, state=0x80)  # NUD_PERMANENT

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Make what this thread opens belong to the host."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call("setns", self.namespace, _CLONE_NEWNET)
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
            os.close(before)

    def never_wait_for_acknowledgements(self, peer: str) -> None:
        """Let connections to a peer begin with a congestion window that they will not fill."""
        with self.inside(), IPRoute() as ip:
            index = ip.get_links(kind="veth")[0]["index"]
            ip.route("add", dst=f"{peer}/32", oif=index, scope="link", metrics={"initcwnd": 1000})

    def close(self) -> None:
        os.close(self.namespace)
