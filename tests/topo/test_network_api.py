"""NetworkAPI: p4-utils' way to describe a network, and what is refused."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import finsy
import pytest
from pyroute2 import IPRoute

from topo import paths
from topo.errors import BadNetwork, CompileFailed
from topo.network_api import NetworkAPI
from topo.runs import clean_up


@pytest.fixture
def net() -> NetworkAPI:
    """A switch with two hosts."""
    net = NetworkAPI()
    net.addP4RuntimeSwitch("s1")
    net.addHost("h1")
    net.addHost("h2")
    net.addLink("h1", "s1")
    net.addLink("h2", "s1")
    return net


def test_ports_are_numbered_like_mininets(net: NetworkAPI) -> None:
    """Hosts from 0, switches from 1; a number that was set is kept."""
    net.setIntfPort("s1", "h1", 2)
    net._number_ports()
    assert [(end.node, end.port) for end in net._ends()] == [("h1", 0), ("s1", 2), ("h2", 0), ("s1", 1)]


def test_l3_gives_every_host_its_own_network(net: NetworkAPI) -> None:
    """As p4-utils' l3 strategy: 10.X.Y.2/24 behind 10.X.Y.1."""
    net.l3()
    net._number_ports()
    net._assign_l3()
    ends = {end.node: end.ip for end in net._ends() if end.ip}
    assert ends == {"h1": "10.1.1.2/24", "h2": "10.1.2.2/24"}
    assert net._hosts["h2"].default_route == "via 10.1.2.1"


def test_what_was_described_can_be_taken_back(net: NetworkAPI) -> None:
    """Before anything is built: a host goes with its links."""
    net.removeLink("h2", "s1")
    net.removeHost("h1")
    assert (net.hosts(), net._links) == (["h2"], [])
    net.addLink("h2", "s1")
    net.l3()
    net._number_ports()
    net._assign_l3()
    assert [(end.node, end.port, end.ip) for end in net._ends()] == [
        ("h2", 0, "10.1.1.2/24"),
        ("s1", 1, None),
    ]


def test_mistakes_are_named(net: NetworkAPI) -> None:
    """One clear sentence each."""
    cases = [
        (lambda: net.addHost("h1"), "there is a node h1 already"),
        (lambda: net.addLink("h1", "s9"), "link h1-s9: there is no node s9"),
        (lambda: net.addLink("h1", "h1"), "link h1-h1: a node cannot be linked to itself"),
        (lambda: net.addLink("h1", "s1", mtu=10), "link h1-s1: option mtu is not supported"),
        (lambda: net.setP4Source("s2", "x.p4"), "there is no switch s2"),
        (lambda: net.setIntfIp("h1", "h2", "10.0.0.1/24"), "there is no link h1-h2"),
        (
            lambda: net.setIntfIp("h1", "s1", "10.0.0.300"),
            "h1-s1: '10.0.0.300' is no IPv4 address with prefix length",
        ),
        (lambda: net.addDocker("d1"), 'd1: a container host needs an image: dimage="NAME"'),
        (lambda: net.addPodman("h1", dimage="x"), "there is a node h1 already"),
        (lambda: net.removeDocker("d1"), "there is no host d1"),
        (lambda: net.removeLink("h1", "h2"), "there is no link h1-h2"),
        (lambda: net.program("s1"), "switch s1 has no P4 program yet"),
    ]
    for mistake, message in cases:
        with pytest.raises(BadNetwork, match=f"^{re.escape(message)}$"):
            mistake()


def test_one_port_cannot_carry_two_links(net: NetworkAPI) -> None:
    """Found before anything is built."""
    net.setIntfPort("s1", "h1", 7)
    net.setIntfPort("s1", "h2", 7)
    with pytest.raises(BadNetwork, match="s1: port 7 is used by two links"):
        net._number_ports()


def test_a_long_name_is_refused_before_anything_is_built() -> None:
    """Linux's interface names have 15 characters."""
    net = NetworkAPI()
    net.addHost("a-host-with-a-name")
    net.addP4RuntimeSwitch("s1")
    net.addLink("a-host-with-a-name", "s1")
    with pytest.raises(BadNetwork, match="interface name a-host-with-a-name-eth0 is longer than 15"):
        net.startNetwork()


@pytest.mark.net
def test_a_network_as_p4_utils_users_write_it(tmp_path: Path) -> None:
    """Two hosts behind a router: the P4 program is compiled and loaded, the rows come from a finsy script."""
    clean_up()
    with NetworkAPI(log_dir=tmp_path) as net:
        net.setLogLevel("warning")
        net.addP4RuntimeSwitch("s1")
        net.setP4Source("s1", paths.P4SRC / "forward.p4")
        for name in ("h1", "h2"):
            net.addHost(name)
            net.addLink(name, "s1")
        net.l3()
        net.enableLogAll(tmp_path)
        net.startNetwork()
        assert net.net is not None
        asyncio.run(_route(net))
        h1, h2 = net.net["h1"], net.net["h2"]
        assert (h1.IP(), h2.IP()) == ("10.1.1.2", "10.1.2.2")
        assert " 0% packet loss" in h1.cmd("ping -c 2 -i 0.2 -W 2 10.1.2.2")
        assert (tmp_path / "s1.log").exists()
        with pytest.raises(BadNetwork, match="running already"):
            net.startNetwork()
    with IPRoute() as ip:
        assert not ip.link_lookup(ifname="s1-eth1") and not ip.link_lookup(ifname="p4cpu1")


async def _route(net: NetworkAPI) -> None:
    """Write the routes of both hosts."""
    program = net.program("s1")
    options = finsy.SwitchOptions(p4info=program.p4info, p4blob=program.bmv2_json)
    async with finsy.Switch("s1", net.net["s1"].grpc_address, options) as switch:  # type: ignore[index]
        for port in (1, 2):
            host = net.net[f"h{port}"]  # type: ignore[index]
            action = finsy.P4TableAction(
                "forward", port=port, src_mac="08:00:00:00:00:01", dst_mac=host.MAC()
            )
            match = finsy.P4TableMatch({"address": f"10.1.{port}.0/24"})
            await switch.insert([finsy.P4TableEntry("route", match=match, action=action)])


@pytest.mark.net
def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A P4 program that does not compile: the compiler's own message, and no link is left."""
    clean_up()
    source = tmp_path / "broken.p4"
    source.write_text("#include <core.p4>\ncontrol c() { apply { x = 1; } }\n")
    net = NetworkAPI(log_dir=tmp_path)
    net.addP4RuntimeSwitch("s1", p4_src=source)
    net.addHost("h1")
    net.addLink("h1", "s1")
    with pytest.raises(CompileFailed, match=r"broken\.p4:2:"):
        net.startNetwork()
    with IPRoute() as ip:
        assert not ip.link_lookup(ifname="s1-eth1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bw": 2000}, "bw 2000 is not a number from 0 to 1000 (Mbit/s, more than 0)"),
        ({"bw": 0}, "bw 0 is not a number"),
        ({"bw": "10"}, "bw '10' is not a number"),
        ({"loss": 101}, "loss 101 is not a number from 0 to 100 (percent)"),
        ({"delay": "soon"}, "delay 'soon' is neither milliseconds nor a time such as '10ms'"),
        ({"delay": -1}, "delay -1 is neither milliseconds"),
        ({"delay": "5ms; reboot"}, "is neither milliseconds"),
        ({"jitter": 5}, "jitter is the variation of a delay"),
        ({"max_queue_size": 0}, "max_queue_size 0 is not a number from 1"),
        ({"weigth": 3}, "option weigth is not supported"),
    ],
)
def test_bad_link_settings_are_refused(options: dict[str, object], message: str) -> None:
    """When the link is described, with its name."""
    net = NetworkAPI()
    net.addHost("h1")
    net.addHost("h2")
    with pytest.raises(BadNetwork, match=r"^link h1-h2: ") as caught:
        net.addLink("h1", "h2", **options)
    assert message in str(caught.value)


def test_link_settings_are_collected(net: NetworkAPI) -> None:
    """Those of addLink, of a setter, and of a setter for all."""
    net.addHost("h3")
    net.addLink("h3", "s1", bw=10, delay="5ms", jitter=1)
    net.setLoss("s1", "h3", 2)
    net.setDelay("h1", "s1", 3)
    net.setBwAll(20)
    shapes = {link.name: link.shape for link in net._links}
    assert shapes == {
        "h1-s1": {"delay": "3ms", "bw": 20.0},
        "h2-s1": {"bw": 20.0},
        "h3-s1": {"bw": 20.0, "delay": "5ms", "jitter": "1ms", "loss": 2.0},
    }
    with pytest.raises(BadNetwork, match="there is no link h1-h3"):
        net.setDelay("h1", "h3", 1)
