"""A network is up when its switches forward, and a switch that cannot says why."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from topo.errors import SwitchFailed
from topo.network_api import NetworkAPI
from topo.switches import _serves

PATCH = Path(__file__).parent / "programs" / "patch.p4"


def test_an_open_port_is_no_server() -> None:
    """Our switch opens its port before it has loaded its program; nobody answers there yet."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert not _serves(port)
    assert not _serves(port)


@pytest.mark.net
def test_the_first_packet_is_forwarded() -> None:
    """As soon as startNetwork returns."""
    with NetworkAPI() as net:
        net.addP4RuntimeSwitch("s1")
        net.setP4Source("s1", PATCH)
        for number in (1, 2):
            net.addHost(f"h{number}", ip=f"10.0.0.{number}/24")
            net.addLink(f"h{number}", "s1", port2=number)
        net.startNetwork()
        assert net.net is not None
        net.net.staticArp()
        assert "1 received" in net.net["h1"].cmd("ping -c 1 -W 1 10.0.0.2")


@pytest.mark.net
def test_a_program_that_the_engine_refuses_ends_the_start(tmp_path: Path) -> None:
    """With the switch's name and the reason; nothing runs afterwards."""
    refused = PATCH.read_text().replace(
        "standard_metadata.egress_spec = 1;", "clone(CloneType.I2E, 5); standard_metadata.egress_spec = 1;"
    )
    (tmp_path / "cloning.p4").write_text(refused)
    net = NetworkAPI()
    net.addP4RuntimeSwitch("s1")
    net.setP4Source("s1", tmp_path / "cloning.p4")
    net.addHost("h1", ip="10.0.0.1/24")
    net.addLink("h1", "s1")
    with pytest.raises(SwitchFailed, match=r"^s1: .*clone"):
        net.startNetwork()
    assert net.net is None
