"""The hosts as the controller must know them: where they are plugged in, and whose network namespace is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address


@dataclass(frozen=True, slots=True)
class Host:
    """One host; `pid` is a process in its network namespace, `port` that of the switch it is plugged into."""

    name: str
    pid: int
    address: IPv4Address
    mac: str
    switch: str
    port: int


Hosts = Mapping[str, Host]
"""By name; whoever builds the network keeps it up to date."""
