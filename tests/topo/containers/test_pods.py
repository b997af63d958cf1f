"""Pods on P4 switches, with real engines: one address for several containers, which talk over localhost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.topo.containers.conftest import BARE, TOOLS, apart, containers, kill_when_ready
from tests.topo.containers.test_container_hosts import route
from topo import paths
from topo.containers.engine import Engine
from topo.containers.leftovers import remove_containers
from topo.containers.pod import Pod
from topo.errors import BadNetwork, ContainerFailed
from topo.network_api import NetworkAPI
from topo.runs import clean_up
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
NC = ["sh", "-c", "while true; do nc -l -p 7000 -e cat; done"]


def test_a_pod_is_a_host(engine: Engine, tmp_path: Path) -> None:
    """Its containers share address and localhost, and nothing else; the machine's commands see its network."""
    with NetworkAPI(log_dir=tmp_path) as net:
        net.addP4RuntimeSwitch("s1", p4_src=paths.P4SRC / "forward.p4")
        net.addHost("h1")
        net.addPod("p1", engine=engine.name, sysctls={"net.ipv4.ip_forward": 1})
        net.addLink("h1", "s1")
        net.addLink("p1", "s1")
        net.l3()
        net.startNetwork()
        mininet = net.net
        assert mininet is not None
        asyncio.run(route(net, (1, "h1"), (2, "p1")))
        h1, pod = mininet["h1"], mininet["p1"]
        pod.addContainer("server", TOOLS, NC)
        pod.addContainer("other", TOOLS, environment={"COLOUR": "green"}, mem_limit="64m")
        assert {member.name for member in pod.containers()} == {"mn.server", "mn.other"}

        assert pod.IP() == "10.1.2.2"
        assert " 0% packet loss" in h1.cmd("ping -c 1 -W 2 10.1.2.2")
        assert "default via 10.1.2.1" in pod.run_in("other", "ip", "route")
        assert "default via 10.1.2.1" in pod.cmd("ip route")
        assert pod.cmd("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"
        assert pod.cmd("test -e /usr/bin/python3 && echo the machine").strip() == "the machine"
        assert pod.pexec("ip", "addr", "show", "p1-eth0")[2] == 0
        talk = "echo over localhost | nc -w 2 127.0.0.1 7000"
        assert wait_until(lambda: "over localhost" in pod.run_in("other", "sh", "-c", talk), 10.0, 0.1)
        hello = f"{sys.executable} -c \"import socket; s = socket.create_connection(('10.1.2.2', 7000)); " + (
            "s.sendall(b'from outside'); print(s.recv(99))\""
        )
        assert "from outside" in h1.cmd(hello)
        assert pod.run_in("other", "hostname").strip() == "p1"
        started = time.monotonic()
        pod.run_in("other", "nslookup", "p4ferry.invalid")
        assert time.monotonic() - started < 3  # no name server is waited for
        assert pod.run_in("other", "sh", "-c", "echo $COLOUR $$").split()[0] == "green"
        assert "nc" not in pod.run_in("other", "ps")  # processes are a container's own

        pod.addContainer("brief", TOOLS, "sleep 0.5")
        assert wait_until(lambda: pod._member("brief").pid == 0, 5.0, 0.1)
        with pytest.raises(BadNetwork, match="the container brief of p1 does not run any more"):
            pod.run_in("brief", "true")
        pod.removeContainer("brief")
        pod.removeContainer("server")
        assert [member.name for member in pod.containers()] == ["mn.other"]
        with pytest.raises(BadNetwork, match=r"p1 has no container server \(there are: other\)"):
            pod.removeContainer("server")
        with pytest.raises(BadNetwork, match=r"p1: image .* has no nothing"):
            pod.addContainer("x", TOOLS, "nothing")
        with pytest.raises(ContainerFailed, match="x ended at once: so"):
            pod.addContainer("x", TOOLS, ["sh", "-c", "echo so; exit 3"])
        with pytest.raises(BadNetwork, match="no image p4ferry-test/nothing, and none is pulled"):
            pod.addContainer("x", "p4ferry-test/nothing")
        with pytest.raises(ContainerFailed, match="other"):  # a name is taken once
            pod.addContainer("other", TOOLS)
        assert len(pod.containers()) == 1 and pod.containers()[0].pid != 0

        net.addPod("p2", engine=engine.name)
        net.addLink("p2", "s1")
        asyncio.run(route(net, (3, "p2")))
        assert " 0% packet loss" in mininet["p2"].cmd("ping -c 1 -W 2 10.1.2.2")
        net.removePod("p2")
        assert " 0% packet loss" in h1.cmd("ping -c 1 -W 2 10.1.2.2")


def test_ports_of_a_pod_are_published(engine: Engine) -> None:
    """A port of the machine leads to whichever container listens."""
    pod = Pod("p1", engine, port_bindings={7000: ("127.0.0.1", 0)})
    try:
        pod.config()
        pod.addContainer("server", TOOLS, NC)
        assert pod._published is not None
        port = pod._published.at["7000/tcp"]
        command = ["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}; echo hello >&3; timeout 2 head -n1 <&3"]

        def answer() -> bool:
            return "hello" in subprocess.run(command, capture_output=True, text=True, check=False).stdout

        assert wait_until(answer, 10.0, 0.1)
    finally:
        pod.terminate()


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"engine": "lxc"}, "p1: 'lxc' is not an engine of pods (there are: docker, podman)"),
    ({"dimage": "x"}, "p1: a pod has no parameter dimage; it has cores, defaultRoute, inNamespace"),
    ({"port_bindings": {"x": 1}}, "p1: port_bindings 'x': 1 does not bind a port to a port"),
]


@pytest.mark.parametrize(("params", "message"), MISTAKES)
def test_mistakes_about_pods(params: dict[str, Any], message: str) -> None:
    """One sentence, when the pod is described."""
    net = NetworkAPI()
    with pytest.raises(BadNetwork) as raised:
        net.addPod("p1", **params)
    assert str(raised.value).startswith(message)
    assert net.hosts() == []


def test_what_is_the_pods_is_refused_of_its_containers(engine: Engine) -> None:
    """With the name of what is to be asked instead."""
    pod = Pod("p1", engine)
    try:
        for params in (
            {"ip": "10.0.0.1/8"},
            {"network_mode": "bridge"},
            {"sysctls": {"net.x": 1}},
            {"ports": [1]},
        ):
            (name,) = params
            with pytest.raises(BadNetwork, match=f"c: {name} is a matter of its pod: give it to addPod"):
                pod.addContainer("c", BARE, "sleep 1000", **params)  # type: ignore[arg-type]
        assert pod.containers() == []
    finally:
        pod.terminate()


def test_kill_9_leaves_what_the_next_run_removes(engine: Engine) -> None:
    """Pods with their containers are found by their label."""
    code = (
        "import sys, time; from topo.containers.pod import Pod\n"
        "for name in ('p1', 'p2'):\n"
        f"    Pod(name, {engine.name!r}).addContainer('c' + name, {TOOLS!r})\n"
        "print('READY', flush=True); time.sleep(99)"
    )
    kill_when_ready(apart(code))
    assert len(containers(engine)) == 4
    (left,) = clean_up()
    assert (left.containers, left.silent_engines) == (4, ())
    assert containers(engine) == []
    assert remove_containers(paths.RUNS / left.run) == (0, [])
