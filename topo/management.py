"""The management network: a second link of every host, over which images and memory pages of migrations travel.

    h1-mgmt 172.31.0.1/16 ──┐
    h2-mgmt 172.31.0.2/16 ──┤ bridge
    …                       ┘

Each interface, and the bridge, is in a network namespace of its own, so programs do not see it: one that binds to
each address of its host would have one that the next host has not. Its links can be limited with a token bucket in
each direction. The interfaces are made over netlink, in a few messages for each host, and vanish with the namespaces
that they are in.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from migration.namespaces import in_netns
from topo.errors import TestbedError

NAMESPACE = "mgmt"  # what the keeper calls the process that holds the bridge's namespace
BRIDGE = "mgmt0"
NETWORK = IPv4Interface("172.31.0.0/16")
# A bucket holds at least one GSO packet; TBF would cut it up otherwise.
_MIN_BURST = 128 << 10
_LATENCY = 0.05


def address(number: int) -> IPv4Address:
    """Return the management address of host number N."""
    return NETWORK.ip + number


def interface(host: str) -> str:
    """Return the name of a host's management interface."""
    return f"{host}-mgmt"


def build(bridge: int, hosts: Mapping[str, int], numbers: Mapping[str, int], rate: int | None) -> None:
    """Join hosts (names and PIDs) through a bridge in the namespace of the process `bridge`.

    `rate` limits each link, in bits a second.
    """
    try:
        in_netns(bridge, lambda: _make_bridge(hosts, rate))
        for name, pid in hosts.items():
            in_netns(pid, partial(_configure, interface(name), address(numbers[name]), rate))
    except (NetlinkError, OSError) as ex:
        raise TestbedError(f"the management network cannot be built: {ex}") from ex


def _make_bridge(hosts: Mapping[str, int], rate: int | None) -> None:
    with IPRoute() as ip:
        ip.link("add", ifname=BRIDGE, kind="bridge")
        (master,) = ip.link_lookup(ifname=BRIDGE)
        ip.link("set", index=master, state="up")
        for name, pid in hosts.items():
            peer = {"ifname": interface(name), "net_ns_pid": pid}
            ip.link("add", ifname=name, kind="veth", peer=peer, master=master, state="up")
            if rate is not None:
                _limit(ip, name, rate)


def _configure(name: str, own: IPv4Address, rate: int | None) -> None:
    with IPRoute() as ip:
        (index,) = ip.link_lookup(ifname=name)
        ip.addr("add", index=index, address=str(own), prefixlen=NETWORK.network.prefixlen)
        ip.link("set", index=index, state="up")
        if rate is not None:
            _limit(ip, name, rate)


def _limit(ip: IPRoute, name: str, rate: int) -> None:
    """Let an interface send no faster than `rate` bits a second."""
    (index,) = ip.link_lookup(ifname=name)
    bytes_a_second = rate // 8
    burst = max(_MIN_BURST, bytes_a_second // 250)
    bucket: dict[str, Any] = {
        "rate": bytes_a_second,
        "burst": burst,
        "limit": burst + int(bytes_a_second * _LATENCY),
    }
    ip.tc("add", "tbf", index, 0x10000, **bucket)
