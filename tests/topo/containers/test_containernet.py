"""Scripts in containernet's style, in processes of their own: they run, and they leave nothing, however they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.topo.containers.conftest import TOOLS, containers
from topo.containers.engine import Engine
from topo.netem import has_netem
from topo.paths import CHECKOUT
from topo.runs import MARKER, clean_up

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]

BUILD = """
from mininet.cli import CLI
from mininet.link import TCLink
from mininet.log import info, setLogLevel
from mininet.node import Controller, OVSSwitch
from topo.containernet import Containernet

setLogLevel("info")
net = Containernet(controller=Controller)
net.addController("c0")
d1 = net.{add}("d1", ip="10.0.0.251", dimage="{image}", cpu_period=50000, cpu_quota=25000)
d2 = net.{add}("d2", ip="10.0.0.252", dimage="{image}", environment={{"NAME": "second"}})
h1 = net.addHost("h1")
s1 = net.addSwitch("s1")
s2 = net.addSwitch("s2", cls=OVSSwitch)
net.addLink(d1, s1)
net.addLink(s1, s2, cls=TCLink, delay="5ms", bw=10)
net.addLink(s2, d2)
net.addLink(h1, s1)
net.start()
"""
TALK = """
print("loss", net.ping([d1, d2, h1]))
d3 = net.{add}("d3", dimage="{image}")
net.addLink(d3, s1, params1={{"ip": "10.0.0.254/8"}})
d4 = net.{add}("d4", ip="10.0.0.253", dimage="{image}")
net.addLink(d4, s2)
print("loss", net.ping([d1], manualdestip="10.0.0.254"), net.ping([d3, d4, d2]))
net.removeLink(node1=d3, node2=s1)
print("loss", net.ping([d1], manualdestip="10.0.0.254", timeout="1"))
net.removeDocker("d3")
CLI(net)
net.stop()
"""
GROW = """
d3 = net.{add}("d3", dimage="{image}")
net.addLink(d3, s2)
print("READY", flush=True)
"""
"""What there is when a script ends: as many containers and links, made before the start and after it."""


def start(engine: Engine, folder: Path, lines: str) -> subprocess.Popen[str]:
    """Start a script as a user would: with the project's Python, from anywhere."""
    script = folder / "script.py"
    add = {"docker": "addDocker", "podman": "addPodman"}[engine.name]
    script.write_text((BUILD + lines).format(add=add, image=TOOLS))
    environment = {key: value for key, value in os.environ.items() if key != MARKER}
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_script_runs_with_its_import_line_changed(engine: Engine, tmp_path: Path) -> None:
    """addDocker, addLink, start, ping, CLI, stop."""
    process = start(engine, tmp_path, TALK)
    said, _ = process.communicate(
        "d2 hostname\nd2 echo $NAME\nd1 ip -4 addr show d1-eth0\nlinks\nexit\n", timeout=100
    )
    assert process.returncode == 0, said
    losses = [line for line in said.splitlines() if line.startswith("loss")]
    assert losses == ["loss 0.0", "loss 0.0 0.0", "loss 100.0"], said
    assert "second" in said and "inet 10.0.0.251/8" in said, said
    assert "d1-eth0<->s1-eth1 (OK OK)" in said, said
    assert "MISSING" not in said and "rror" not in said and "Traceback" not in said, said
    assert has_netem() or "link s1-s2: the kernel has no netem, the link goes without delay" in said
    assert containers(engine) == []


def test_the_readmes_example(_settings: None, tmp_path: Path) -> None:
    """As printed, but for the image: there is no debian on a new machine."""
    _, example = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example.replace('"debian"', repr(TOOLS)))
    environment = {key: value for key, value in os.environ.items() if key != MARKER}
    done = subprocess.run(
        [sys.executable, script],
        env={**environment, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, " 0% packet loss" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.parametrize("how", ["exception", "Ctrl-C", "kill -9"])
def test_nothing_is_left_however_a_script_ends(engine: Engine, tmp_path: Path, how: str) -> None:
    """A script that ends by itself takes its containers along; after kill -9 the next run, or make clean, does."""
    end = "raise SystemExit(9)" if how == "exception" else "import time; time.sleep(99)"
    process = start(engine, tmp_path, GROW + end)
    assert process.stdout is not None
    said = ""
    while "READY" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    if how != "exception":
        process.send_signal({"Ctrl-C": signal.SIGINT, "kill -9": signal.SIGKILL}[how])
    process.communicate(timeout=60)
    if how == "kill -9":
        assert len(containers(engine)) == 3
        (left,) = clean_up()
        assert (left.containers, left.silent_engines) == (3, ())
    assert containers(engine) == []
