"""Whose an address is: what a program that has moved keeps, and what one that has ended leaves to others."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration.namespaces import in_netns
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
VIP, OTHER_VIP = "10.0.0.100", "10.0.0.101"


@pytest.fixture
def net(leaves_nothing: None) -> Iterator[Testbed]:
    """A running network of four hosts."""
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed:
        yield bed


def greeter(name: str, *places: str) -> list[str]:
    """Return the command of a program that says its name at some ports."""
    return ["/usr/bin/python3", str(Path(__file__).parent / "programs" / "greeter.py"), name, *places]


def run(bed: Testbed, name: str, host: str, *places: str, service: str | None = None) -> None:
    """Start a greeter and wait until it listens."""
    bed.run(name, host, greeter(name, *places), service=service)
    assert wait_until(lambda: "listens" in bed.output(name), 5.0)


def ask(bed: Testbed, address: str, port: int, own: int = 0, host: str = "h1") -> str:
    """Open a connection from a host and return who answers, or what goes wrong."""

    def talk() -> str:
        with socket.socket() as made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("0.0.0.0", own))
            made.settimeout(3)
            made.connect((address, port))
            name = made.recv(100).decode()
            assert made.recv(1) == b""
            return name

    try:
        return in_netns(bed.hosts[host].pid, talk)
    except OSError as ex:
        return type(ex).__name__


def test_the_place_of_a_stopped_backend_serves_another_vip(net: Testbed) -> None:
    """At once: nothing of the former one is left."""
    run(net, "a", "h2", "7000", service=f"{VIP}:7000")
    assert ask(net, VIP, 7000) == "a"
    net.stop("a")
    assert net.backends() == []
    assert net.connections() == []
    run(net, "b", "h2", "7000", service=f"{OTHER_VIP}:7000")
    assert ask(net, OTHER_VIP, 7000) == "b"


def test_a_stopped_program_leaves_no_rows(net: Testbed) -> None:
    """Wherever it was moved to, and whichever of its ports is a service's; another one then goes the same way."""
    for name in ("first", "second"):
        run(net, name, "h2", "7000", "7001", service=f"{VIP}:7000")
        before = dict(net.controller.balancer.table)
        for host in ("h3", "h4", "h3"):
            assert net.migrate(name, host).outcome == "completed"
            assert [ask(net, VIP, 7000), ask(net, "10.0.2.2", 7001)] == [name, name]
        net.stop(name)
        kept = {key for key in net.controller.balancer.table if key[0] != "connection"}
        assert kept < before.keys()
        assert net.connections() == net.backends() == []


def test_the_address_of_a_moved_program_that_has_ended_is_free(net: Testbed) -> None:
    """Also when it has ended by itself, at its new place."""
    run(net, "first", "h2", "7300")
    assert net.migrate("first", "h3").outcome == "completed"
    os.kill(net.apps()[0]["pid"], signal.SIGKILL)
    assert wait_until(lambda: net.apps()[0]["state"] == "ended", 5.0)
    net.stop("first")
    run(net, "second", "h2", "7300")
    assert ask(net, "10.0.2.2", 7300) == "second"


def test_clients_with_one_port_reach_another_backend_when_theirs_is_stopped(net: Testbed) -> None:
    """The next datagram, and the next SYN, although the last ones were answered a moment ago."""
    for host in ("h2", "h3"):
        run(net, f"u{host}", host, "5060/udp", service=f"{VIP}:5060/udp")
        run(net, f"t{host}", host, "7000", service=f"{VIP}:7000")
    with in_netns(net.hosts["h1"].pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(3)
        client.bind(("0.0.0.0", 5060))
        client.sendto(b"x", (VIP, 5060))
        udp = client.recv(100).decode()
        net.stop(udp)
        client.sendto(b"x", (VIP, 5060))
        assert {udp, client.recv(100).decode()} == {"uh2", "uh3"}
    tcp = ask(net, VIP, 7000, own=40000)
    assert [ask(net, VIP, 7000, own=40000) for _ in range(3)] == [tcp] * 3
    net.stop(tcp)
    assert {tcp, ask(net, VIP, 7000, own=40000)} == {"th2", "th3"}
