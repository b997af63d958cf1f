"""containernet's parameters, and what is said about mistakes in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from topo.containers import docker_engine
from topo.containers.limits import Limits
from topo.containers.spec import ContainerSpec, parse_spec
from topo.errors import BadNetwork
from topo.network_api import NetworkAPI


def test_an_image_is_enough() -> None:
    """Everything else has containernet's defaults; no network of the engine's."""
    spec = parse_spec("d1", "ubuntu:trusty", ip="10.0.0.251", mac=None, defaultRoute="via 10.0.0.1")
    assert spec == ContainerSpec("ubuntu:trusty")
    assert (spec.network_mode, spec.cap_add, spec.command) == ("none", ("NET_ADMIN", "NET_RAW"), None)


@pytest.mark.parametrize(
    ("asked", "field", "value"),
    [
        ({"dcmd": "sh -c 'sleep 9'"}, "command", ("sh", "-c", "sleep 9")),
        ({"dcmd": ["sleep", "9"]}, "command", ("sleep", "9")),
        ({"environment": {"A": 1, "B": None}}, "environment", {"A": "1", "B": ""}),
        ({"environment": ["A=1=2"]}, "environment", {"A": "1=2"}),
        (
            {"volumes": ["/a:/b:ro", "data:/d", "/anonymous"]},
            "volumes",
            ("/a:/b:ro", "data:/d", "/anonymous"),
        ),
        ({"volumes": {"/a": {"bind": "/b", "mode": "ro"}}}, "volumes", ("/a:/b:ro",)),
        ({"volumes": ["./a:/b"]}, "volumes", (f"{Path.cwd()}/a:/b",)),
        ({"tmpfs": ["/run:size=1m"]}, "tmpfs", {"/run": "size=1m"}),
        ({"cpus": 0.5}, "limits", Limits(cpu_quota=50000, cpu_period=100000)),
        ({"mem_limit": "64m", "cpu_shares": 20}, "limits", Limits(cpu_shares=20, mem_limit=64 << 20)),
        ({"port_bindings": {80: 8080}}, "port_bindings", {"80/tcp": "8080"}),
        ({"port_bindings": {"53/udp": ("127.0.0.1", 53)}}, "port_bindings", {"53/udp": "127.0.0.1:53"}),
        ({"ports": [80, (53, "udp")]}, "ports", ("80", "53/udp")),
        ({"cap_add": ["sys_time", "CAP_NET_RAW"]}, "cap_add", ("SYS_TIME", "NET_RAW", "NET_ADMIN")),
        ({"sysctls": {"net.ipv4.ip_forward": 1}}, "sysctls", {"net.ipv4.ip_forward": "1"}),
        ({"devices": "/dev/net/tun"}, "devices", ("/dev/net/tun",)),
        ({"shm_size": "64mb"}, "shm_size", 64 << 20),
        ({"dns": ["10.0.0.53"]}, "dns", ("10.0.0.53",)),
        ({"network_mode": None, "labels": None}, "network_mode", "none"),
    ],
)
def test_parameters(asked: dict[str, Any], field: str, value: object) -> None:
    """In all the ways that containernet's users write them."""
    assert getattr(parse_spec("d1", "x", **asked), field) == value


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dimage": None}, 'd1: a container host needs an image: dimage="NAME"'),
        ({"cpu_qouta": 1}, "d1: a container host has no parameter cpu_qouta; did you mean cpu_quota?"),
        (
            {"build_params": {}},
            "d1: build_params is not supported: build the image first, with docker build or podman build",
        ),
        ({"volumes": ["a:b"]}, "d1: volume 'a:b' is not SOURCE:TARGET[:MODE] with an absolute TARGET"),
        ({"mem_limit": "x"}, "d1: mem_limit 'x' is no size such as 64m or 67108864"),
        (
            {"mem_limit": 9, "memswap_limit": 8},
            "d1: memswap_limit 8 is less than mem_limit 9: it counts memory and swap together",
        ),
        (
            {"network_mode": "host"},
            "d1: network_mode 'host' is not none (links are added with addLink) or bridge",
        ),
        ({"port_bindings": {"http": 80}}, "d1: port_bindings 'http': 80 does not bind a port to a port"),
        ({"cap_add": 5}, "d1: 'int' object is not iterable"),
    ],
)
def test_mistakes(asked: dict[str, Any], message: str) -> None:
    """Refused when the host is described, long before anything is made; one sentence each."""
    net = NetworkAPI()
    for add in (net.addDocker, net.addPodman):
        with pytest.raises(BadNetwork, match=f"^{re.escape(message)}$"):
            add("d1", **{"dimage": "x", **asked})
    assert net.hosts() == []


@pytest.mark.parametrize(
    ("reason", "lacks"),
    [
        (
            'OCI runtime create failed: runc create failed: … process: exec: "x": executable file not found',
            True,
        ),
        (
            'OCI runtime create failed: … caused: exec: "/x": stat /x: no such file or directory: unknown',
            True,
        ),
        ("OCI runtime create failed: … error mounting: no such file or directory", False),
        (
            'AppArmor … could not be loaded: … error: exec: "apparmor_parser": executable file not found',
            False,
        ),
    ],
)
def test_only_the_images_own_command_is_missed(reason: str, lacks: bool) -> None:
    assert docker_engine._lacks_command(reason) is lacks
