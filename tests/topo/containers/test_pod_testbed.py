"""Testbeds whose hosts are pods, with real engines: containers and plain programs in them, services, the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from migration.namespaces import in_netns
from tests.topo.containers.conftest import TOOLS, apart, containers, kill_when_ready
from topo import paths
from topo.containers.engine import Engine
from topo.errors import BadApp
from topo.measure import TCP_ECHO
from topo.runs import clean_up
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
VIP = "10.0.0.100:7000"
SERVER = ["sh", "-c", "echo ready; while true; do nc -l -p 7000 -e cat; done"]
PYTHON = "/usr/bin/python3"


def call(host_pid: int) -> bytes:
    """Ask the service from a host; a server of nc is away for a moment after each connection."""
    address, port = VIP.split(":")

    def once() -> bytes:
        with in_netns(host_pid, lambda: socket.create_connection((address, int(port)), 5)) as connection:
            connection.settimeout(5)
            connection.sendall(b"hello")
            return connection.recv(100)

    replies: list[bytes] = []

    def answers() -> bool:
        try:
            replies.append(once())
        except OSError:
            return False
        return bool(replies[-1])

    wait_until(answers, 10.0, 0.1)
    return replies[-1] if replies else b""


def test_hosts_are_pods(engine: Engine) -> None:
    """A container serves a VIP, a plain program on another pod is its client and moves; both are seen and ended."""
    with Testbed(LoadBalancerNetwork(hosts=3), hosts=engine.name) as net:
        running = net.run("echo", "h2", SERVER, service=VIP, image=TOOLS)
        app, host = running.app, net.hosts["h2"]
        assert app.engine is not None and app.engine.engine == engine.name
        assert engine.pid(app.engine.id) == app.pid
        assert host.sandbox == net.host("h2").pod != ""
        assert host.pid != app.pid
        assert Path(f"/proc/{host.pid}/ns/net").readlink() == Path(f"/proc/{app.pid}/ns/net").readlink()
        assert [member.name for member in net.host("h2").containers()] == ["mn.echo"]
        assert net.output("echo") == "ready\n"
        assert call(net.hosts["h1"].pid) == b"hello"
        assert "mgmt" not in net.host("h3").cmd("ip link")
        place = f"--net=/proc/{net.hosts['h1'].management_place}/ns/net"
        subprocess.run(["nsenter", place, "ping", "-c1", "-W2", str(net.hosts["h3"].management)], check=True)

        net.run("plain", "h1", [PYTHON, str(TCP_ECHO), "server", "--port", "7001"], service="10.0.0.101:7001")
        assert {row["name"]: row["state"] for row in net.apps()} == {"echo": "running", "plain": "running"}
        report = net.migrate("plain", "h3")
        assert (report.outcome, report.runtime) == ("completed", "process"), report.reason
        with pytest.raises(BadApp, match="plain programs and an engine's containers cannot move together"):
            net.migrate(["echo", "plain"], "h1")
        _mistakes(net)

        net.run("short", "h3", ["sh", "-c", "sleep 0.5; echo over"], image=TOOLS)
        assert wait_until(lambda: net.apps()[-1]["state"] == "ended", 5.0)
        assert net.output("short") == "over\n"
        net.stop("echo")
        assert net.host("h2").containers() == []
        assert [service["backends"] for service in net.services() if service["name"] == VIP] in (
            [],
            [[]],
            [0],
        )
        net.stop("short")
    assert containers(engine) == []


def _mistakes(net: Testbed) -> None:
    """One sentence each, and nothing is left of the attempt."""
    cases = [
        ({"name": "h3"}, "h3 is the name of a host, and so of a container"),
        ({"image": "/srv"}, "x: the folder /srv is no image that (docker|podman) can start"),
        ({"image": "no-such"}, "has no image no-such, and none is pulled"),
        ({"argv": ["nothing"]}, f"image {TOOLS} has no nothing"),
        ({"argv": ["sh", "-c", "echo so; exit 3"]}, "x ended at once: so"),
        ({"group": "g"}, "x: a container can have neither a group nor a cwd"),
        ({"volumes": ["a:b"]}, "x: volume 'a:b' is not SOURCE:TARGET"),
    ]
    for asked, message in cases:
        with pytest.raises(BadApp, match=message):
            net.run(**{"name": "x", "host": "h3", "argv": SERVER, "image": TOOLS, **asked})  # type: ignore[arg-type]
    with pytest.raises(BadApp, match=r"does not listen on TCP port 9|ended at once: brief"):
        net.run("x", "h3", ["sh", "-c", "sleep 0.3; echo brief"], service="10.0.0.102:9", image=TOOLS)
    assert net.host("h3").containers() == []


def start(engine: Engine) -> subprocess.Popen[str]:
    """Start a testbed of three pods and a container in a process of its own."""
    code = (
        "import sys; from topo.testbed import LoadBalancerNetwork, Testbed\n"
        f"with Testbed(LoadBalancerNetwork(hosts=3), hosts={engine.name!r}) as net:\n"
        f"    net.run('echo', 'h2', {SERVER!r}, service={VIP!r}, image={TOOLS!r})\n"
        "    print('READY', flush=True); sys.stdin.readline()"
    )
    return apart(code)


def test_ctrl_c_while_pods_are_made(engine: Engine) -> None:
    """Whatever there was by then is gone, also what nobody had the id of; Podman's own commands get the signal, too."""
    process = start(engine)
    assert wait_until(lambda: len(containers(engine)) >= 2, 20.0, 0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in said
    assert containers(engine) == []


def test_kill_9(engine: Engine) -> None:
    """The next run removes pods, their containers and their networks."""
    kill_when_ready(start(engine))
    assert len(containers(engine)) == 4
    (left,) = clean_up()
    assert (left.containers, left.silent_engines) == (4, ())
    assert containers(engine) == []


def test_pods_are_taken_over(engine: Engine) -> None:
    """After kill -9 containers run on, and so they do in the run that takes them over; more can be started in it."""
    kill_when_ready(start(engine))
    with Testbed.recover() as net:
        (app,) = net.apps()
        assert (app["name"], app["host"], app["state"]) == ("echo", "h2", "running")
        assert call(net.hosts["h1"].pid) == b"hello"
        assert net.output("echo") == "ready\n" and net.hosts["h2"].sandbox == net.host("h2").pod
        net.run("plain", "h2", [PYTHON, str(TCP_ECHO), "server", "--port", "7001"], service="10.0.0.101:7001")
        assert net.migrate("plain", "h3").outcome == "completed"
        net.run("other", "h3", SERVER, image=TOOLS)
        net.stop("echo")
        assert {member.name for host in ("h2", "h3") for member in net.host(host).containers()} == {
            "mn.other"
        }
    assert containers(engine) == []


def test_the_main_program(engine: Engine, tmp_path: Path) -> None:
    """`--hosts`, and `run … --image` in its CLI; ended by the end of the script."""
    script = tmp_path / "script"
    script.write_text(
        f"run echo h2 --image {TOOLS} --service {VIP} -- {SERVER[0]} -c '{SERVER[2]}'\n"
        "apps\nh1 ping -c 1 -W 2 10.0.2.2\nh1 ip -4 addr show h1-eth0\n"
    )
    lb = [
        sys.executable,
        str(paths.CHECKOUT / "topo" / "lb.py"),
        "--http-port",
        "5096",
        "--hosts",
        engine.name,
    ]
    done = subprocess.run(
        [*lb, "--script", str(script)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "echo runs on h2 (process" in done.stdout
    assert " 0% packet loss" in done.stderr and "inet 10.0.1.1/24" in done.stderr  # Mininet's own output
    assert containers(engine) == []


def test_no_docker_gets_one_sentence(tmp_path: Path) -> None:
    """With what to type, before anything is built."""
    lb = [sys.executable, str(paths.CHECKOUT / "topo" / "lb.py"), "--hosts", "docker", "--demo", "echo"]
    done = subprocess.run(
        lb,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"},
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("lb.py: Docker does not answer at unix://") and "scripts/dockerd" in line
