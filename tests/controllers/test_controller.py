"""The controller against a model switch: pools, pins, direct connections, restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from controllers import rows
from controllers.controller import Controller
from controllers.errors import Conflict, NotFound, SwitchNotReady
from dataplane.switch.pipeline import Exact
from migration.steering import Endpoint, IpProtocol
from tests.controllers.conftest import VIP, controller_config, eventually, tcp
from tests.controllers.model_switch import ACK, FIN, RST, SYN, ModelSwitch, frame, served

Address = tuple[int, int]
_VIP = (int(VIP.address), VIP.port)


def flat(address: str, port: int = 7000) -> Address:
    """Return an endpoint as the model's frames have it."""
    endpoint = tcp(address, port)
    return int(endpoint.address), endpoint.port


def client(number: int) -> Address:
    """Return a client's address."""
    return flat("10.0.1.1", 20000 + number)


def open_all(switch: ModelSwitch, controller: Controller, count: int) -> dict[int, Address]:
    """Open connections to the VIP; return where each went."""
    where: dict[int, Address] = {}
    for number in range(count):
        switch.inject(frame(6, client(number), _VIP, SYN))
        where[number] = switch.taken()[0][2]
    eventually(lambda: len(controller.balancer.pins) == count, "pinning every connection")
    return where


def where_now(switch: ModelSwitch, number: int) -> Address:
    """Return where a packet of an established connection goes."""
    switch.inject(frame(6, client(number), _VIP, ACK))
    ((_, source, destination),) = switch.taken()
    assert source == client(number)
    return destination


def test_starts_and_shows_its_switch(controller: Controller, switch: ModelSwitch) -> None:
    """The switch is set up when start returns."""
    (shown,) = controller.switches()
    assert (shown["name"], shown["state"], shown["connects"]) == ("s1", "ready", 1)
    assert controller.services()[0]["name"] == "echo"
    switch.inject(frame(6, client(0), _VIP, SYN))
    assert switch.taken() == []  # a service without backends


def test_serves_and_answers_as_the_service(controller: Controller, switch: ModelSwitch) -> None:
    """A connection goes to the backend, its replies come from the VIP."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    assert open_all(switch, controller, 1) == {0: flat("10.0.2.2")}
    switch.inject(frame(6, flat("10.0.2.2"), client(0), SYN | ACK), port=2)
    assert switch.taken() == [(1, _VIP, client(0))]


def test_no_pool_change_moves_a_connection(controller: Controller, switch: ModelSwitch) -> None:
    """Adding, weighting, draining and removing backends leave every connection where it is."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    controller.add_backend("echo", tcp("10.0.3.3"))
    where = open_all(switch, controller, 200)
    assert set(where.values()) == {flat("10.0.2.2"), flat("10.0.3.3")}
    controller.add_backend("echo", tcp("10.0.4.4"), weight=3)
    controller.set_weight("echo", tcp("10.0.2.2"), 5)
    controller.remove_backend("echo", tcp("10.0.2.2"), drain=True)
    controller.remove_backend("echo", tcp("10.0.3.3"))
    assert {number: where_now(switch, number) for number in where} == where
    states = {node["ipv4"]: node["state"] for node in controller.backends()}
    assert states == {"10.0.2.2": "draining", "10.0.4.4": "active"}
    switch.inject(frame(6, client(999), _VIP, SYN))
    assert switch.taken()[0][2] == flat("10.0.4.4")


def test_a_connection_opened_just_before_a_change_is_pinned_by_it(
    controller: Controller, switch: ModelSwitch
) -> None:
    """Openings whose digest is on its way when a pool changes are seen in time."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    where: dict[int, Address] = {}
    for round, address in enumerate(("10.0.3.3", "10.0.4.4", "10.0.5.5")):
        for number in range(round * 100, round * 100 + 100):
            switch.inject(frame(6, client(number), _VIP, SYN))
            where[number] = switch.taken()[0][2]
        controller.add_backend("echo", tcp(address))
    assert {number: where_now(switch, number) for number in where} == where


def test_a_removed_backend_goes_when_its_last_connection_has_ended(
    program: tuple[Path, Path], switch: ModelSwitch
) -> None:
    """FIN and silence end a pin; the backend's rows go with the last one."""
    config = controller_config(program, switch.address, poll=0.05)
    object.__setattr__(config.balancer.idle, "after_rst", 0.1)
    controller = Controller(config)
    controller.start(10)
    try:
        controller.add_backend("echo", tcp("10.0.2.2"))
        controller.add_backend("echo", tcp("10.0.3.3"))
        where = open_all(switch, controller, 20)
        controller.remove_backend("echo", tcp("10.0.2.2"))
        assert len(switch.running.tables["Ingress.backend"]) == 2
        for number, location in where.items():
            if location == flat("10.0.2.2"):
                switch.inject(frame(6, client(number), _VIP, RST))
        eventually(lambda: len(switch.running.tables["Ingress.backend"]) == 1, "reclaiming the backend")
        spoken = [match[1] for match, _ in switch.running.tables["Ingress.endpoint_source"]]
        assert spoken == [Exact(flat("10.0.3.3")[0])]
        assert len(controller.connections()) == sum(w == flat("10.0.3.3") for w in where.values())
    finally:
        controller.stop()


def test_there_is_an_upper_bound_of_pins(program: tuple[Path, Path], switch: ModelSwitch) -> None:
    """Beyond it those go that have been silent the longest."""
    config = controller_config(program, switch.address)
    object.__setattr__(config.balancer.idle, "many", 10)
    controller = Controller(config)
    controller.start(10)
    try:
        controller.add_backend("echo", tcp("10.0.2.2"))
        open_all(switch, controller, 25)
        for number in range(5):
            where_now(switch, number)
        assert controller.call(controller.balancer.pins.age()) == 15
        left = {connection["source"] for connection in controller.connections()}
        assert len(left) == 10
        assert {f"10.0.1.1:{20000 + number}" for number in range(5)} <= left
    finally:
        controller.stop()


def test_a_backend_can_be_called_by_its_own_address(controller: Controller, switch: ModelSwitch) -> None:
    """The opening is pinned and sent on, and the replies come from that address."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    switch.inject(frame(6, client(7), flat("10.0.2.2"), SYN))
    eventually(lambda: switch.running.out, "sending the opening on")
    assert switch.taken() == [(2, client(7), flat("10.0.2.2"))]
    switch.inject(frame(6, flat("10.0.2.2"), client(7), SYN | ACK), port=2)
    assert switch.taken() == [(1, flat("10.0.2.2"), client(7))]


def test_an_updated_node_takes_its_connections_along(controller: Controller, switch: ModelSwitch) -> None:
    """update_node moves those through the VIP and those to the backend's own address."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    open_all(switch, controller, 5)
    switch.inject(frame(6, client(7), flat("10.0.2.2"), SYN))
    eventually(lambda: switch.running.out, "sending the opening on")
    switch.taken()
    controller.move_backend("echo", tcp("10.0.2.2"), tcp("10.0.3.3"))
    assert {where_now(switch, number) for number in range(5)} == {flat("10.0.3.3")}
    switch.inject(frame(6, flat("10.0.3.3"), client(0), ACK), port=3)
    assert switch.taken() == [(1, _VIP, client(0))]
    switch.inject(frame(6, client(7), flat("10.0.2.2"), ACK))
    assert switch.taken() == [(3, client(7), flat("10.0.3.3"))]
    switch.inject(frame(6, flat("10.0.3.3"), client(7), ACK), port=3)
    assert switch.taken() == [(1, flat("10.0.2.2"), client(7))]


def test_refusals(controller: Controller) -> None:
    """What cannot be done is said, and changes nothing."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    before = dict(controller.balancer.table)
    with pytest.raises(Conflict, match=r"10.0.2.2:7000/tcp is already a backend of service 'echo'"):
        controller.add_backend("echo", tcp("10.0.2.2"))
    with pytest.raises(NotFound, match=r"10.0.9.9:7000/tcp is not a backend"):
        controller.remove_backend("echo", tcp("10.0.9.9"))
    with pytest.raises(NotFound, match="no service 'web'"):
        controller.add_backend("web", tcp("10.0.2.2"))
    with pytest.raises(Conflict, match="still has backends"):
        controller.remove_service("echo")
    assert dict(controller.balancer.table) == before


def test_a_restarted_switch_is_filled_again(program: tuple[Path, Path]) -> None:
    """Connections survive the restart of the switch."""
    with served() as switch:
        port = int(switch.address.rpartition(":")[2])
        controller = Controller(controller_config(program, switch.address))
        controller.start(10)
        controller.add_backend("echo", tcp("10.0.2.2"))
        controller.add_backend("echo", tcp("10.0.3.3"))
        where = open_all(switch, controller, 50)
    try:
        eventually(
            lambda: controller.switches()[0]["state"] == "connecting", "noticing that the switch is gone"
        )
        with pytest.raises(SwitchNotReady, match=r"s1 at .* is not connected"):
            controller.add_backend("echo", tcp("10.0.4.4"))
        with served(port=port) as switch:
            eventually(lambda: controller.switches()[0]["connects"] == 2, "coming back", 15)
            assert {number: where_now(switch, number) for number in where} == where
            controller.add_backend("echo", tcp("10.0.4.4"))
            assert {number: where_now(switch, number) for number in where} == where
    finally:
        controller.stop()


def test_a_restarted_controller_goes_on(program: tuple[Path, Path], switch: ModelSwitch) -> None:
    """Services, backends and pins are read back from the switch."""
    config = controller_config(program, switch.address)
    first = Controller(config)
    first.start(10)
    first.add_backend("echo", tcp("10.0.2.2"))
    first.add_backend("echo", tcp("10.0.3.3"), weight=2)
    first.remove_backend("echo", tcp("10.0.2.2"), drain=True)
    first.add_backend("echo", tcp("10.0.2.2"))
    where = open_all(switch, first, 50)
    first.remove_backend("echo", tcp("10.0.2.2"), drain=True)
    first.stop()
    second = Controller(config)
    second.start(10)
    try:
        nodes = {node["ipv4"]: node["state"] for node in second.backends()}
        assert nodes == {"10.0.2.2": "draining", "10.0.3.3": "active"}
        assert len(second.connections()) == 50
        second.add_backend("echo", tcp("10.0.4.4"))
        assert {number: where_now(switch, number) for number in where} == where
    finally:
        second.stop()


def test_a_guard_that_was_left_is_ended(program: tuple[Path, Path], switch: ModelSwitch) -> None:
    """A controller that ended in the middle of a pool change leaves no service shut."""
    config = controller_config(program, switch.address)
    first = Controller(config)
    first.start(10)
    first.add_backend("echo", tcp("10.0.2.2"))
    first.call(first.balancer.write([rows.serve(VIP, 1, guarded=True)]))
    first.stop()
    second = Controller(config)
    second.start(10)
    try:
        assert open_all(switch, second, 1) == {0: flat("10.0.2.2")}
    finally:
        second.stop()


def test_a_service_may_be_udp(controller: Controller, switch: ModelSwitch) -> None:
    """Every datagram may open a flow; a known flow stays where it is."""
    vip = Endpoint(IpProtocol.UDP, VIP.address, 53)
    controller.add_service("dns", vip)
    for n in (2, 3):
        controller.add_backend("dns", Endpoint(IpProtocol.UDP, tcp(f"10.0.{n}.{n}").address, 53))
    where = {}
    for number in range(50):
        switch.inject(frame(17, client(number), (_VIP[0], 53)))
        where[number] = switch.taken()[0][2]
    eventually(lambda: len(controller.balancer.pins) == 50, "pinning")
    controller.remove_backend("dns", Endpoint(IpProtocol.UDP, tcp("10.0.2.2").address, 53))
    for number, location in where.items():
        switch.inject(frame(17, client(number), (_VIP[0], 53)))
        assert switch.taken()[0][2] == location


def test_start_says_what_it_waits_for(program: tuple[Path, Path]) -> None:
    """A switch that never comes is named."""
    controller = Controller(controller_config(program, "127.0.0.1:1"))
    with pytest.raises(SwitchNotReady, match=r"not ready within 0.3 s: s1 at 127.0.0.1:1 \(connecting\)"):
        controller.start(0.3)


def test_fin_lets_the_other_direction_go_on(controller: Controller, switch: ModelSwitch) -> None:
    """A half-closed connection keeps its pin while packets still flow."""
    controller.add_backend("echo", tcp("10.0.2.2"))
    open_all(switch, controller, 1)
    switch.inject(frame(6, client(0), _VIP, FIN | ACK))
    switch.taken()
    controller.add_backend("echo", tcp("10.0.3.3"))
    assert where_now(switch, 0) == flat("10.0.2.2")
