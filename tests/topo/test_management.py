"""Modes and transfers as users ask for them, and the management network that they take."""

from __future__ import annotations

import subprocess

import httpx
import pytest

from topo import management
from topo.errors import BadApp, BadNetwork, TestbedError
from topo.measure import TCP_ECHO
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
VIP = "10.0.0.100:7000"


def inside(bed: Testbed, host: str, *command: str) -> str:
    """Run a command in a host's network namespace."""
    enter = ["nsenter", f"--net=/proc/{bed.hosts[host].pid}/ns/net", *command]
    return subprocess.run(enter, capture_output=True, text=True, check=True).stdout


def beside(bed: Testbed, host: str, *command: str) -> str:
    """Run a command in the namespace of a host's management interface."""
    enter = ["nsenter", f"--net=/proc/{bed.hosts[host].management_place}/ns/net", *command]
    return subprocess.run(enter, capture_output=True, text=True, check=True).stdout


def test_users_ask_for_modes_and_transfers() -> None:
    """Defaults of the testbed, of one migration, and over HTTP; a wrong word is refused with those there are."""
    network = LoadBalancerNetwork(hosts=4)
    with Testbed(network, mode="stop", transfer="shared", management_rate="2gbit") as bed:
        bed.run("echo", "h2", SERVER, VIP)
        report = bed.migrate("echo", "h3").to_json()["transfer"]
        assert (report["mode"], report["via"]) == ("stop", "shared")
        report = bed.migrate("echo", "h4", mode="lazy", transfer="network").to_json()["transfer"]
        assert (report["mode"], report["via"]) == ("lazy", "network")
        with pytest.raises(BadApp, match="there is no mode 'fast'"):
            bed.migrate("echo", "h2", mode="fast")
        asked = {"app": "echo", "destination": "h2"}
        with httpx.Client(base_url=str(bed.url), trust_env=False) as api:
            wrong = api.post("/migrations", json={**asked, "transfer": "disk"})
            assert wrong.status_code == 400
            assert wrong.json() == {"error": "there is no transfer 'disk' (there are: network, shared)"}
            id = api.post("/migrations", json={**asked, "mode": "lazy", "transfer": "shared"}).json()["id"]
            wait_until(lambda: api.get(f"/migrations/{id}").json()["outcome"], 20)
            transfer = api.get(f"/migrations/{id}").json()["transfer"]
        assert (transfer["mode"], transfer["via"]) == ("lazy", "shared")

        # The management network is there beside what programs see, which do not see it.
        assert inside(bed, "h2", "ip", "route", "show", "default").strip().endswith("dev h2-eth0")
        assert "mgmt" not in inside(bed, "h2", "ip", "addr", "show")
        assert str(management.address(2)) in beside(bed, "h2", "ip", "-4", "addr", "show", "h2-mgmt")
        assert "rate 2Gbit" in beside(bed, "h2", "tc", "qdisc", "show", "dev", "h2-mgmt")
        beside(bed, "h2", "ping", "-c1", "-W2", str(management.address(4)))


def test_mistakes_are_told_before_anything_is_built() -> None:
    """Wrong words for the whole testbed."""
    with pytest.raises(TestbedError, match="there is no mode 'fast'"):
        Testbed(mode="fast")
    with pytest.raises(TestbedError, match="there is no transfer 'disk'"):
        Testbed(transfer="disk")
    with pytest.raises(BadNetwork, match="'fast' is not a bandwidth"):
        Testbed(management_rate="fast")
