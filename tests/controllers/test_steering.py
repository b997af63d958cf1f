"""A migration's steering on a model switch: every kind of endpoint, forth and back, held and let go."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from controllers.controller import Controller
from controllers.drain import Begin
from controllers.errors import Conflict
from controllers.hosts import Host
from controllers.switchlink import OP_RESUME, Packets, SwitchLink
from migration.steering import IpProtocol, Move, MovedConnection, MovedListener, Spoken, SteeringError
from tests.controllers.conftest import VIP, controller_config, eventually, tcp
from tests.controllers.model_switch import ACK, SYN, ModelSwitch, frame, served
from tests.controllers.test_controller import client, flat

_VIP = (int(VIP.address), VIP.port)
OLD, NEW = tcp("10.0.2.2"), tcp("10.0.3.3")


class AtOnce:
    """A drainer for a switch from which packets go nowhere: all have arrived at once."""

    def __init__(self) -> None:
        self.drained: list[str] = []
        self.distance = 0.0
        self.arrives: Callable[[Host], Awaitable[None]] | None = None

    async def drain(
        self,
        host: Host,
        link: SwitchLink,
        hold: int,
        crossed: Callable[[], None] = lambda: None,
        begin: Begin | None = None,
    ) -> None:
        """Wait for the switch only."""
        if begin is not None:
            await begin(Packets(OP_RESUME, hold, []))
        await link.barrier()
        if self.arrives is not None:
            await self.arrives(host)
        crossed()
        self.drained.append(host.name)

    async def measure(self, host: Host, link: SwitchLink, hold: int) -> float:
        """Tell a time in which a packet is at the host."""
        return self.distance

    def close(self, host: str | None = None) -> None:
        """Nothing to close."""


pytestmark = pytest.mark.usefixtures("offers_queues")

HOSTS = {
    f"h{n}": Host(f"h{n}", 0, IPv4Address(f"10.0.{n}.{n}"), f"08:00:00:00:0{n}:0{n}", "s1", n)
    for n in range(1, 6)
}


@pytest.fixture
def drainer() -> AtOnce:
    """Make the controller's drainer."""
    return AtOnce()


@pytest.fixture
def controller(program: tuple[Path, Path], switch: ModelSwitch, drainer: AtOnce) -> Iterator[Controller]:
    """Run a controller that knows hosts."""
    running = Controller(controller_config(program, switch.address), HOSTS, drainer=drainer)
    running.start(10)
    yield running
    running.stop()


def send(
    switch: ModelSwitch, source: tuple[int, int], destination: tuple[int, int], flags: int = ACK
) -> object:
    """Let a packet come in; return what goes out: (port, source, destination) of each."""
    switch.inject(frame(6, source, destination, flags))
    return switch.taken()


def rows_of(switch: ModelSwitch) -> object:
    """Return everything in the switch's tables."""
    return {name: dict(rows) for name, rows in switch.running.tables.items()}


def migrate(controller: Controller, move: Move) -> None:
    """Do all steps of a migration that works."""
    steering = controller.steering
    for step in (
        steering.prepare,
        steering.hold,
        steering.extend,
        steering.switch_over,
        steering.release,
        steering.finish,
    ):
        step(move)


def vip_move(name: str, old: str, new: str, connections: list[MovedConnection] | None = None) -> Move:
    """Return the move of a listener on port 7000."""
    return Move(name, "h2", "h3", [MovedListener(tcp(old), tcp(new))], connections or [])


def test_a_server_behind_a_vip_moves_and_comes_home(controller: Controller, switch: ModelSwitch) -> None:
    """Its connections follow; when it is back, the rows are those of the beginning."""
    controller.add_backend("echo", OLD)
    send(switch, client(1), _VIP, SYN)
    eventually(lambda: len(controller.connections()) == 1, "pinning")
    before = rows_of(switch)
    connection = [MovedConnection(OLD, NEW, tcp("10.0.1.1", 20001))]
    migrate(controller, vip_move("m1", "10.0.2.2", "10.0.3.3", connection))
    assert send(switch, client(1), _VIP) == [(3, client(1), flat("10.0.3.3"))]
    assert send(switch, flat("10.0.3.3"), client(1)) == [(1, _VIP, client(1))]
    assert controller.backends()[0]["ipv4"] == "10.0.3.3"
    back = [MovedConnection(NEW, OLD, tcp("10.0.1.1", 20001))]
    migrate(controller, vip_move("m2", "10.0.3.3", "10.0.2.2", back))
    assert rows_of(switch) == before


def test_packets_wait_while_nobody_is_there(controller: Controller, switch: ModelSwitch) -> None:
    """Held packets come out in order at the new place, and are counted."""
    controller.add_backend("echo", OLD)
    move = vip_move("m1", "10.0.2.2", "10.0.3.3")
    controller.steering.prepare(move)
    controller.steering.hold(move)
    for number in range(50):
        assert send(switch, client(number), _VIP, SYN) == []
    controller.steering.switch_over(move)
    stats = controller.steering.release(move)
    controller.steering.finish(move)
    assert (stats.packets, stats.bytes, stats.dropped) == (50, 50 * 54, 0)
    assert [source for _, source, _ in switch.taken()] == [client(number) for number in range(50)]
    assert not switch.running.tables["Ingress.hold"]
    assert controller.steering._moves == {}


def test_the_two_halves_of_a_hold(controller: Controller, switch: ModelSwitch, drainer: AtOnce) -> None:
    """Packets are kept as soon as it has started; each start is waited for once, also after a release."""
    controller.add_backend("echo", OLD)
    move = vip_move("m1", "10.0.2.2", "10.0.3.3")
    for number in (1, 2):
        controller.steering.start_hold(move)
        assert send(switch, client(1), _VIP, SYN) == []
        assert len(drainer.drained) == number - 1
        controller.steering.drained(move)
        controller.steering.drained(move)
        assert len(drainer.drained) == number
        controller.steering.release(move)
        assert len(switch.taken()) == 1


def test_a_hold_has_a_budget(program: tuple[Path, Path], switch: ModelSwitch) -> None:
    """What does not fit is dropped and counted."""
    config = controller_config(program, switch.address)
    object.__setattr__(config.balancer, "hold_budget", 10 * 54)
    controller = Controller(config, HOSTS, drainer=AtOnce())
    controller.start(10)
    try:
        controller.add_backend("echo", OLD)
        move = vip_move("m1", "10.0.2.2", "10.0.3.3")
        controller.steering.hold(move)
        for number in range(15):
            send(switch, client(number), _VIP, SYN)
        stats = controller.steering.release(move)
        assert (stats.packets, stats.dropped) == (10, 5)
        assert len(switch.taken()) == 10
    finally:
        controller.stop()


def test_a_server_addressed_directly(controller: Controller, switch: ModelSwitch) -> None:
    """Its identity is sent on; whoever calls its new address is answered from there."""
    peer = tcp("10.0.1.1", 20001)
    before = rows_of(switch)
    migrate(controller, vip_move("m1", "10.0.2.2", "10.0.3.3", [MovedConnection(OLD, NEW, peer)]))
    assert send(switch, client(1), flat("10.0.2.2")) == [(3, client(1), flat("10.0.3.3"))]
    assert send(switch, flat("10.0.3.3"), client(1)) == [(1, flat("10.0.2.2"), client(1))]
    assert send(switch, client(2), flat("10.0.2.2"), SYN) == [(3, client(2), flat("10.0.3.3"))]
    switch.inject(frame(6, client(3), flat("10.0.3.3"), SYN))
    eventually(lambda: switch.running.out, "opening to the new address")
    assert switch.taken() == [(3, client(3), flat("10.0.3.3"))]
    assert send(switch, flat("10.0.3.3"), client(3)) == [(1, flat("10.0.3.3"), client(3))]
    both = [
        MovedConnection(NEW, tcp("10.0.4.4"), peer),
        MovedConnection(NEW, tcp("10.0.4.4"), tcp("10.0.1.1", 20003)),
    ]
    migrate(controller, vip_move("m2", "10.0.3.3", "10.0.4.4", both))
    assert send(switch, client(1), flat("10.0.2.2")) == [(4, client(1), flat("10.0.4.4"))]
    assert send(switch, client(3), flat("10.0.3.3")) == [(4, client(3), flat("10.0.4.4"))]
    assert send(switch, flat("10.0.4.4"), client(3)) == [(1, flat("10.0.3.3"), client(3))]
    home = [MovedConnection(tcp("10.0.4.4"), OLD, peer)]
    migrate(controller, vip_move("m3", "10.0.4.4", "10.0.2.2", home))
    assert send(switch, client(1), flat("10.0.2.2")) == [(2, client(1), flat("10.0.2.2"))]
    left = {name: rows for name, rows in rows_of(switch).items() if rows != before[name]}  # type: ignore[attr-defined,index]
    assert set(left) == {"Ingress.connection", "Ingress.connection_source"}  # the connection of client 3


def test_a_moved_programs_identity_is_free_when_it_has_ended(
    controller: Controller, switch: ModelSwitch
) -> None:
    """Another program may then live there."""
    before = rows_of(switch)
    migrate(controller, vip_move("m1", "10.0.2.2", "10.0.3.3"))
    controller.forget(tcp("10.0.3.3"))
    controller.forget(tcp("10.0.3.3"))
    assert rows_of(switch) == before
    controller.add_backend("echo", OLD)
    with pytest.raises(Conflict, match="is a backend: remove it from its service"):
        controller.forget(OLD)


def test_a_client_moves_with_its_connection(controller: Controller, switch: ModelSwitch) -> None:
    """The service sees the same peer as before, and answers reach it at its new place."""
    controller.add_backend("echo", OLD)
    producer, moved = tcp("10.0.4.4", 40000), tcp("10.0.5.5", 40000)
    send(switch, flat("10.0.4.4", 40000), _VIP, SYN)
    eventually(lambda: len(controller.connections()) == 1, "pinning")
    before = rows_of(switch)
    migrate(controller, Move("m1", "h4", "h5", [], [MovedConnection(producer, moved, VIP)]))
    assert send(switch, flat("10.0.5.5", 40000), _VIP) == [(2, flat("10.0.4.4", 40000), flat("10.0.2.2"))]
    assert send(switch, flat("10.0.2.2"), flat("10.0.4.4", 40000)) == [(5, _VIP, flat("10.0.5.5", 40000))]
    migrate(controller, Move("m2", "h5", "h4", [], [MovedConnection(moved, producer, VIP)]))
    assert rows_of(switch) == before


def test_both_ends_of_a_connection_move(controller: Controller, switch: ModelSwitch) -> None:
    """Client and server, one after the other, keep their identities."""
    controller.add_backend("echo", OLD)
    producer, moved = tcp("10.0.4.4", 40000), tcp("10.0.5.5", 40000)
    send(switch, flat("10.0.4.4", 40000), _VIP, SYN)
    eventually(lambda: len(controller.connections()) == 1, "pinning")
    migrate(controller, Move("m1", "h4", "h5", [], [MovedConnection(producer, moved, VIP)]))
    migrate(controller, vip_move("m2", "10.0.2.2", "10.0.3.3", [MovedConnection(OLD, NEW, producer)]))
    assert send(switch, flat("10.0.5.5", 40000), _VIP) == [(3, flat("10.0.4.4", 40000), flat("10.0.3.3"))]
    assert send(switch, flat("10.0.3.3"), flat("10.0.4.4", 40000)) == [(5, _VIP, flat("10.0.5.5", 40000))]


def test_a_backends_direct_connections_follow_it(controller: Controller, switch: ModelSwitch) -> None:
    """Who called the backend by its own address keeps talking to that address."""
    controller.add_backend("echo", OLD)
    switch.inject(frame(6, client(7), flat("10.0.2.2"), SYN))
    eventually(lambda: switch.running.out, "opening")
    switch.taken()
    before = rows_of(switch)
    peer = tcp("10.0.1.1", 20007)
    migrate(controller, vip_move("m1", "10.0.2.2", "10.0.3.3", [MovedConnection(OLD, NEW, peer)]))
    assert send(switch, client(7), flat("10.0.2.2")) == [(3, client(7), flat("10.0.3.3"))]
    assert send(switch, flat("10.0.3.3"), client(7)) == [(1, flat("10.0.2.2"), client(7))]
    for address in ("10.0.2.2", "10.0.3.3"):  # both addresses open new connections
        switch.inject(frame(6, client(8), flat(address), SYN))
        eventually(lambda: switch.running.out, "opening")
        assert switch.taken() == [(3, client(8), flat("10.0.3.3"))]
        assert send(switch, flat("10.0.3.3"), client(8)) == [(1, flat(address), client(8))]
        controller.call(
            controller.balancer.pins.remove(
                [k for k in controller.balancer.table if k[0] == "connection" and k[1][2] == 20008]
            )
        )
    migrate(controller, vip_move("m2", "10.0.3.3", "10.0.2.2", [MovedConnection(NEW, OLD, peer)]))
    assert rows_of(switch) == before


@pytest.mark.parametrize(
    "steps", [("prepare",), ("prepare", "hold"), ("prepare", "hold", "extend", "switch_over")]
)
def test_going_back_leaves_no_trace(
    controller: Controller, switch: ModelSwitch, steps: tuple[str, ...]
) -> None:
    """Wherever a migration fails, the rows are those from before, and what was held arrives at the source."""
    controller.add_backend("echo", OLD)
    send(switch, client(1), _VIP, SYN)
    eventually(lambda: len(controller.connections()) == 1, "pinning")
    before = rows_of(switch)
    move = vip_move("m1", "10.0.2.2", "10.0.3.3", [MovedConnection(OLD, NEW, tcp("10.0.1.1", 20001))])
    for step in steps:
        getattr(controller.steering, step)(move)
    held = "hold" in steps
    assert send(switch, client(1), _VIP) == ([] if held else [(2, client(1), flat("10.0.2.2"))])
    controller.steering.switch_back(move)
    controller.steering.switch_back(move)
    assert controller.steering.release(move).packets == int(held)
    assert switch.taken() == ([(2, client(1), flat("10.0.2.2"))] if held else [])
    assert rows_of(switch) == before
    assert controller.backends()[0]["ipv4"] == "10.0.2.2"
    assert controller.steering._moves == {}


def test_a_new_controller_takes_back_what_the_old_one_began(
    program: tuple[Path, Path], switch: ModelSwitch, offers_queues: bool
) -> None:
    """The journal's move is enough to undo it, and what is held comes out."""
    config = controller_config(program, switch.address)
    first = Controller(config, HOSTS, drainer=AtOnce())
    first.start(10)
    first.add_backend("echo", OLD)
    for number in (1, 2):
        send(switch, client(number), _VIP, SYN)
    eventually(lambda: len(first.connections()) == 2, "pinning")
    before = rows_of(switch)
    move = vip_move("m1", "10.0.2.2", "10.0.3.3", [MovedConnection(OLD, NEW, tcp("10.0.1.1", 20001))])
    for step in (first.steering.prepare, first.steering.hold, first.steering.switch_over):
        step(move)
    assert send(switch, client(1), _VIP) == []
    first.stop()
    second = Controller(config, HOSTS, drainer=AtOnce())
    second.start(10)
    try:
        assert send(switch, client(2), _VIP) == []
        if not offers_queues:
            eventually(lambda: second.balancer.receiver.holds, "holding")
        second.steering.switch_back(move)
        # What waited at the first controller has gone with it.
        kept = [client(1), client(2)] if offers_queues else [client(2)]
        assert second.steering.release(move).packets == len(kept)
        assert switch.taken() == [(2, source, flat("10.0.2.2")) for source in kept]
        assert rows_of(switch) == before
    finally:
        second.stop()


def test_a_call_that_the_switchs_end_has_cancelled_is_made_again(
    controller: Controller, drainer: AtOnce
) -> None:
    """grpc.aio cancels the calls of a connection that is gone: who waits for the switch is not told to end by that."""
    attempts: list[str] = []

    async def lose_first(host: Host) -> None:
        attempts.append(host.name)
        if len(attempts) == 1:
            raise asyncio.CancelledError

    drainer.arrives = lose_first
    controller.add_backend("echo", OLD)
    move = vip_move("m1", "10.0.2.2", "10.0.3.3")
    controller.steering.prepare(move)
    if sys.version_info >= (3, 11):
        controller.steering.hold(move)
        assert attempts == ["h2", "h2"]
    else:
        with pytest.raises(SteeringError, match="switch s1 was lost"):
            controller.steering.hold(move)
    controller.steering.release(move)


def test_a_switch_that_is_lost_during_a_hold(program: tuple[Path, Path], offers_queues: bool) -> None:
    """It is told again what it held; what waited at the controller, and what comes from then on, arrives."""
    move = vip_move("m1", "10.0.2.2", "10.0.3.3")
    with served(offers_queues=offers_queues) as switch:
        port = int(switch.address.rpartition(":")[2])
        controller = Controller(controller_config(program, switch.address), HOSTS, drainer=AtOnce())
        controller.start(10)
        controller.add_backend("echo", OLD)
        controller.steering.prepare(move)
        controller.steering.hold(move)
        assert send(switch, client(1), _VIP, SYN) == []
        controller.call(controller.balancer.link.barrier())
    try:
        eventually(lambda: controller.balancer.link.state != "ready", "losing the switch")
        with served(port=port, offers_queues=offers_queues) as switch:
            eventually(lambda: controller.balancer.link.state == "ready", "the switch's return")
            assert send(switch, client(2), _VIP, SYN) == []
            controller.steering.switch_over(move)
            # A real switch's queue outlives its process (tests/dataplane/engine); the model's ends with it.
            kept = [client(2)] if offers_queues else [client(1), client(2)]
            assert controller.steering.release(move).packets == len(kept)
            controller.steering.finish(move)
            assert switch.taken() == [(3, source, flat("10.0.3.3")) for source in kept]
            assert not switch.running.queues() if offers_queues else True
    finally:
        controller.stop()


def test_losses_in_the_switch_are_reported(
    controller: Controller, switch: ModelSwitch, offers_queues: bool
) -> None:
    """Packets that found no room on their way to the controller count as dropped, once; if the switch can tell."""
    controller.add_backend("echo", OLD)
    for lost, said in ((7, 7), (7, 0), (9, 2)):
        controller.steering.hold(move := vip_move("m1", "10.0.2.2", "10.0.3.3"))
        switch.running.lost_packet_ins = lost
        assert controller.steering.release(move).dropped == (said if offers_queues else 0)
        controller.steering.finish(move)


def test_a_hold_can_be_let_go_and_taken_again(controller: Controller, switch: ModelSwitch) -> None:
    """As when a handshake's end was among what was held."""
    controller.add_backend("echo", OLD)
    move = vip_move("m1", "10.0.2.2", "10.0.3.3")
    controller.steering.prepare(move)
    for _ in range(2):
        controller.steering.hold(move)
        assert send(switch, client(1), _VIP, SYN) == []
        controller.steering.release(move)
        assert len(switch.taken()) == 1
    controller.steering.hold(move)
    controller.steering.switch_over(move)
    assert controller.steering.release(move).packets == 2
    controller.steering.finish(move)


def test_a_move_that_ends_before_its_hold_leaves_no_queue(
    controller: Controller, switch: ModelSwitch
) -> None:
    """The queue is there before the hold begins; so it is given back when the hold never comes."""
    controller.add_backend("echo", OLD)
    for move in (vip_move("m1", "10.0.2.2", "10.0.3.3"), Move("m2", "h2", "h3")):
        controller.steering.prepare(move)
        controller.steering.switch_back(move)
        controller.steering.release(move)
        assert not switch.running.offers_queues or switch.running.queues() == {}
        assert not controller.steering._queues.holds


def test_refusals(controller: Controller) -> None:
    """An unknown host and a place that is taken are refused before anything is written."""
    controller.add_backend("echo", OLD)
    controller.add_backend("echo", NEW)
    before = dict(controller.balancer.table)
    with pytest.raises(SteeringError, match=r"10.0.3.3:7000/tcp is already in use"):
        controller.steering.prepare(vip_move("m1", "10.0.2.2", "10.0.3.3"))
    with pytest.raises(SteeringError, match="host 'h9' is not part of the network"):
        controller.steering.prepare(Move("m2", "h9", "h3"))
    assert dict(controller.balancer.table) == before


@pytest.mark.parametrize("distance", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [False, True])
def test_from_when_on_answers_are_kept(
    controller: Controller, switch: ModelSwitch, drainer: AtOnce, distance: float, at_once: bool
) -> None:
    """From the beginning of the hold, if that is wanted and the source near; else behind the marker; always by then."""
    drainer.distance = distance
    answers_before_the_marker: list[int] = []

    async def answer(host: Host) -> None:
        switch.inject(frame(6, flat("10.0.2.2"), client(1), ACK, b"x" * 10))
        answers_before_the_marker.append(len(switch.taken()))

    drainer.arrives = answer
    controller.add_backend("echo", OLD)
    send(switch, client(1), _VIP, SYN)
    eventually(lambda: len(controller.connections()) == 1, "pinning")
    move = vip_move("m1", "10.0.2.2", "10.0.3.3", [MovedConnection(OLD, NEW, tcp("10.0.1.1", 20001))])
    controller.steering.prepare(move)
    controller.steering.hold(move, at_once)
    controller.steering.muted(move)
    assert answers_before_the_marker == [0 if at_once and distance == 0.0 else 1]
    switch.inject(frame(6, flat("10.0.2.2"), client(1), ACK, b"x" * 20))
    assert switch.taken() == []
    controller.steering.release(move)
    kept = 2 if at_once and distance == 0.0 else 1
    eventually(lambda: len(switch.running.out) == kept, "sending on what was kept")


@pytest.mark.parametrize("ends", ["completed", "thawed", "restored", "restored before the switch-over"])
def test_what_a_frozen_source_sends_beyond_its_image(
    controller: Controller, switch: ModelSwitch, ends: str
) -> None:
    """The image's share goes to the peer; the rest only if the original lives on.

    Else who is restored from the image, wherever that is, sends it again.
    """
    controller.add_backend("echo", OLD)
    send(switch, client(1), _VIP, SYN)
    eventually(lambda: len(controller.connections()) == 1, "pinning")
    move = vip_move(
        "m1", "10.0.2.2", "10.0.3.3", [MovedConnection(OLD, NEW, tcp("10.0.1.1", 20001), sent=Spoken(10))]
    )
    controller.steering.prepare(move)
    controller.steering.hold(move)
    controller.steering.muted(move)
    source = flat("10.0.2.2")
    switch.inject(frame(6, source, client(1), ACK, b"x" * 10))
    switch.inject(frame(6, source, client(1), ACK, b"x" * 20))
    assert switch.taken() == []
    eventually(lambda: sum(map(len, controller.balancer.receiver.sent.values())) == 2, "holding what is sent")
    if ends == "restored before the switch-over":
        controller.steering.disown(move)
    else:
        controller.steering.switch_over(move)
    eventually(lambda: len(switch.running.out) == 1, "sending on the image's share")
    assert [len(data) for _, data in switch.running.out] == [64]
    assert switch.taken() == [(1, _VIP, client(1))]
    if ends == "restored":
        controller.steering.disown(move)
    if ends == "completed":
        assert controller.steering.release(move).packets == 2
        controller.steering.finish(move)
        assert switch.taken() == []
    else:
        controller.steering.switch_back(move)
        assert controller.steering.release(move).packets == 2
        assert switch.taken() == ([(1, _VIP, client(1))] if ends == "thawed" else [])
    assert not switch.running.tables["Ingress.hold_source"]
    assert controller.steering._moves == {}


@pytest.mark.parametrize("ends", ["completed", "back", "thawed"])
def test_what_a_source_has_sent_to_itself_waits_for_the_copy(
    controller: Controller, switch: ModelSwitch, ends: str
) -> None:
    """A program that called itself over the switch: nobody is there who knows the connection, until its copy is."""
    from_here = MovedConnection(tcp("10.0.2.2", 40000), tcp("10.0.3.3", 40000), tcp("10.0.1.1"))
    to_here = MovedConnection(OLD, NEW, tcp("10.0.2.2", 40000))
    move = Move("m1", "h2", "h3", [MovedListener(OLD, NEW)], [from_here, to_here])
    # It was somewhere else before, from where it has the name by which it calls itself.
    migrate(controller, Move("m0", "h1", "h2", [MovedListener(tcp("10.0.1.1"), OLD)]))
    steering = controller.steering
    steering.prepare(move)
    steering.hold(move)
    steering.muted(move)
    assert send(switch, flat("10.0.2.2", 40000), flat("10.0.1.1")) == []
    eventually(lambda: sum(map(len, controller.balancer.receiver.sent.values())) == 1, "holding what is sent")
    steering.extend(move)
    if ends != "thawed":
        steering.switch_over(move)
        controller.call(controller.balancer.link.barrier())
        assert switch.taken() == []
    if ends != "completed":
        steering.switch_back(move)
        assert switch.taken() == []
    assert steering.release(move).packets >= 1
    goes = flat("10.0.3.3") if ends == "completed" else flat("10.0.2.2")
    assert switch.taken() == [(3 if ends == "completed" else 2, flat("10.0.2.2", 40000), goes)]
    steering.finish(move)
    assert steering._moves == {}


def test_what_a_udp_program_sends_is_not_held(controller: Controller, switch: ModelSwitch) -> None:
    """No image knows of it, and nothing bounds it: it passes until the program is stopped, also after the switch-over.

    What comes for it is held as ever.
    """
    source, peer = (int(OLD.address), 7000), client(1)
    old, new = replace(OLD, protocol=IpProtocol.UDP), replace(NEW, protocol=IpProtocol.UDP)
    move = Move("m1", "h2", "h3", [MovedListener(old, new), MovedListener(OLD, NEW)])
    steering = controller.steering
    steering.prepare(move)
    steering.hold(move)
    steering.muted(move)

    def passes(protocol: int, source: tuple[int, int], destination: tuple[int, int]) -> bool:
        switch.inject(frame(protocol, source, destination))
        return bool(switch.taken())

    assert passes(17, source, peer)
    assert not passes(6, source, peer)
    assert not passes(17, peer, source)
    steering.switch_over(move)
    assert passes(17, source, peer)
    assert steering.release(move).packets == 2
    steering.finish(move)
    assert controller.steering._moves == {}
