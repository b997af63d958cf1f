"""Both ends of one connection on the move at the same time, their steps interleaved in any way.

A packet may then meet two holds, one after the other, and come out of the second when the first move has long
forgotten where it was sent from. Packets carry their number as their length, so what comes out tells who got what.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.controller import Controller
from migration.steering import Endpoint, Move, MovedConnection, MovedListener, Spoken
from tests.controllers.conftest import VIP, controller_config, eventually, tcp
from tests.controllers.model_switch import ACK, SYN, ModelSwitch, frame, served
from tests.controllers.program import write_program
from tests.controllers.test_controller import flat
from tests.controllers.test_steering import HOSTS, AtOnce, migrate, rows_of

STEPS = ("prepare", "hold", "freeze", "switch_over", "release", "finish")
CLIENT = tcp("10.0.1.1", 20001)  # its identity
_VIP = (int(VIP.address), VIP.port)
HEADERS = 54


class End:
    """One end of the connection: where it is, what it has sent, and its move."""

    def __init__(self, name: str, here: Endpoint, there: Endpoint, peer: Endpoint, listens: bool) -> None:
        self.name, self.here, self.there, self.peer, self.listens = name, here, there, peer, listens
        self.sent = 0
        self.steps: list[str] = []
        self.is_frozen = False

    def move(self) -> Move:
        """Describe the move, with what the image knows to be sent."""
        hosts = [f"h{int(end.address) & 0xFF}" for end in (self.here, self.there)]
        listeners = [MovedListener(self.here, self.there)] if self.listens else []
        connection = MovedConnection(self.here, self.there, self.peer, sent=Spoken(self.sent))
        return Move(self.name, *hosts, listeners, [connection])


class Scene:
    """A client that has moved before, a server behind a VIP, and the switch between them."""

    def __init__(self, controller: Controller, switch: ModelSwitch) -> None:
        self.controller, self.switch = controller, switch
        controller.add_backend("echo", tcp("10.0.2.2"))
        switch.inject(frame(6, flat("10.0.1.1", 20001), _VIP, SYN))
        eventually(lambda: len(controller.connections()) == 1, "pinning")
        first = [MovedConnection(CLIENT, tcp("10.0.4.4", 20001), VIP)]
        migrate(controller, Move("m0", "h1", "h4", [], first))
        switch.taken()
        self.client = End("client", tcp("10.0.4.4", 20001), tcp("10.0.5.5", 20001), VIP, listens=False)
        self.server = End("server", tcp("10.0.2.2"), tcp("10.0.3.3"), CLIENT, listens=True)

    def send(self, end: End, beyond: bool = False) -> None:
        """Let an end send its next packet; `beyond`: a frozen one's kernel, of what the image counts as unsent."""
        number = end.sent + 1
        source, peer = ((int(e.address), e.port) for e in (end.here, end.peer))
        self.switch.inject(frame(6, source, peer, ACK, b"x" * number))
        if not beyond:
            end.sent = number

    def step(self, end: End, step: str) -> None:
        """Do one step of an end's move, as a transaction would."""
        steering = self.controller.steering
        if step == "freeze":
            self.controller.call(self.controller.balancer.link.barrier())
            end.is_frozen = True
            steering.extend(end.move())
        else:
            getattr(steering, step)(end.move())
        if step == "release":
            end.is_frozen = False
        end.steps.append(step)
        if step == "finish":
            end.here, end.there = end.there, end.here

    def go_back(self, end: End) -> None:
        """Undo an end's move; what its frozen kernel has sent beyond the image counts as sent again."""
        self.controller.steering.switch_back(end.move())
        self.controller.steering.release(end.move())
        end.is_frozen = False

    def received(self) -> dict[tuple[int, int], list[int]]:
        """Return the numbers of the packets that came out, by the identity of their sender."""
        self.controller.call(self.controller.balancer.link.barrier())
        found: dict[tuple[int, int], list[int]] = {flat("10.0.1.1", 20001): [], _VIP: []}
        out, self.switch.running.out[:] = list(self.switch.running.out), []
        for port, body in out:
            src, dst, src_port, _ = struct.unpack_from("!IIHH", body, 26)
            assert port == dst >> 8 & 0xFF
            found[src, src_port].append(len(body) - HEADERS)
        return found


@contextmanager
def scene(offers_queues: bool) -> Iterator[Scene]:
    """Run a controller and its switch for one example; held packets wait in the switch or at the controller."""
    with tempfile.TemporaryDirectory() as folder, served(offers_queues=offers_queues) as switch:
        config = controller_config(write_program(Path(folder)), switch.address)
        controller = Controller(config, HOSTS, drainer=AtOnce())
        controller.start(10)
        try:
            yield Scene(controller, switch)
        finally:
            controller.stop()


@st.composite
def interleavings(draw: st.DrawFn) -> list[tuple[bool, str]]:
    """Draw an order of the steps of two moves: (whether it is the client's, the step)."""
    left = {True: list(STEPS), False: list(STEPS)}
    order: list[tuple[bool, str]] = []
    while left[True] or left[False]:
        who = draw(st.booleans()) if left[True] and left[False] else bool(left[True])
        order.append((who, left[who].pop(0)))
    return order


@settings(max_examples=40, deadline=None)
@given(
    order=interleavings(),
    goes_back=st.sampled_from([None, True, False]),
    late=st.booleans(),
    queues=st.booleans(),
)
def test_every_packet_arrives_once_and_in_order(
    order: list[tuple[bool, str]], goes_back: bool | None, late: bool, queues: bool
) -> None:
    """Whatever the order of the steps, and whether one of the two is rolled back after its switch-over."""
    with scene(queues) as stage:
        ends = {True: stage.client, False: stage.server}
        undone: set[bool] = set()
        for who, step in order:
            end = ends[who]
            if who in undone:
                continue
            if who == goes_back and step == "release":
                stage.go_back(end)
                undone.add(who)
            else:
                stage.step(end, step)
            for other in ends.values():
                if not other.is_frozen and not ("release" in other.steps and "finish" not in other.steps):
                    stage.send(other)
                elif late and other.is_frozen and "switch_over" not in other.steps and other is end:
                    # The copy sends these bytes again; a source that goes on has sent them.
                    stage.send(other, beyond=ends[goes_back] is not other if goes_back is not None else True)
        received = stage.received()
        assert received[flat("10.0.1.1", 20001)] == list(range(1, stage.client.sent + 1))
        assert received[_VIP] == list(range(1, stage.server.sent + 1))
        assert stage.controller.steering._moves == {}
        assert stage.controller.steering._left == set()
        tables = rows_of(stage.switch)
        assert isinstance(tables, dict)
        for table in ("hold", "hold_source", "holding", "holding_source"):
            assert not tables[f"Ingress.{table}"]
        assert not stage.controller.balancer.queues.holds
        locations = {key[0][1].value for key in tables["Ingress.endpoint_source"]}
        assert locations == {int(stage.server.here.address)}


@pytest.mark.parametrize("client_first", [True, False])
def test_a_packet_outlives_the_place_that_it_was_sent_from(client_first: bool, offers_queues: bool) -> None:
    """One end moves completely while the other, a large program, still holds what the first one has sent."""
    with scene(offers_queues) as stage:
        quick, slow = (stage.client, stage.server) if client_first else (stage.server, stage.client)
        for step in ("prepare", "hold"):
            stage.step(slow, step)
        stage.send(quick)
        for step in STEPS:
            stage.step(quick, step)
        assert stage.controller.steering._left
        for step in STEPS[2:]:
            stage.step(slow, step)
        assert stage.controller.steering._left == set()
        identity = flat("10.0.1.1", 20001) if client_first else _VIP
        assert stage.received()[identity] == [1]
        locations = {int(end.here.address) for end in (stage.client, stage.server)}
        speaking = {
            key[0][1].value
            for table in ("connection_source", "endpoint_source")
            for key in stage.switch.running.tables[f"Ingress.{table}"]
        }
        assert speaking == locations
