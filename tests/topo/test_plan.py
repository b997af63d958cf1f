"""The networks as data."""

from __future__ import annotations

import pytest

from topo.errors import BadNetwork
from topo.plan import LoadBalancerNetwork, plan


def test_single_puts_every_host_on_the_load_balancer() -> None:
    """Ports are the hosts' numbers; addresses are design.md's."""
    network = plan(LoadBalancerNetwork())
    assert [(h.name, h.switch, h.port, str(h.interface), h.mac) for h in network.hosts] == [
        ("h1", "s1", 1, "10.0.1.1/24", "08:00:00:00:01:01"),
        ("h2", "s1", 2, "10.0.2.2/24", "08:00:00:00:02:02"),
        ("h3", "s1", 3, "10.0.3.3/24", "08:00:00:00:03:03"),
        ("h4", "s1", 4, "10.0.4.4/24", "08:00:00:00:04:04"),
    ]
    assert [str(h.gateway) for h in network.hosts] == [f"10.0.{n}.254" for n in range(1, 5)]
    (switch,) = network.switches
    assert (switch.device_id, switch.grpc_port, switch.program) == (1, 9559, "load_balancer")
    assert network.trunks == ()


def test_triangle_joins_three_switches() -> None:
    """Servers live behind the forwarding switches, which are joined pairwise."""
    network = plan(LoadBalancerNetwork(topology="triangle"))
    assert {h.name: h.switch for h in network.hosts} == {"h1": "s1", "h2": "s2", "h3": "s3", "h4": "s3"}
    assert [(s.name, s.grpc_port, s.program) for s in network.switches] == [
        ("s1", 9559, "load_balancer"),
        ("s2", 9560, "forward"),
        ("s3", 9561, "forward"),
    ]
    assert [{t.left, t.right} for t in network.trunks] == [{"s1", "s2"}, {"s1", "s3"}, {"s2", "s3"}]


@pytest.mark.parametrize("topology", ["single", "triangle"])
def test_no_port_or_mac_is_used_twice(topology: str) -> None:
    """Every interface of a network has its own place and address."""
    network = plan(LoadBalancerNetwork(hosts=9, topology=topology))
    places = [(h.switch, h.port) for h in network.hosts]
    macs = [h.mac for h in network.hosts] + [h.gateway_mac for h in network.hosts]
    for trunk in network.trunks:
        places += [(trunk.left, trunk.left_port), (trunk.right, trunk.right_port)]
        macs += [trunk.mac(trunk.left), trunk.mac(trunk.right)]
    assert len(set(places)) == len(places)
    assert len(set(macs)) == len(macs)


def _follow(network: LoadBalancerNetwork, start: str, target: str) -> list[str]:
    """Walk from a host's switch by the tables' rows until a port leads to a host."""
    planned = plan(network)
    hosts = {(h.switch, h.port): h.name for h in planned.hosts}
    other = {}
    for trunk in planned.trunks:
        other[trunk.left, trunk.left_port] = (trunk.right, trunk.right_port)
        other[trunk.right, trunk.right_port] = (trunk.left, trunk.left_port)
    tables = {s.name: s.entries for s in planned.switches}
    destination = next(h for h in planned.hosts if h.name == target)
    home = next(h for h in planned.hosts if h.name == start)
    switch, ingress, way = home.switch, home.port, [home.switch]
    for _ in range(5):
        out = _next(tables[switch], ingress, str(destination.interface.network.network_address))
        if (switch, out) in hosts:
            return [*way, hosts[switch, out]]
        switch, ingress = other[switch, out]
        way.append(switch)
    raise AssertionError(f"a loop: {way}")


def _next(entries: tuple[dict, ...], ingress: int, prefix: str) -> int:
    for entry in entries:
        if entry["table"] == "uplink" and entry["match"]["port"] == ingress:
            return int(entry["action_params"]["port"])
    for entry in entries:
        if entry["table"] == "route" and entry.get("match", {}).get("address", [""])[0] == prefix:
            return int(entry["action_params"]["port"])
    default = next(e for e in entries if e.get("default_action"))
    return int(default["action_params"]["port"])


def test_every_packet_of_the_triangle_passes_the_load_balancer() -> None:
    """Also between neighbours on one forwarding switch: only s1 knows where programs live."""
    network = LoadBalancerNetwork(topology="triangle")
    assert _follow(network, "h1", "h2") == ["s1", "s2", "h2"]
    assert _follow(network, "h2", "h1") == ["s2", "s1", "h1"]
    assert _follow(network, "h2", "h3") == ["s2", "s1", "s3", "h3"]
    assert _follow(network, "h3", "h4") == ["s3", "s1", "s3", "h4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hosts": 2}, "2 hosts"),
        ({"hosts": 1000}, "1000 hosts"),
        ({"topology": "ring"}, "'ring' is not one of single, triangle"),
        ({"target": "tofino"}, "'tofino' is not one of ebpf, bmv2"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(arguments: dict, words: str) -> None:
    """The message names the offender."""
    with pytest.raises(BadNetwork, match=words):
        LoadBalancerNetwork(**arguments)
