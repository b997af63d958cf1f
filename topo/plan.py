"""The load balancer's networks as data: hosts, switches, links, and the tables' static entries.

`single`:   every host on s1, the load balancer.
`triangle`: h1 on s1; h2 on s2; h3 and up on s3; s1, s2 and s3 joined in a triangle. s2 and s3 run `forward.p4`; what
            a host sends always goes up to s1 (the third side carries nothing), since only s1 knows where programs live.

Pure: values in, values out. Addresses are design.md's: hN is 10.0.N.N/24 with MAC 08:00:00:00:0N:NN, its gateway, the
switch, 10.0.N.254.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from topo.compile import Target
from topo.errors import BadNetwork

GRPC_BASE = 9559
LOAD_BALANCER = "load_balancer"
FORWARD = "forward"
MAX_HOSTS = 200


class Topology(str, Enum):
    """The networks that `lb.py` can build."""

    SINGLE = "single"
    TRIANGLE = "triangle"


@dataclass(frozen=True)
class LoadBalancerNetwork:
    """What the user asks for; `plan` works out the rest."""

    hosts: int = 4
    topology: Topology | str = Topology.SINGLE
    target: Target | str = Target.EBPF

    def __post_init__(self) -> None:
        """Raise BadNetwork for a network that cannot be built."""
        if not 3 <= self.hosts <= MAX_HOSTS:
            raise BadNetwork(
                f"{self.hosts} hosts: a client and two servers are needed, and {MAX_HOSTS} is most"
            )
        for kind, value in ((Topology, self.topology), (Target, self.target)):
            try:
                kind(value)
            except ValueError as ex:
                choices = ", ".join(member.value for member in kind)
                raise BadNetwork(f"{kind.__name__.lower()} {value!r} is not one of {choices}") from ex


@dataclass(frozen=True)
class HostPlan:
    """A host: its number gives all its addresses."""

    number: int
    switch: str
    port: int

    @property
    def name(self) -> str:
        return f"h{self.number}"

    @property
    def interface(self) -> IPv4Interface:
        return IPv4Interface(f"10.0.{self.number}.{self.number}/24")

    @property
    def address(self) -> IPv4Address:
        return self.interface.ip

    @property
    def mac(self) -> str:
        return f"08:00:00:00:{self.number:02x}:{self.number:02x}"

    @property
    def gateway(self) -> IPv4Address:
        return IPv4Address(f"10.0.{self.number}.254")

    @property
    def gateway_mac(self) -> str:
        """The switch's MAC on this host's port."""
        return f"08:00:00:00:{self.number:02x}:fe"


@dataclass(frozen=True)
class Trunk:
    """A link between two switches."""

    left: str
    left_port: int
    right: str
    right_port: int

    def mac(self, switch: str) -> str:
        """Return the MAC of `switch`'s end."""
        port = self.left_port if switch == self.left else self.right_port
        return f"08:00:00:ff:{int(switch[1:]):02x}:{port:02x}"

    def ends(self, switch: str) -> tuple[int, str, str]:
        """Return what an entry needs to send over this link from `switch`: port, own MAC, the other's MAC."""
        other = self.right if switch == self.left else self.left
        port = self.left_port if switch == self.left else self.right_port
        return port, self.mac(switch), self.mac(other)


@dataclass(frozen=True)
class SwitchPlan:
    """A switch, and the rows that its tables start with (in the runtime-file format of the P4 tutorials)."""

    name: str
    device_id: int
    grpc_port: int
    program: str
    entries: tuple[dict[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class NetworkPlan:
    """Everything that is to be built."""

    hosts: tuple[HostPlan, ...]
    switches: tuple[SwitchPlan, ...]
    trunks: tuple[Trunk, ...]


def plan(network: LoadBalancerNetwork) -> NetworkPlan:
    """Work out a network."""
    triangle = Topology(network.topology) is Topology.TRIANGLE
    homes = [_home(number, triangle) for number in range(1, network.hosts + 1)]
    free = dict.fromkeys(("s1", "s2", "s3"), 1)
    hosts = []
    for number, home in enumerate(homes, 1):
        hosts.append(HostPlan(number, home, free[home]))
        free[home] += 1
    trunks: list[Trunk] = []
    if triangle:
        for left, right in (("s1", "s2"), ("s1", "s3"), ("s2", "s3")):
            trunks.append(Trunk(left, free[left], right, free[right]))
            free[left] += 1
            free[right] += 1
    names = ("s1", "s2", "s3") if triangle else ("s1",)
    switches = tuple(
        SwitchPlan(
            name,
            device_id,
            GRPC_BASE + device_id - 1,
            LOAD_BALANCER if name == "s1" else FORWARD,
            tuple(_entries(name, hosts, trunks)),
        )
        for device_id, name in enumerate(names, 1)
    )
    return NetworkPlan(tuple(hosts), switches, tuple(trunks))


def _home(number: int, triangle: bool) -> str:
    if not triangle or number == 1:
        return "s1"
    return "s2" if number == 2 else "s3"


def _entries(switch: str, hosts: list[HostPlan], trunks: list[Trunk]) -> Iterator[dict[str, Any]]:
    """Yield a switch's rows: its own addresses, then its routes."""
    for host in hosts:
        network = host.interface.network
        if host.switch == switch:
            yield from _own_address(host.gateway, host.gateway_mac)
            yield _route(network, host.port, host.gateway_mac, host.mac)
            if switch != "s1":
                yield _uplink(host.port, *_trunk(trunks, switch, "s1").ends(switch))
        elif switch == "s1":
            yield _route(network, *_trunk(trunks, "s1", host.switch).ends("s1"))
    if switch != "s1":
        yield _route(IPv4Network("0.0.0.0/0"), *_trunk(trunks, switch, "s1").ends(switch))


def _trunk(trunks: list[Trunk], one: str, other: str) -> Trunk:
    return next(trunk for trunk in trunks if {trunk.left, trunk.right} == {one, other})


def _own_address(address: IPv4Address, mac: str) -> Iterator[dict[str, Any]]:
    yield _entry("arp", {"address": str(address)}, "arp_reply", {"mac": mac})
    yield _entry("echo", {"address": str(address)}, "echo_reply", {})


def _route(network: IPv4Network, port: int, src_mac: str, dst_mac: str) -> dict[str, Any]:
    params = {"port": port, "src_mac": src_mac, "dst_mac": dst_mac}
    if network.prefixlen == 0:  # P4Runtime writes "any" by leaving the field out, or as the default action
        return {
            "table": "route",
            "default_action": True,
            "action_name": "forward",
            "action_params": params,
        }
    return _entry("route", {"address": [str(network.network_address), network.prefixlen]}, "forward", params)


def _uplink(ingress: int, port: int, src_mac: str, dst_mac: str) -> dict[str, Any]:
    params = {"port": port, "src_mac": src_mac, "dst_mac": dst_mac}
    return _entry("uplink", {"port": ingress}, "forward_up", params)


def _entry(table: str, match: dict[str, Any], action: str, params: dict[str, Any]) -> dict[str, Any]:
    return {
        "table": table,
        "match": match,
        "action_name": action,
        "action_params": params,
    }
