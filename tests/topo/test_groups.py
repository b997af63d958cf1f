"""Groups in a testbed: programs that were started together move together."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import httpx
import pytest

from topo import paths
from topo.cli import RUN_USAGE, parse_run
from topo.errors import BadApp
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

ECHO = str(paths.CHECKOUT / "apps" / "tcp_echo.py")
SERVER = [sys.executable, ECHO, "server"]
CLIENT = [sys.executable, "-c", """
import socket, sys, time
s = socket.create_connection((sys.argv[1], 7000))
for number in range(1, 1 << 30):
    s.sendall(b"%d" % number)
    assert s.recv(100) == b"%d" % number
    print(number, flush=True)
    time.sleep(0.02)
"""]  # fmt: skip


@pytest.fixture(scope="module")
def net() -> Iterator[Testbed]:
    with Testbed(LoadBalancerNetwork(hosts=4)) as built:
        yield built


def wait_for_more(net: Testbed, *names: str) -> None:
    """Wait until clients have had more replies, and see that none is missing."""
    for name in names:
        before = len(net.output(name).splitlines())
        assert wait_until(lambda name=name, before=before: len(net.output(name).splitlines()) > before + 5, 10), (
            net.output(name)[-500:]
        )  # fmt: skip
        numbers = [int(line) for line in net.output(name).splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.net
def test_group_moves_under_its_own_name(net: Testbed) -> None:
    """One of its programs serves a VIP, another talks to it over the loopback; a client calls from elsewhere."""
    net.run("server", "h2", SERVER, service="10.0.0.100:7000", group="pod1")
    net.run("inner", "h2", [*CLIENT, "127.0.0.1"], group="pod1")
    net.run("outer", "h1", [*CLIENT, "10.0.0.100"])
    wait_for_more(net, "inner", "outer")
    rows = {row["name"]: row for row in net.apps()}
    assert rows["server"]["group"] == rows["inner"]["group"] == "pod1"
    assert rows["pod1"]["command"] == "the group of server, inner"
    assert rows["outer"]["group"] is None

    report = net.migrate("server", to="h3")
    assert report.outcome == "refused"
    assert report.reason == "server belongs to the group pod1, which moves as one: migrate pod1"
    for host in ("h3", "h4", "h2"):
        report = net.migrate("pod1", to=host)
        assert (report.outcome, report.reason) == ("completed", None)
        assert report.connections.kept == 3
        assert {row["host"] for row in net.apps() if row["name"] != "outer"} == {host}
        wait_for_more(net, "inner", "outer")
    for name in ("outer", "inner", "server"):
        net.stop(name)


@pytest.mark.net
def test_group_is_where_it_is(net: Testbed) -> None:
    """Mistakes get a sentence; a group ends with its last program."""
    net.run("one", "h3", ["sleep", "100"], group="pair")
    with pytest.raises(BadApp, match="the group pair is on h3: start its programs there"):
        net.run("two", "h4", ["sleep", "100"], group="pair")
    with pytest.raises(BadApp, match="pair is the name of a group"):
        net.run("pair", "h4", ["sleep", "100"])
    with pytest.raises(BadApp, match="there is an app one already"):
        net.run("two", "h4", ["sleep", "100"], group="one")
    with pytest.raises(BadApp, match="could not be started in pair on h3: /no/such"):
        net.run("two", "h3", ["/no/such"], group="pair")
    with pytest.raises(BadApp, match="could not be started in fresh on h3: /no/such"):
        net.run("two", "h3", ["/no/such"], group="fresh")
    net.run("two", "h3", ["sleep", "100"], group="pair")
    net.stop("one")
    assert net.migrate("pair", to="h4").outcome == "completed"
    net.stop("two")
    names = {row["name"] for row in net.apps()}
    assert not names & {"one", "two", "pair", "fresh"}


def test_words_of_run() -> None:
    """Options may stand anywhere before the command, each once."""
    asked = parse_run(
        "web h2 --volume /a --service 10.0.0.100:80 --group pod1 --volume /b -- server --port 80"
    )
    assert asked == {
        "name": "web",
        "host": "h2",
        "service": "10.0.0.100:80",
        "group": "pod1",
        "volumes": ["/a", "/b"],
        "argv": ["server", "--port", "80"],
    }
    for wrong in (
        "web h2",
        "web -- x",
        "web h2 --group -- x",
        "web h2 --group a --group b -- x",
        "a h2 --no b -- x",
    ):
        with pytest.raises(ValueError, match=re.escape(RUN_USAGE)):
            parse_run(wrong)


@pytest.mark.net
def test_programs_move_together(net: Testbed) -> None:
    """Several names, one migration, one report; by Python, over HTTP, and from the CLI."""
    net.run("store", "h3", SERVER, service="10.0.0.101:7000")
    net.run("user", "h3", [*CLIENT, "127.0.0.1"])
    net.run("caller", "h1", [*CLIENT, "10.0.0.101"])
    wait_for_more(net, "user", "caller")
    report = net.migrate("user", to="h4")
    assert report.outcome == "refused"
    assert "is connected with store on h3: move both, user and store, in one migration" in str(report.reason)

    report = net.migrate(["store", "user"], to="h4")
    assert (report.outcome, report.reason) == ("completed", None)
    assert (report.app, report.source, report.destination) == ("store,user", "h3", "h4")
    assert report.connections.kept == 3
    wait_for_more(net, "user", "caller")

    with httpx.Client(base_url=str(net.url)) as client:
        asked = client.post("/migrations", json={"apps": ["user", "store"], "destination": "h3"})
        assert asked.status_code == 202
        assert net.wait_for_migration(asked.json()["id"]).outcome == "completed"
        for wrong in ({"app": "user", "apps": ["user"]}, {}, {"apps": []}):
            assert client.post("/migrations", json={**wrong, "destination": "h4"}).status_code == 400
        twice = client.post("/migrations", json={"apps": ["user", "user"], "destination": "h3"})
        assert (twice.status_code, twice.json()["error"]) == (400, "user is named twice")
    wait_for_more(net, "user", "caller")
    assert {row["host"] for row in net.apps() if row["name"] in ("store", "user")} == {"h3"}

    report = net.migrate(["user", "caller"], to="h4")
    assert report.reason == "user,caller cannot be moved together: caller is on h1, user on h3"
    with pytest.raises(BadApp, match="cannot be a name: a comma"):
        net.run("a,b", "h4", ["sleep", "100"])
    for name in ("caller", "user", "store"):
        net.stop(name)
