"""Testbed: what a researcher's pytest script does, on real hosts, switches, programs and checkpoints."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.topo.clients import assert_clean
from tests.topo.machine import leftovers
from topo import paths
from topo.errors import BadApp, BadNetwork
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
VIP = "10.0.0.100:7000"


@pytest.fixture
def net(leaves_nothing: None) -> Iterator[Testbed]:
    """A running network of four hosts."""
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed:
        yield bed


def client(
    bed: Testbed, tmp_path: Path, target: str = VIP, load: Load | None = None, host: str = "h1"
) -> MeasuringClient:
    """Return a measuring client."""
    return MeasuringClient(bed.host(host).pid, target, load or Load(connections=4), tmp_path)


def test_the_readmes_example(tmp_path: Path, leaves_nothing: None) -> None:
    """As printed, from the checkout."""
    example, _ = re.findall(r"```python\n(.*?)```", (paths.CHECKOUT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example)
    # fmt: off
    done = subprocess.run([sys.executable, str(script)], cwd=paths.CHECKOUT, capture_output=True, text=True,
                          timeout=60, check=False)
    # fmt: on
    assert done.returncode == 0, done.stderr


def test_a_server_addressed_directly(net: Testbed, tmp_path: Path) -> None:
    """Its peers know it by its first address, old connections and new ones, wherever it is."""
    net.run("echo", "h2", SERVER)
    assert wait_until(lambda: "listening" in net.output("echo"), 5.0)
    with client(net, tmp_path, "10.0.2.2:7000") as first:
        for host in ("h3", "h4", "h3", "h2"):
            report = net.migrate("echo", host)
            assert (report.outcome, report.connections.kept) == ("completed", 4), report
            folder = tmp_path / host
            folder.mkdir(exist_ok=True)
            with client(net, folder, "10.0.2.2:7000", Load(connections=2)) as second:
                assert_clean(second.stop())
        assert_clean(first.stop())


def test_a_client_moves_with_its_connections(net: Testbed, tmp_path: Path) -> None:
    """The one with outgoing connections goes; the server sees the same peer."""
    net.run("echo", "h2", SERVER, service=VIP)
    out = tmp_path / "moved.json"
    argv = [
        "/usr/bin/python3",
        str(TCP_ECHO),
        "client",
        "--connect",
        VIP,
        "--connections",
        "3",
        "--json",
        str(out),
    ]
    net.run("user", "h4", argv, cwd=tmp_path)
    assert wait_until(lambda: len(net.connections()) == 3, 10.0)
    for host in ("h3", "h1", "h4"):
        report = net.migrate("user", host)
        assert (report.outcome, report.connections.kept) == ("completed", 3), report
        time.sleep(0.1)  # some traffic from there
    sources = {c["source"].split(":")[0] for c in net.connections() if c["destination"] == VIP}
    assert sources == {"10.0.4.4"}  # who it is does not change
    report = net.migrate("echo", "h3")  # both ends have moved now
    assert (report.outcome, report.connections.kept) == ("completed", 3), report
    os.kill(next(a["pid"] for a in net.apps() if a["name"] == "user"), signal.SIGINT)
    assert wait_until(out.exists, 10.0)
    assert_clean(json.loads(out.read_text()))


@pytest.mark.parametrize("address", ["::", "0.0.0.0", "10.0.2.2"])
def test_listeners_of_every_kind(net: Testbed, tmp_path: Path, address: str) -> None:
    """Bound to any address, to IPv6's any (v4-mapped connections), or to the host's own."""
    net.run("echo", "h2", [*SERVER, "--host", address], service=VIP)
    with client(net, tmp_path) as user:
        for host in ("h3", "h2"):
            assert net.migrate("echo", host).outcome == "completed"
        folder = tmp_path / "late"
        folder.mkdir()
        with client(net, folder) as late:
            assert_clean(late.stop())
        assert_clean(user.stop())


@pytest.mark.long
def test_a_hundred_migrations_leak_nothing(net: Testbed, tmp_path: Path) -> None:
    """One server, eight connections: all completed, nothing left, the controller's memory flat."""
    net.run("echo", "h2", SERVER, service=VIP)
    with client(net, tmp_path, load=Load(connections=8)) as user:
        seen = {}
        for number in range(1, 101):
            report = net.migrate("echo", "h3" if number % 2 else "h2")
            assert (report.outcome, report.connections.kept) == ("completed", 8), report
            if number in (20, 100):
                time.sleep(0.5)  # the controller sees to the hosts' routes and ports behind a move
                seen[number] = _belongings()
        assert_clean(user.stop())
    memory = {number: found.pop("kilobytes") for number, found in seen.items()}
    assert seen[100] == seen[20]
    assert memory[100] < memory[20] * 1.1, memory


def _belongings() -> dict[str, object]:
    """Count what a migration could leave while its testbed runs on."""
    found = leftovers()
    found["descriptors"] = len(list(Path("/proc/self/fd").iterdir()))
    found["processes"] = sorted(p.split()[0] for p in found["processes"])
    found["images"] = [p.name for p in paths.IMAGES.rglob("*") if p.is_file()]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found["kilobytes"] = pages * resource.getpagesize() // 1024
    return found


def test_the_switch_dies_and_comes_back(net: Testbed, tmp_path: Path) -> None:
    """Connections survive: the program in the kernel runs on, and the tables are written again."""
    net.run("echo", "h2", SERVER, service=VIP)
    switch = net.mininet["s1"]
    with client(net, tmp_path) as user:
        killed = switch.process.pid
        switch.process.kill()
        link = net.controller.links["s1"]
        assert wait_until(lambda: link.connects == 2 and link.state == "ready", 15.0), link.state
        assert switch.process.pid != killed
        assert net.migrate("echo", "h3").outcome == "completed"
        assert_clean(user.stop())


def test_the_http_api_and_its_command(net: Testbed) -> None:
    """What the original's clients and ours say to a running testbed."""
    net.run("echo", "h2", SERVER, service=VIP)
    assert net.url is not None
    with httpx.Client(base_url=net.url) as http:
        assert [a["name"] for a in _listed(http.get("/apps").json())] == ["echo"]
        assert "/insert_node" in http.get("/openapi.json").json()["paths"]
        node = {"ipv4": "10.0.3.3", "dmac": "08:00:00:00:03:03", "eport": "3"}
        assert http.post("/insert_node", json=node).json() == {"status": "success"}
        again = http.post("/insert_node", json=node)
        assert again.status_code == 409 and "10.0.3.3" in again.json()["error"]
        assert http.post("/delete_node", json={"ipv4": "10.0.3.3"}).json() == {"status": "success"}
        missing = http.post("/delete_node", json={"ipv4": "10.0.4.4"})
        assert missing.status_code == 404 and "10.0.4.4" in missing.json()["error"]
    command = [str(Path(sys.executable).with_name("p4ferry")), "--url", net.url]
    done = subprocess.run(
        [*command, "migrate", "echo", "h3"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [a["host"] for a in net.apps()] == ["h3"]
    done = subprocess.run(
        [*command, "migrate", "echo", "h9"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0 and "h9" in done.stderr and "Traceback" not in done.stderr


def _listed(answer: object) -> list[dict]:
    """Return a list that may be wrapped in an object, or keyed by name."""
    if isinstance(answer, dict):
        inner = next(iter(answer.values()), []) if len(answer) == 1 else answer
        answer = inner if isinstance(inner, list) else [{"name": k, **v} for k, v in answer.items()]
    assert isinstance(answer, list)
    return answer


def test_refusals_come_before_the_freeze(net: Testbed, tmp_path: Path) -> None:
    """A port that is taken at the target, an app or host that is not there: named, and nothing was touched."""
    net.run("echo", "h2", SERVER, service=VIP)
    net.run("other", "h3", SERVER)
    assert wait_until(lambda: "listening" in net.output("other"), 5.0)
    with client(net, tmp_path) as user:
        report = net.migrate("echo", "h3")
        assert report.outcome == "refused" and "7000" in str(report.reason), report
        report = net.migrate("echo", "h2")
        assert report.outcome == "refused" and "h2" in str(report.reason), report
        with pytest.raises(BadApp, match="there is no app ecko"):
            net.migrate("ecko", "h3")
        with pytest.raises(BadNetwork, match="there is no host h7"):
            net.migrate("echo", "h7")
        assert_clean(user.stop())


def test_apps_come_and_go(net: Testbed) -> None:
    """A program that is stopped leaves its service; its name is free again."""
    net.run("echo", "h2", SERVER, service=VIP)
    with pytest.raises(BadApp, match="there is an app echo already, on h2"):
        net.run("echo", "h3", SERVER)
    net.stop("echo")
    assert net.apps() == [] and net.backends() == []
    net.run("echo", "h3", SERVER, service=VIP)
    assert [b["ipv4"] for b in net.backends()] == ["10.0.3.3"]
