"""Datagrams on hold, on the real switch: let go as a real receiver takes them, and counted where it does not."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from controllers.controller import Controller
from migration.diag import Diag
from migration.namespaces import in_netns
from migration.receivers import DatagramSockets
from migration.steering import Endpoint, IpProtocol, Move, MovedListener
from tests.controllers.network import Network
from tests.controllers.test_network import controller, net

pytestmark = pytest.mark.net
__all__ = ["controller", "net"]  # fixtures

PORT, SIZE = 7500, 300
END = Endpoint(IpProtocol.UDP, IPv4Address("10.0.2.2"), PORT)
MOVE = Move("m1", "h2", "h2", [MovedListener(END, END)])


@contextmanager
def ends(net: Network) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make a sender in h1 that never waits, and a receiver in h2."""

    def make() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with in_netns(net.hosts["h1"].pid, make) as sender, in_netns(net.hosts["h2"].pid, make) as receiver:
        receiver.bind(("10.0.2.2", PORT))
        receiver.settimeout(2)
        sender.connect(("10.0.2.2", PORT))
        sender.setblocking(False)
        yield sender, receiver


def send(sender: socket.socket, count: int, pause: float = 0) -> None:
    """Send numbered datagrams."""
    for number in range(count):
        sender.send(struct.pack("!I", number).ljust(SIZE, b"x"))
        time.sleep(pause)


@pytest.mark.parametrize("in_switch", [True, False], ids=["switch", "controller"])
def test_a_receiver_that_reads_loses_nothing(net: Network, controller: Controller, in_switch: bool) -> None:
    """Many times what fits into its buffer arrives whole and in order, wherever it has waited."""
    assert controller.balancer.queues.offered
    controller.balancer.queues.offered = in_switch
    count = 2500
    with ends(net) as (sender, receiver), Diag(net.hosts["h2"].pid) as diag:
        assert count * 768 > 4 * receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        controller.steering.prepare(MOVE)
        controller.steering.hold(MOVE)
        # At the controller a packet takes a while, and the ring to it has its limits.
        send(sender, count, 0 if in_switch else 0.001)
        found: list[int] = []

        def read() -> None:
            while len(found) < count:
                found.append(int.from_bytes(receiver.recv(2048)[:4], "big"))
                time.sleep(0.0001)  # a release without pauses would be faster than that

        receivers = DatagramSockets(diag, {PORT})
        reader = threading.Thread(target=read)
        reader.start()
        held = controller.steering.release(MOVE, receivers)
        reader.join(20)
        controller.steering.finish(MOVE)
        assert receivers.drops() == 0
        assert (held.packets, held.dropped) == (count, 0)
        assert found == list(range(count))


def test_a_receiver_that_does_not_read(net: Network, controller: Controller) -> None:
    """It is not waited for, and what its buffer had no room for is counted; the rest is there to be read."""
    count = 1500
    with ends(net) as (sender, receiver), Diag(net.hosts["h2"].pid) as diag:
        controller.steering.prepare(MOVE)
        controller.steering.hold(MOVE)
        send(sender, count)
        receivers = DatagramSockets(diag, {PORT})
        begin = time.monotonic()
        assert controller.steering.release(MOVE, receivers).packets == count
        assert time.monotonic() - begin < 5
        controller.steering.finish(MOVE)
        dropped = receivers.drops()
        assert 0 < dropped < count
        for number in range(count - dropped):
            assert int.from_bytes(receiver.recv(2048)[:4], "big") == number


def test_a_connection_is_let_go_in_one_batch(net: Network, controller: Controller) -> None:
    """A move without datagrams is released as one with them that nobody receives: nothing is read, nothing paced."""
    with Diag(net.hosts["h2"].pid) as diag:
        nobody = DatagramSockets(diag, {PORT})
        assert nobody.room() is None
        assert nobody.drops() == 0
        controller.steering.prepare(MOVE)
        controller.steering.hold(MOVE)
        begin = time.monotonic()
        controller.steering.release(MOVE, nobody)
        assert time.monotonic() - begin < 1
        controller.steering.finish(MOVE)


def test_rooms_and_drops_are_those_of_the_kernel(net: Network) -> None:
    """As getsockopt(SO_MEMINFO) says; ports of others do not count."""
    with ends(net) as (sender, receiver), Diag(net.hosts["h2"].pid) as diag:
        limit = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        receivers = DatagramSockets(diag, {PORT})
        assert receivers.room() == limit
        assert DatagramSockets(diag, {PORT + 1}).room() is None
        sender.send(b"x" * SIZE)
        deadline = time.monotonic() + 5
        while receivers.room() == limit and time.monotonic() < deadline:
            time.sleep(0.001)
        memory = struct.unpack("=9I", receiver.getsockopt(socket.SOL_SOCKET, 55, 36))
        assert receivers.room() == limit - memory[0] < limit
        send(sender, 2000)
        while receivers.drops() == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert receivers.room() == 0
        assert receivers.drops() > 0
