"""Whose an address is: what a program that has moved keeps, and what one that has ended leaves to others."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from controllers.leftports import RESERVED
from migration import ownroutes
from migration.namespaces import in_netns
from migration.ownroutes import OwnRoute
from topo.errors import BadApp
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


def test_a_moved_program_answers_on_every_host(net: Testbed) -> None:
    """Under its first address and where it is now, also to clients beside it and on its first host."""
    run(net, "first", "h2", "7300", "5300/udp")
    run(net, "other", "h2", "7301")
    here = {"h2": "10.0.2.2", "h3": "10.0.3.3", "h4": "10.0.4.4"}
    for host in ("h3", "h4", "h3", "h2"):
        assert net.migrate("first", host).outcome == "completed"
        for client in net.hosts:
            answers = [ask(net, address, 7300, host=client) for address in ("10.0.2.2", here[host])]
            answers += [ask_udp(net, "10.0.2.2", 5300, client), ask(net, "10.0.2.2", 7301, host=client)]
            assert answers == ["first", "first", "first", "other"], (host, client)
    net.stop("first")
    assert wait_until(lambda: not any(own_routes(net)), 20.0)
    assert ask(net, "10.0.2.2", 7300, host="h2") == "ConnectionRefusedError"
    assert ask(net, "10.0.2.2", 7301, host="h2") == "other"


def test_programs_move_to_where_their_peers_are_or_were(net: Testbed) -> None:
    """Client and server meet on one host, part, and go to where the other one was first; every byte arrives."""
    net.run("server", "h2", talker("serve", "7300"))
    net.run("client", "h3", talker("ask", "10.0.2.2", "7300"))
    places = {"server": "h2", "client": "h3"}
    chosen = random.Random(13)
    met = 0
    for _ in range(24):
        name = chosen.choice(["server", "client"])
        places[name] = chosen.choice([host for host in net.hosts if host != places[name]])
        report = net.migrate(name, places[name])
        assert (report.outcome, report.connections.kept) == ("completed", 1), (name, places, report.reason)
        met += places["server"] == places["client"]
        assert goes_on(net, "client"), places
    assert met > 4
    assert "wrong" not in net.output("client")


def test_a_program_goes_on_talking_to_itself(net: Testbed) -> None:
    """By its host's address before it moves, by its first address afterwards: each connection goes on and moves on."""
    net.run("self", "h2", talker("self", "10.0.2.2", "7300"))
    for number, host in enumerate(("h3", "h4", "h3", "h2", "h3")):
        assert net.migrate("self", host).outcome == "completed"
        assert goes_on(net, "self"), (number, host)
    assert "wrong" not in net.output("self")


def test_a_program_sees_its_first_address_as_its_own(net: Testbed) -> None:
    """It can bind it and call itself by it, and its sockets have it; another program beside it has not."""
    program = Path(__file__).parent / "programs" / "own_address.py"
    net.run("own", "h2", ["/usr/bin/python3", str(program), "10.0.2.2"])
    assert goes_on(net, "own")
    before = net.output("own").splitlines()[-1]
    assert '"bind": "bound", "call": ["called", ["10.0.2.2", 7300]' in before
    for host in ("h3", "h4", "h2", "h3"):
        report = net.migrate("own", host)
        assert (report.outcome, [w for w in report.warnings if "CPU" not in w]) == ("completed", []), (
            report.reason
        )
        assert goes_on(net, "own"), (host, net.output("own")[-2000:])
        assert net.output("own").splitlines()[-1] == before, host
    with pytest.raises(OSError, match="Cannot assign"):
        in_netns(net.hosts["h3"].pid, lambda: socket.create_server(("10.0.2.2", 9000))).close()


def test_a_service_answers_clients_on_its_backends_hosts(net: Testbed) -> None:
    """By its VIP and by the backend's own address, before the backend moves and afterwards."""
    run(net, "first", "h2", "7000", "5060/udp", service=f"{VIP}:7000")
    for home, host in (("10.0.2.2", None), ("10.0.3.3", "h3"), ("10.0.2.2", "h2")):
        if host is not None:
            assert net.migrate("first", host).outcome == "completed"
        for client in net.hosts:
            assert [ask(net, VIP, 7000, host=client) for _ in range(3)] == ["first"] * 3, (host, client)
            assert ask(net, home, 7000, host=client) == "first", (host, client)
    net.stop("first")
    assert wait_until(lambda: not any(own_routes(net)), 20.0)


def test_an_address_that_a_moved_program_has_is_not_anothers(net: Testbed) -> None:
    """A second server there is refused by name, however it asks; the kernel refuses it as well, until it is free."""
    run(net, "first", "h2", "7300", "5300/udp")
    assert net.migrate("first", "h3").outcome == "completed"
    for places in (("7300",), ("5300/udp",)):
        with pytest.raises(BadApp, match=r"still is the address of first at 10\.0\.3\.3"):
            run(net, "second", "h2", *places)
    with pytest.raises(BadApp, match="Address already in use"):
        run(net, "second", "h2", "7300", service=f"{VIP}:7300")
    run(net, "second", "h2", "7301")
    assert [ask(net, "10.0.2.2", 7300), ask(net, "10.0.2.2", 7301)] == ["first", "second"]
    for host in ("h2", "h3"):  # it comes home, and leaves again
        assert net.migrate("first", host).outcome == "completed"
        assert ask(net, "10.0.2.2", 7300) == "first"
    net.stop("first")
    assert can_listen(net, "h2", 7300)
    run(net, "third", "h2", "7300", "5300/udp")
    assert ask(net, "10.0.2.2", 7300) == "third"


def test_the_home_of_a_moved_backend_is_not_anothers(net: Testbed) -> None:
    """It answers there to those who know it; another one may be there for a service only."""
    run(net, "first", "h2", "7000", service=f"{VIP}:7000")
    assert net.migrate("first", "h3").outcome == "completed"
    with pytest.raises(
        BadApp, match=r"10\.0\.2\.2:7000/tcp still is the address of first at 10\.0\.3\.3:7000/tcp"
    ):
        run(net, "second", "h2", "7000")
    run(net, "third", "h2", "7000", service=f"{OTHER_VIP}:7000")
    assert [ask(net, VIP, 7000), ask(net, OTHER_VIP, 7000)] == ["first", "third"]


def test_a_program_that_passes_by_leaves_anothers_address_alone(net: Testbed) -> None:
    """One moves to where another one was first, and on: each is called by its own first address all the time."""
    for name, host in (("one", "h2"), ("two", "h4")):
        run(net, name, host, "7300")
    for name, host in (("one", "h3"), ("two", "h2"), ("two", "h1"), ("one", "h2")):
        assert net.migrate(name, host).outcome == "completed"
        asked = [ask(net, address, 7300, host="h4") for address in ("10.0.2.2", "10.0.4.4")]
        assert asked[0] == "one"
        assert ask(net, "10.0.4.4", 7300, host="h3" if host != "h3" else "h1") == "two"


def test_a_port_that_a_moved_client_has_is_not_chosen_again(net: Testbed) -> None:
    """Else answers to the next program that connects from there would go to the one that has left."""
    code = (
        "import socket, time\ns = socket.create_connection(('10.0.1.1', 7000)); print('open', flush=True)\n"
    )
    code += "while True: s.sendall(b'x'); time.sleep(0.05)"
    pid = net.hosts["h1"].pid
    with in_netns(pid, lambda: socket.create_server(("", 7000))) as listener:
        net.run("client", "h2", ["/usr/bin/python3", "-c", code])
        peer, (_, port) = listener.accept()
        with peer:
            assert [chooses(net, "h2", port), chooses(net, "h2", port)] == [True, True]
            assert net.migrate("client", "h3").outcome == "completed"
            assert wait_until(lambda: not chooses(net, "h2", port), 5.0)
            assert chooses(net, "h2", port + 1)
            assert net.migrate("client", "h2").outcome == "completed"
            assert wait_until(lambda: not in_netns(net.hosts["h2"].pid, RESERVED.read_text).strip(), 5.0)
            assert peer.recv(1 << 16)
            net.stop("client")


def ask_udp(bed: Testbed, address: str, port: int, host: str) -> str:
    """Send a datagram from a host and return who answers, or what goes wrong."""

    def talk() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(3)
            made.connect((address, port))
            made.send(b"x")
            return made.recv(100).decode()

    try:
        return in_netns(bed.hosts[host].pid, talk)
    except OSError as ex:
        return type(ex).__name__


def own_routes(bed: Testbed) -> list[set[OwnRoute]]:
    """Return what each host sends to its switch although it is for itself."""
    return [ownroutes.read(host.pid) for host in bed.hosts.values()]


def talker(*words: str) -> list[str]:
    """Return the command of a program that talks for ever."""
    return ["/usr/bin/python3", str(Path(__file__).parent / "programs" / "talker.py"), *words]


def goes_on(bed: Testbed, name: str) -> bool:
    """Return True as soon as a talker has printed three more lines: two tell of what began after this call."""
    before = bed.output(name).count("\n")
    return wait_until(lambda: bed.output(name).count("\n") >= before + 3, 20.0)


def can_listen(bed: Testbed, host: str, port: int) -> bool:
    """Return True if a server can have a port of a host."""
    try:
        in_netns(bed.hosts[host].pid, lambda: socket.create_server(("", port))).close()
    except OSError:
        return False
    return True


def chooses(bed: Testbed, host: str, port: int) -> bool:
    """Return True if a host's kernel gives a port to a connection with h1, when it is the only one that it may choose.

    The connection is with another peer each time: what is left of the last one (TIME_WAIT) does not hinder.
    """
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")

    def connect(target: tuple[str, int]) -> bool:
        usual = path.read_text()
        try:
            path.write_text(f"{port} {port}")
            with socket.create_connection(target, 3) as made:
                return int(made.getsockname()[1]) == port
        except OSError:
            return False
        finally:
            path.write_text(usual)

    with in_netns(bed.hosts["h1"].pid, lambda: socket.create_server(("", 0))) as listener:
        target = ("10.0.1.1", listener.getsockname()[1])
        return in_netns(bed.hosts[host].pid, lambda: connect(target))
