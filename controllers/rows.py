"""Rows of the load balancer's tables, as plain values, and the differences between sets of them.

A `Row` is what a table entry means, without P4Info: names are those of p4src/load_balancer.p4, values are unsigned
integers in the order in which the program declares keys and parameters. The builders below are the only place
that knows these orders. Pure: `codec` turns rows into P4Runtime messages, `tables` writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network

from migration.steering import Endpoint, IpProtocol

REASON_BARRIER, REASON_HELD, REASON_GUARDED, REASON_DIRECT, REASON_HELD_SOURCE = 1, 2, 3, 4, 5
"""As in load_balancer.p4."""

Value = int | tuple[int, int] | None
"""A match: exact or optional an integer; lpm (value, prefix length); ternary (value, mask); range (low, high)."""

Key = tuple[str, tuple[Value, ...], int]
"""What identifies a row: table, match, priority."""


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of one table."""

    table: str
    match: tuple[Value, ...]
    action: str
    params: tuple[int, ...] = ()
    priority: int = 0

    @property
    def key(self) -> Key:
        """Return what identifies the row in its switch."""
        return (self.table, self.match, self.priority)


class Op(Enum):
    """What a change does to a table."""

    DELETE = "delete"
    MODIFY = "modify"
    INSERT = "insert"


@dataclass(frozen=True, slots=True)
class Change:
    """One step from one set of rows to another."""

    op: Op
    row: Row


# Without a route nothing flows, and without a destination nothing is balanced: these come last, so that a switch
# that is filled again never sends an established connection elsewhere.
_LAST = {"destination": 1, "route": 2}


def rank(table: str) -> int:
    """Return a table's place in the order in which an empty switch is filled."""
    return _LAST.get(table, 0)


def diff(current: Mapping[Key, Row], wanted: Mapping[Key, Row]) -> list[Change]:
    """Return the changes that make `wanted` out of `current`: first what is new or different, then what goes."""
    upserts = sorted(
        (row for key, row in wanted.items() if current.get(key) != row), key=lambda r: rank(r.table)
    )
    changes = [Change(Op.MODIFY if row.key in current else Op.INSERT, row) for row in upserts]
    changes += [Change(Op.DELETE, row) for key, row in current.items() if key not in wanted]
    return changes


def by_key(rows: Iterable[Row]) -> dict[Key, Row]:
    """Return rows under their keys; the last one of a key wins."""
    return {row.key: row for row in rows}


def _flat(endpoint: Endpoint) -> tuple[int, int]:
    return int(endpoint.address), endpoint.port


def _keyed(endpoint: Endpoint) -> tuple[int, int, int]:
    return int(endpoint.protocol), int(endpoint.address), endpoint.port


def _pair(source: Endpoint, destination: Endpoint) -> tuple[int, int, int, int, int]:
    return (*_keyed(source), *_flat(destination))


def endpoint_of(protocol: int, address: int, port: int) -> Endpoint:
    """Return the endpoint that three integers of a row mean."""
    return Endpoint(IpProtocol(protocol), IPv4Address(address), port)


# ---- keys


def connection_source_key(location: Endpoint, peer: Endpoint) -> Key:
    """Return the key of what an endpoint is called when it talks to one peer."""
    return ("connection_source", _pair(location, peer), 0)


def endpoint_source_key(location: Endpoint) -> Key:
    """Return the key of what an endpoint is called by everybody else."""
    return ("endpoint_source", _keyed(location), 0)


def connection_key(source: Endpoint, destination: Endpoint) -> Key:
    """Return the key of a connection's pin, by identities."""
    return ("connection", _pair(source, destination), 0)


def destination_key(identity: Endpoint) -> Key:
    """Return the key of where an identity lives."""
    return ("destination", _keyed(identity), 0)


def hold_key(location: Endpoint) -> Key:
    """Return the key of a location's hold."""
    return ("hold", _keyed(location), 0)


def hold_source_key(location: Endpoint) -> Key:
    """Return the key of the hold of what a location sends."""
    return ("hold_source", _keyed(location), 0)


def holding_key(hold: int) -> Key:
    """Return the key of a hold of what goes to its endpoints."""
    return ("holding", (hold,), 0)


def holding_source_key(hold: int) -> Key:
    """Return the key of a hold of what its endpoints send."""
    return ("holding_source", (hold,), 0)


# ---- rows


def speak_as(key: Key, identity: Endpoint) -> Row:
    """Let the source of `key` carry an identity."""
    return Row(key[0], key[1], "speak_as", _flat(identity))


def pin_to_backend(source: Endpoint, destination: Endpoint, service: int, backend: int) -> Row:
    """Keep a service's connection with its backend, wherever that moves."""
    return Row("connection", _pair(source, destination), "pin_to_backend", (service, backend))


def pin_to_location(source: Endpoint, destination: Endpoint, location: Endpoint) -> Row:
    """Send one connection's packets to a location."""
    return Row("connection", _pair(source, destination), "pin_to_location", _flat(location))


def stay_as(location: Endpoint, peer: Endpoint, identity: Endpoint) -> Row:
    """Let one connection's location carry an identity, also while others there are held."""
    key = connection_source_key(location, peer)
    return Row(key[0], key[1], "stay_as", _flat(identity))


def stay_at(source: Endpoint, destination: Endpoint, location: Endpoint) -> Row:
    """Send one connection's packets to a location, also while others there are held."""
    return Row("connection", _pair(source, destination), "stay_at", _flat(location))


def serve(identity: Endpoint, service: int, guarded: bool = False) -> Row:
    """Let a service answer at an identity."""
    return Row("destination", _keyed(identity), "serve_guarded" if guarded else "serve", (service,))


def send_identity_to(identity: Endpoint, location: Endpoint) -> Row:
    """Let an identity live at a location."""
    return Row("destination", _keyed(identity), "send_to", _flat(location))


def direct(address: Endpoint, backend: int) -> Row:
    """Report openings of connections to an endpoint that speaks as somebody else."""
    return Row("destination", _keyed(address), "direct", (backend,))


def maglev_slot(service: int, slot: int, backend: int) -> Row:
    """Give a slot of a service to a backend."""
    return Row("maglev", (service, slot), "choose", (backend,))


def backend_at(backend: int, location: Endpoint) -> Row:
    """Let a backend live at a location."""
    return Row("backend", (backend,), "send_to", _flat(location))


def hold_for(location: Endpoint, hold: int) -> Row:
    """Let a location belong to a hold."""
    return Row("hold", _keyed(location), "hold_for", (hold,))


def hold_source_for(location: Endpoint, hold: int) -> Row:
    """Let what a location sends belong to a hold."""
    return Row("hold_source", _keyed(location), "hold_for", (hold,))


def holding(hold: int) -> Row:
    """Keep every packet for a hold's locations."""
    return Row("holding", (hold,), "keep", (REASON_HELD,))


def holding_source(hold: int) -> Row:
    """Keep every packet from a hold's locations."""
    return Row("holding_source", (hold,), "keep", (REASON_HELD_SOURCE,))


def route(network: IPv4Network, port: int, src_mac: int, dst_mac: int) -> Row:
    """Send what goes to a network out of a port, to a next hop (both programs have this table)."""
    return Row(
        "route", ((int(network.network_address), network.prefixlen),), "forward", (port, src_mac, dst_mac)
    )


def arp_reply(address: IPv4Address, mac: int) -> Row:
    """Answer ARP requests for an address (both programs have this table)."""
    return Row("arp", (int(address),), "arp_reply", (mac,))


def echo_reply(address: IPv4Address) -> Row:
    """Answer pings of an address (both programs have this table)."""
    return Row("echo", (int(address),), "echo_reply")


# ---- reading


def target(row: Row, protocol: int) -> Endpoint:
    """Return the endpoint in the parameters of speak_as, send_to, pin_to_location and their like."""
    address, port = row.params
    return endpoint_of(protocol, address, port)


def _endpoint_at(key: Key, at: int) -> Endpoint:
    protocol, address, port = key[1][0], key[1][at], key[1][at + 1]
    assert isinstance(protocol, int) and isinstance(address, int) and isinstance(port, int)
    return endpoint_of(protocol, address, port)


def first_endpoint(key: Key) -> Endpoint:
    """Return the endpoint of a key, or the source of a connection's key."""
    return _endpoint_at(key, 1)


def second_endpoint(key: Key) -> Endpoint:
    """Return the destination (or peer) in a connection's key."""
    return _endpoint_at(key, 3)
