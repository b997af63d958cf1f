"""Container hosts on P4 switches, with real engines: addresses from outside, commands inside, limits, changes."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import finsy
import pytest

from tests.topo.containers.conftest import BARE, TOOLS, containers
from topo import paths
from topo.containers.cgroups import read_limits
from topo.containers.engine import Engine
from topo.containers.host import CONTAINER_HOSTS, ContainerHost
from topo.errors import BadNetwork, ContainerFailed, MissingTool
from topo.network_api import NetworkAPI

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]


def add(net: NetworkAPI, engine: Engine, name: str, **params: Any) -> None:
    """Add a container host of an engine."""
    method = {"docker": net.addDocker, "podman": net.addPodman}[engine.name]
    method(name, **{"dimage": TOOLS, **params})


async def route(net: NetworkAPI, *ports: tuple[int, str]) -> None:
    """Write the routes to hosts: their port at s1, and their number in l3's addresses."""
    assert net.net is not None
    program = net.program("s1")
    options = finsy.SwitchOptions(p4info=program.p4info, p4blob=program.bmv2_json)
    async with finsy.Switch("s1", net.net["s1"].grpc_address, options) as switch:
        for port, name in ports:
            action = finsy.P4TableAction(
                "forward", port=port, src_mac="08:00:00:00:00:01", dst_mac=net.net[name].MAC()
            )
            match = finsy.P4TableMatch({"address": f"10.1.{port}.0/24"})
            await switch.insert([finsy.P4TableEntry("route", match=match, action=action)])


def test_a_container_is_a_host(engine: Engine, tmp_path: Path) -> None:
    """On a P4 switch beside a process host; one more comes and goes while the network runs."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "note").write_text("of the machine\n")
    with NetworkAPI(log_dir=tmp_path) as net:
        net.addP4RuntimeSwitch("s1", p4_src=paths.P4SRC / "forward.p4")
        net.addHost("h1")
        add(
            net,
            engine,
            "c1",
            environment={"COLOUR": "green"},
            volumes=[f"{tmp_path}/data:/data:ro"],
            tmpfs=["/scratch"],
        )
        net.addLink("h1", "s1")
        net.addLink("c1", "s1")
        net.l3()
        net.startNetwork()
        mininet = net.net
        assert mininet is not None
        asyncio.run(route(net, (1, "h1"), (2, "c1")))
        h1, c1 = mininet["h1"], mininet["c1"]

        assert c1.IP() == "10.1.2.2"
        assert " 0% packet loss" in h1.cmd("ping -c 2 -i 0.2 -W 2 10.1.2.2")
        assert " 0% packet loss" in c1.cmd("ping -c 1 -W 2 10.1.1.2")
        assert "default via 10.1.2.1" in c1.cmd("ip route")
        assert {"data", "scratch"} < set(c1.cmd("ls /").split())
        assert c1.cmd("cat /data/note").strip() == "of the machine"
        assert c1.cmd("hostname; echo $COLOUR; echo $((6 * 7))").split() == ["c1", "green", "42"]
        assert int(c1.cmd("echo $PPID").strip()) == 0  # its parent is outside its process namespace
        assert int(c1.cmd("ulimit -Hn").strip()) <= int(h1.cmd("ulimit -Hn").strip())
        _commands(c1)

        add(net, engine, "c2")
        net.addLink("c2", "s1")
        asyncio.run(route(net, (3, "c2")))
        assert mininet["c2"].IP() == "10.1.3.2"
        assert " 0% packet loss" in c1.cmd("ping -c 1 -W 2 10.1.3.2")
        net.removeLink("c2", "s1")
        assert "100% packet loss" in c1.cmd("ping -c 1 -W 1 10.1.3.2")
        net.removeHost("c2")
        assert net.hosts() == ["h1", "c1"] and len(containers(engine)) == 1
        assert " 0% packet loss" in c1.cmd("ping -c 1 -W 2 10.1.1.2")


def _commands(host: ContainerHost) -> None:
    """Mininet's ways to run commands all work: in the background, as a Popen, with another shell after the first."""
    host.cmd("sleep 1000 &")
    assert host.lastPid and f"{host.lastPid}" in host.cmd("pidof sleep").split()
    out, err, status = host.pexec("sh", "-c", "echo to stdout; echo to stderr >&2; exit 3")
    assert (out, err, status) == ("to stdout\n", "to stderr\n", 3)
    host.cmd("exit")
    assert host.cmd("echo again").strip() == "again"
    host.sendCmd("sleep 1000")
    host.sendInt()  # Ctrl-C
    host.waitOutput()
    assert host.cmd("echo still").strip() == "still"


def test_limits_hold_and_change_at_once(engine: Engine) -> None:
    """They are read back from the control groups, which commands typed in the CLI are in, too."""
    host = CONTAINER_HOSTS[engine.name](
        "c1", TOOLS, cpu_quota=25000, cpu_period=50000, cpu_shares=20, cpuset_cpus="0", mem_limit="64m"
    )
    try:
        limits = read_limits(host.pid)
        assert (limits.cpu_quota, limits.cpu_period, limits.cpuset_cpus) == (25000, 50000, "0")
        assert limits.mem_limit == 64 << 20
        assert limits.cpu_shares is not None and abs(limits.cpu_shares - 20) < 30  # v2 rounds weights
        host.updateCpuLimit(cpu_quota=10000, cores="0-1" if (os.cpu_count() or 1) > 1 else "0")
        host.updateMemoryLimit(mem_limit="256m")
        limits = read_limits(host.pid)
        assert (limits.cpu_quota, limits.cpu_period, limits.mem_limit) == (10000, 50000, 256 << 20)
        assert limits.cpuset_cpus == ("0-1" if (os.cpu_count() or 1) > 1 else "0")
        host.updateCpuLimit(cpu_quota=-1)
        assert read_limits(host.pid).cpu_quota == -1
        assert host.cmd("cat /proc/self/cgroup") == host.cmd("cat /proc/1/cgroup") != ""
        with pytest.raises(BadNetwork, match="c1: memswap_limit 1048576 is less than mem_limit 268435456"):
            host.updateMemoryLimit(memswap_limit="1m")
        with pytest.raises(BadNetwork, match="c1: cpu_quota 5 is less than 1000 microseconds"):
            host.updateCpuLimit(cpu_quota=5)
    finally:
        host.terminate()


def test_an_image_without_a_shell_is_a_host_too(engine: Engine) -> None:
    """Its network is configured all the same; a command gets a sentence."""
    with NetworkAPI() as net:
        net.addP4RuntimeSwitch("s1", p4_src=paths.P4SRC / "forward.p4")
        net.addHost("h1")
        add(net, engine, "c1", dimage=BARE, dcmd="sleep 1000")
        net.addLink("h1", "s1")
        net.addLink("c1", "s1")
        net.l3()
        net.startNetwork()
        assert net.net is not None
        asyncio.run(route(net, (1, "h1"), (2, "c1")))
        assert " 0% packet loss" in net.net["h1"].cmd("ping -c 1 -W 2 10.1.2.2")
        for _ in range(2):
            said = net.net["c1"].cmd("ls")
            assert said.strip() == "c1: its image has no shell, so no command can be typed into it"
        assert net.net["c1"].pexec("ls")[2] == 127


def test_mistakes_are_named(engine: Engine) -> None:
    """One sentence each, and nothing is left of the attempt."""
    cls = CONTAINER_HOSTS[engine.name]
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"dimage": "p4ferry-test/nothing"},
            f"c1: {engine.name} has no image p4ferry-test/nothing, and none is pulled",
        ),
        ({"dimage": BARE}, f"c1: image {BARE} has no command and no shell: give one"),
        ({"dimage": TOOLS, "dcmd": "nothing"}, f"c1: image {TOOLS} has no nothing"),
    ]
    for params, message in cases:
        with pytest.raises(BadNetwork, match=message):
            cls("c1", **params)
        assert containers(engine) == []
    for params in ({"sysctls": {"no.such": "1"}}, {"devices": ["/dev/nothing"]}):
        with pytest.raises(ContainerFailed, match=f"{engine.name} cannot (make|start) mn.c1: .+"):
            cls("c1", TOOLS, **params)
        assert containers(engine) == []


def test_a_name_is_taken_once(engine: Engine) -> None:
    """Somebody else's container of the same name is not touched, unless the user says so."""
    cls = CONTAINER_HOSTS[engine.name]
    first = cls("c1", TOOLS)
    try:
        with pytest.raises(ContainerFailed, match=r"mn\.c1"):
            cls("c1", TOOLS)
        assert engine.pid(first.container) == first.pid
        cls("c1", TOOLS, rm=True).terminate()
        assert engine.pid(first.container) == 0
    finally:
        first.terminate()


def test_ports_are_published_without_the_engines_network(engine: Engine) -> None:
    """A port of the machine leads to the container's, both ways and at full length."""
    host = CONTAINER_HOSTS[engine.name]("c1", TOOLS, port_bindings={7000: ("127.0.0.1", 0)})
    try:
        host.config()  # the loopback, as for every host of a network
        host.cmd("nc -l -p 7000 -e cat &")
        assert host._published is not None
        sent = os.urandom(1 << 20)
        for _ in range(100):  # until nc listens
            received = _echoed(host._published.at["7000/tcp"], sent)
            if received:
                break
        assert received == sent
    finally:
        host.terminate()


def _echoed(port: int, data: bytes) -> bytes:
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        sender = threading.Thread(target=_send, args=(connection, data))
        sender.start()
        try:
            while chunk := connection.recv(1 << 16):
                received += chunk
        except ConnectionError:
            return b""
        finally:
            sender.join()
    return received


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # nobody listens yet
        return


def test_an_engine_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what to type."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(MissingTool, match=r"Docker does not answer at unix://.*: start its daemon"):
        CONTAINER_HOSTS["docker"]("c1", TOOLS)
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv("PATH", "/nowhere")
    if not Path("/var/run/docker.sock").exists():
        with pytest.raises(MissingTool, match="Docker is not installed; type: make setup CONTAINERS=1"):
            CONTAINER_HOSTS["docker"]("c1", TOOLS)
    with pytest.raises(MissingTool, match="Podman is not installed; type: make setup CONTAINERS=1"):
        CONTAINER_HOSTS["podman"]("c1", TOOLS)
