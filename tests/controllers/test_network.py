"""The controller on the real switch, with real TCP connections between namespaces."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from controllers.controller import Controller, ControllerConfig, ServiceConfig
from controllers.loadbalancer import BalancerOptions
from controllers.pins import IdleLimits
from controllers.switchqueues import HOLD_QUEUES
from migration.steering import Move, MovedListener
from tests.controllers.conftest import VIP, eventually, tcp
from tests.controllers.network import Network, inside, network
from tests.controllers.traffic import Clients, Servers

pytestmark = pytest.mark.net

_VIP = (str(VIP.address), VIP.port)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Build the network once."""
    with network(tmp_path_factory.mktemp("network")) as built:
        yield built


def config_of(net: Network, poll: float = 60.0) -> ControllerConfig:
    """Return a controller's configuration."""
    options = BalancerOptions(poll=poll, idle=IdleLimits(after_fin=1.0, after_rst=0.2))
    return ControllerConfig([net.switch], [ServiceConfig("echo", VIP)], http_port=None, balancer=options)


@pytest.fixture
def controller(net: Network) -> Iterator[Controller]:
    """Run a controller on the switch; its tables are emptied at the end."""
    running = Controller(config_of(net), net.hosts)
    running.start(15)
    yield running
    static = {row.key for row in net.switch.rows}
    running.call(running.balancer.write((), [key for key in running.balancer.table if key not in static]))
    running.stop()


def test_a_thousand_connections_survive_every_change_of_the_pool(
    net: Network, controller: Controller
) -> None:
    """Adding, weighting, draining and removing backends breaks none, nor those that open meanwhile."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    controller.add_backend("echo", tcp("10.0.3.3"))
    with Servers(net, ["h2", "h3", "h4"]), Clients(net, "h1", _VIP) as clients:
        clients.open(1000)
        opener = threading.Thread(target=clients.open, args=(300,))
        opener.start()
        controller.add_backend("echo", tcp("10.0.4.4"))
        controller.set_weight("echo", tcp("10.0.4.4"), 4)
        controller.remove_backend("echo", tcp("10.0.2.2"), drain=True)
        controller.remove_backend("echo", tcp("10.0.3.3"))
        controller.add_backend("echo", tcp("10.0.3.3"))
        controller.add_backend("echo", tcp("10.0.2.2"))
        opener.join(30)
        assert not opener.is_alive()
        before = [talk.answers for talk in clients.talks]
        eventually(
            lambda: all(t.answers > n for t, n in zip(clients.talks, before, strict=True)),
            "answering all",
            10,
        )
        assert clients.broken() == []
        assert len(clients.talks) == 1300
        assert {server for talk in clients.talks for server in talk.servers} == {2, 3, 4}
        eventually(lambda: len(controller.balancer.pins) == 1300, "pinning all")
        assert clients.retransmits() == 0


def test_a_backend_by_its_own_address(net: Network, controller: Controller) -> None:
    """It answers from there, while it serves the VIP as well.

    (Not for the same client port at a time: the backend would see two connections with the same addresses.)
    """
    controller.add_backend("echo", tcp("10.0.2.2"))
    with (
        Servers(net, ["h2"]),
        Clients(net, "h1", ("10.0.2.2", 7000)) as direct,
        Clients(net, "h4", _VIP) as served,
    ):
        direct.open(20)
        served.open(20)
        eventually(lambda: all(t.answers > 10 for t in direct.talks + served.talks), "talking")
        assert direct.broken() + served.broken() == []
        pinned = {(c["source"], c["destination"]) for c in controller.connections()}
        for talk in direct.talks + served.talks:
            own, peer = talk.socket.getsockname(), talk.socket.getpeername()
            assert (f"{own[0]}:{own[1]}", f"{peer[0]}:{peer[1]}") in pinned


@pytest.mark.parametrize("in_switch", [True, False], ids=["switch", "controller"])
def test_a_hold_is_airtight_and_loses_nothing(net: Network, controller: Controller, in_switch: bool) -> None:
    """While it stands nothing arrives; when it ends, nothing is missing and nothing had to be sent again.

    Held packets wait in the switch, or, as with one that cannot do that, at the controller.
    """
    assert controller.balancer.queues.offered
    controller.balancer.queues.offered = in_switch
    controller.add_backend("echo", tcp("10.0.2.2"))
    move = Move("m1", "h2", "h3", [MovedListener(tcp("10.0.2.2"), tcp("10.0.3.3"))])
    with Servers(net, ["h2"]), Clients(net, "h1", _VIP) as clients:
        clients.open(64)
        held = 0
        for _ in range(10):
            controller.steering.prepare(move)
            controller.steering.hold(move)
            tap = inside(net.hosts["h2"].pid, _tcp_tap)
            eventually(lambda: waiting(controller), "holding", 2)
            with tap:
                tap.settimeout(0.03)
                with pytest.raises(TimeoutError):
                    while _is_reply(tap.recvfrom(65536)[0]):
                        pass
                    pytest.fail("a packet arrived during the hold")
            controller.steering.switch_back(move)
            stats = controller.steering.release(move)
            held += stats.packets
            assert stats.dropped == 0
        eventually(lambda: all(talk.answers > 100 for talk in clients.talks), "talking")
        assert held > 64
        assert clients.broken() == []
        assert clients.retransmits() == 0


def test_a_thousand_connections_are_held(net: Network, controller: Controller) -> None:
    """Every one of them has a packet that waits, none is lost, and none comes before an earlier one of its flow."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    move = Move("m1", "h2", "h3", [MovedListener(tcp("10.0.2.2"), tcp("10.0.3.3"))])
    with Servers(net, ["h2"]), Clients(net, "h1", _VIP) as clients:
        clients.open(1000)
        for _ in range(3):
            controller.steering.prepare(move)
            controller.steering.hold(move)
            # Each waits for its request's way on, or, if the server was quicker than the hold, for its answer's.
            eventually(lambda: held(controller) >= 1000, "holding all", 20)
            controller.steering.switch_back(move)
            stats = controller.steering.release(move)
            assert stats.packets >= 1000
            assert stats.dropped == 0
        before = [talk.answers for talk in clients.talks]
        eventually(
            lambda: all(t.answers > n for t, n in zip(clients.talks, before, strict=True)), "answers", 10
        )
        assert clients.broken() == []


def held(controller: Controller) -> float:
    """Return how many packets holds have kept."""
    found = controller.call(controller.balancer.link.read_externs([HOLD_QUEUES]))
    here = [*controller.balancer.receiver.holds.values(), *controller.balancer.receiver.sent.values()]
    return sum(queue.packets for queue in here) + sum(float(fields["packets"]) for _, fields in found)


def waiting(controller: Controller) -> float:
    """Return the bytes that wait in the switch's hold queues, and at the controller."""
    found = controller.call(controller.balancer.link.read_externs([HOLD_QUEUES]))
    here = sum(queue.size for queue in controller.balancer.receiver.holds.values())
    return here + sum(float(fields["waiting"]) for _, fields in found)


def _tcp_tap() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))


def _is_reply(packet: bytes) -> bool:
    """Say whether a packet at the server is not one for it."""
    return packet[16:20] != IPv4Address("10.0.2.2").packed


def test_a_bulk_stream_is_held_whole(net: Network, controller: Controller) -> None:
    """GSO packets come out as they went in."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    listener = net.tcp("h2")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 7000))
    listener.listen()
    size = 400 * 1024 * 1024
    client = net.tcp("h1")
    client.settimeout(20)
    client.connect(_VIP)
    server, _ = listener.accept()
    server.settimeout(20)
    received = 0

    def read() -> None:
        nonlocal received
        while data := server.recv(1 << 20):
            received += len(data)

    def write() -> None:
        block = bytes(1 << 20)
        for _ in range(size >> 20):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=work) for work in (read, write)]
    for thread in threads:
        thread.start()
    move = Move("m1", "h2", "h3", [MovedListener(tcp("10.0.2.2"), tcp("10.0.3.3"))])
    dropped = held = 0
    for _ in range(5):
        controller.steering.prepare(move)
        controller.steering.hold(move)
        controller.steering.switch_back(move)
        stats = controller.steering.release(move)
        held, dropped = held + stats.bytes, dropped + stats.dropped
    for thread in threads:
        thread.join(30)
    for connection in (client, server, listener):
        connection.close()
    assert (received, dropped) == (size, 0)
    assert held > 0


def test_connections_outlive_the_controller(net: Network) -> None:
    """A new one takes over services, backends and pins, and goes on changing the pool."""
    first = Controller(config_of(net), net.hosts)
    first.start(15)
    first.add_backend("echo", tcp("10.0.2.2"))
    with Servers(net, ["h2", "h3"]), Clients(net, "h1", _VIP) as clients:
        clients.open(100)
        eventually(lambda: len(first.balancer.pins) == 100, "pinning")
        first.stop()
        second = Controller(config_of(net, poll=0.1), net.hosts)
        second.start(15)
        try:
            assert len(second.balancer.pins) == 100
            second.add_backend("echo", tcp("10.0.3.3"))
            second.remove_backend("echo", tcp("10.0.2.2"))
            before = [talk.answers for talk in clients.talks]
            eventually(
                lambda: all(t.answers > n for t, n in zip(clients.talks, before, strict=True)), "answering"
            )
            assert clients.broken() == []
            clients.stop()
            eventually(lambda: [n["ipv4"] for n in second.backends()] == ["10.0.3.3"], "forgetting h2")
            eventually(lambda: len(second.balancer.pins) == 0, "forgetting the connections", 10)
            eventually(lambda: len(second.balancer.model.backends) == 1, "reclaiming")
        finally:
            static = {row.key for row in net.switch.rows}
            second.call(second.balancer.write((), [k for k in second.balancer.table if k not in static]))
            second.stop()
