"""Links with a rate, delay, jitter and loss: what programs in the hosts see of them, in both directions."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from topo import paths
from topo.netem import has_netem
from topo.network_api import NetworkAPI

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]


def network(**options: Any) -> NetworkAPI:
    """Describe two hosts at a switch that forwards between them; the first one's link has settings."""
    net = NetworkAPI()
    net.addP4RuntimeSwitch("s1")
    net.setP4Source("s1", paths.CHECKOUT / "tests" / "topo" / "programs" / "patch.p4")
    net.addHost("h1", ip="10.0.0.1/24", mac="08:00:00:00:00:01")
    net.addHost("h2", ip="10.0.0.2/24", mac="08:00:00:00:00:02")
    net.addLink("h1", "s1", port2=1, **options)
    net.addLink("h2", "s1", port2=2)
    return net


def start(net: NetworkAPI) -> Any:
    """Start, with static ARP."""
    net.startNetwork()
    assert net.net is not None
    net.net.staticArp()
    return net.net


def test_rate_is_kept() -> None:
    """TCP gets what a link of 20 Mbit/s has, and not more; HTB is in every kernel."""
    with network(bw=20) as net:
        hosts = start(net)
        hosts["h2"].cmd("iperf3 -s -1 -D")
        hosts.waitConnected()
        for _ in range(50):
            if ":5201" in hosts["h2"].cmd("ss -Hltn"):
                break
        result = json.loads(hosts["h1"].cmd("iperf3 -c 10.0.0.2 -t 4 -J"))
        rate = result["end"]["sum_received"]["bits_per_second"] / 1e6
    assert 10 < rate < 21


@pytest.mark.skipif(not has_netem(), reason="this kernel has no netem")
def test_delay_holds_in_both_directions() -> None:
    """40 ms there and 40 ms back, with jitter."""
    with network(delay=40, jitter="2ms") as net:
        out = start(net)["h1"].cmd("ping -c 10 -i 0.2 10.0.0.2")
    times = [float(ms) for ms in re.findall(r"time=([0-9.]+) ms", out)]
    assert len(times) == 10, out
    assert min(times) > 70
    assert sorted(times)[5] < 200


@pytest.mark.skipif(not has_netem(), reason="this kernel has no netem")
def test_loss_is_as_asked() -> None:
    """With 30 % in each direction about half of the pings come back: 200 of them, between a third and two thirds."""
    with network(loss=30) as net:
        out = start(net)["h1"].cmd("ping -q -c 200 -i 0.02 10.0.0.2")
    received = re.search(r"(\d+) received", out)
    assert received is not None, out
    assert 66 < int(received[1]) < 134


@pytest.mark.skipif(has_netem(), reason="this kernel has netem")
def test_missing_netem_is_said_once_for_a_link(caplog: pytest.LogCaptureFixture) -> None:
    """The link goes without, and everything else works."""
    with network(delay=40, bw=100) as net:
        assert "0% packet loss" in start(net)["h1"].cmd("ping -c 2 -i 0.1 10.0.0.2")
    assert caplog.text.count("link h1-s1: the kernel has no netem, the link goes without delay") == 1
    assert "Error" not in caplog.text
