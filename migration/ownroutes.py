"""Routes of a host by which packets for its own address leave it, for the switch (hairpinning, RFC 4787, 6).

Linux gives what is sent to one of its own addresses to itself, without asking anybody. Three times that is wrong here:

  - the address is the identity of a program that has moved away: who calls it from its first host means that program;
  - a program has moved to the host of its peer, or to where its peer was first: its connection's other end has the
    address that the host has now, and is known to the switch under another one;
  - what comes from a moved program's port has to be given its identity by the switch, also for a receiver beside it.

So single ports (rules with a protocol and ports, Linux 4.17) take a routing table whose only way leads to the gateway.
The rules are for what the host itself sends (`iif lo`, ip-rule(8)); what arrives is still its own. What comes back has
the host's own address as its source, which the kernel takes with accept_local only (networking/ip-sysctl).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from .namespaces import in_netns

TABLE = 7479
"""The routing table whose only route leads to the gateway; any number that nobody else has."""
INNER, OUTER, LOCAL = 10, 20, 100
"""Priorities. The rule for local addresses has 0, before which there is none, so it goes behind ours."""
_MAIN, _LOCAL_TABLE = 254, 255  # <linux/rtnetlink.h>: RT_TABLE_MAIN, RT_TABLE_LOCAL
_INET = 2
_ACCEPT_LOCAL = Path("/proc/sys/net/ipv4/conf/all/accept_local")
FAILURES = (OSError, NetlinkError)
"""What `read` and `write` raise."""
_writing = threading.Lock()


@dataclass(frozen=True, slots=True)
class OwnRoute:
    """Which of the packets that a host sends to its own address are meant: by protocol and ports, 0 for any."""

    protocol: int
    source_port: int
    port: int
    is_inner: bool = False
    """They stay in the host: a connection whose two ends have moved together."""

    def involves(self, protocol: int, port: int) -> bool:
        """Say whether one of the two ends is this one."""
        return self.protocol == protocol and port in (self.source_port, self.port)


def read(pid: int) -> set[OwnRoute]:
    """Return the routes of the host that a process is in; raises one of FAILURES."""

    def look() -> set[OwnRoute]:
        with IPRoute() as ip:
            return set(_read(ip))

    return in_netns(pid, look)


def write(pid: int, address: IPv4Address, new: Collection[OwnRoute], old: Collection[OwnRoute] = ()) -> None:
    """Add and remove routes of the host that a process is in; those that are there, or gone, are left.

    A host without a default route has no switch to route by, and is left as it is. Raises one of FAILURES.
    """

    def change() -> None:
        with _writing, IPRoute() as ip:
            there = _read(ip)
            if missing := [route for route in new if route not in there]:
                if not _prepare(ip):
                    return
                for route in missing:
                    ip.rule("add", **_rule(route, address))
            for route in old:
                if (priority := there.get(route)) is not None:
                    ip.rule("del", **{**_rule(route, address), "priority": priority})

    in_netns(pid, change)


def _prepare(ip: IPRoute) -> bool:
    """Make the table, and let rules go before that for local addresses; say whether there is a gateway."""
    first = [m for m in ip.get_rules(family=_INET) if m["table"] == _LOCAL_TABLE and _priority(m) == 0]
    gateway = next(iter(ip.get_default_routes(family=_INET, table=_MAIN)), None)
    if gateway is None:
        return False
    ip.route(
        "replace",
        dst="default",
        gateway=gateway.get_attr("RTA_GATEWAY"),
        oif=gateway.get_attr("RTA_OIF"),
        table=TABLE,
    )
    _ACCEPT_LOCAL.write_text("1\n")
    if first:
        ip.rule("add", table=_LOCAL_TABLE, priority=LOCAL)
        ip.rule("del", table=_LOCAL_TABLE, priority=0)
    return True


def _read(ip: IPRoute) -> dict[OwnRoute, int]:
    """Return the routes with their priorities."""
    found = {}
    for message in ip.get_rules(family=_INET):
        priority = _priority(message)
        if priority in (INNER, OUTER):
            source, port = (_port(message.get_attr(name)) for name in ("FRA_SPORT_RANGE", "FRA_DPORT_RANGE"))
            found[OwnRoute(message.get_attr("FRA_IP_PROTO") or 0, source, port, priority == INNER)] = priority
    return found


def _rule(route: OwnRoute, address: IPv4Address) -> dict[str, Any]:
    ports = {"sport_range": route.source_port, "dport_range": route.port}
    return {
        "priority": INNER if route.is_inner else OUTER,
        "table": _LOCAL_TABLE if route.is_inner else TABLE,
        "iifname": "lo",
        "dst": str(address),
        "dst_len": 32,
        "ip_proto": route.protocol,
        **{name: f"{port}:{port}" for name, port in ports.items() if port},
    }


def _priority(message: Any) -> int:
    return int(message.get_attr("FRA_PRIORITY") or 0)


def _port(text: str | None) -> int:
    """Read "7000:7000"."""
    return int(text.partition(":")[0]) if text else 0


def leads(routes: Iterable[OwnRoute], protocol: int, source_port: int, port: int) -> bool:
    """Say whether a packet between two ports of the host goes over the switch."""
    fitting = [
        route
        for route in routes
        if route.protocol == protocol and route.source_port in (0, source_port) and route.port in (0, port)
    ]
    return bool(fitting) and not any(route.is_inner for route in fitting)
