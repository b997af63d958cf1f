"""Packets for some endpoints of a host are dropped, until that is over or somebody cleans up after it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from moving import Stage, stage

from migration.dropping import Dropping, End
from migration.model import Host
from migration.steering import IpProtocol

pytestmark = pytest.mark.net

# Asks a datagram socket at each of the ports of an address, and prints which ports heard it.
ASK = """
import socket, sys
address = sys.argv[1]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
ears = [socket.socket(family, socket.SOCK_DGRAM) for _ in sys.argv[2:]]
for ear, port in zip(ears, sys.argv[2:]):
    ear.bind((address, int(port)))
    ear.settimeout(0.2)
    socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", (address, int(port)))
for ear in ears:
    try:
        ear.recv(1)
        print(ear.getsockname()[1], end=" ")
    except TimeoutError:
        pass
"""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


def enter(host: Host) -> list[str]:
    """Return what runs a command in a host's network."""
    return ["nsenter", f"--net=/proc/{host.pid}/ns/net"]


def heard(host: Host, address: str) -> str:
    """Return which ports of 5001 and 5002 are heard at an address of a host."""
    command = [*enter(host), "/usr/bin/python3", "-c", ASK, address, "5001", "5002"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def tables(host: Host) -> list[str]:
    """List the firewall's tables of a host."""
    done = subprocess.run([*enter(host), "nft", "list", "tables"], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_one_endpoint_of_two(scene: Stage, address: str) -> None:
    """Of either family, and nothing stays when it is over."""
    host = scene.hosts["B"]
    assert heard(host, address) == "5001 5002"
    with Dropping(host.pid, "m1-within", [End(IpProtocol.UDP, ip_address(address), 5001)]):
        assert heard(host, address) == "5002"
    assert heard(host, address) == "5001 5002"
    assert tables(host) == []


def test_what_a_killed_controller_left(scene: Stage) -> None:
    """Whoever recovers takes away what is CRIU's or ours at both hosts, and nothing else."""
    app = scene.serve("B")
    for place in "BC":
        host = scene.hosts[place]
        Dropping(host.pid, "m1", [End(IpProtocol.TCP, ip_address("10.77.2.2"), 7000)])
        for name in ("CRIU-1", "mine"):
            subprocess.run([*enter(host), "nft", "add", "table", "inet", name], check=True)
        assert sorted(tables(host)) == ["CRIU-1", "mine", "p4ferry_m1"]
    scene.runtime.tidy(app, scene.hosts["C"])
    assert [tables(scene.hosts[place]) for place in "BC"] == [["mine"], ["mine"]]
    scene.runtime.terminate(app)
