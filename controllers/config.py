"""The switches of a controller: a switches.json, and the runtime files that it names.

switches.json has p4containerflow's shape: a list of {id, name, addr, p4info_file_path, bmv2_file_path,
runtime_file, master, lb_nodes}. The one with `master` runs the load balancer. Paths are relative to the file.
A runtime file has the shape of the P4 tutorials' (table_entries with table, match, action_name, action_params);
its multicast groups, clone sessions and default actions of this kind are refused, not ignored. Pure but for reading
the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from finsy import P4TableAction, P4TableEntry, P4TableMatch

from controllers.errors import ConfigError, InvalidRequest
from controllers.rows import Row

MAX_PORT = 511
"""Ports are bit<9> in v1model."""

_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_REFUSED = ("multicast_group_entries", "clone_session_entries")


@dataclass(frozen=True, slots=True)
class LbNode:
    """A backend as the original load balancer names it: an address, and the port and MAC of the next hop."""

    address: IPv4Address
    mac: int
    port: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class SwitchConfig:
    """What the controller must know of one switch; `rows` are written with those of the runtime file."""

    id: int
    name: str
    addr: str
    p4info: Path
    bmv2_json: Path | None
    runtime_file: Path | None = None
    master: bool = False
    lb_nodes: tuple[LbNode, ...] = ()
    rows: tuple[Row, ...] = field(default=())


def parse_mac(text: object, what: str = "MAC address") -> int:
    """Return a unicast MAC address as an integer."""
    if not isinstance(text, str) or not _MAC.fullmatch(text):
        raise InvalidRequest(
            f"{what} {text!r} is not six pairs of hexadecimal digits such as 08:00:00:00:03:03"
        )
    value = int(text.replace(":", ""), 16)
    if value == 0 or value >> 40 & 1:
        raise InvalidRequest(f"{what} {text!r} is not the address of one interface")
    return value


def parse_ipv4(text: object, what: str = "address") -> IPv4Address:
    """Return the address of one host."""
    if not isinstance(text, str):
        raise InvalidRequest(f"{what} {text!r} is not an IPv4 address")
    try:
        address = IPv4Address(text)
    except ValueError as ex:
        raise InvalidRequest(f"{what} {text!r} is not an IPv4 address") from ex
    if (
        address.is_multicast
        or address.is_unspecified
        or address.is_loopback
        or address == IPv4Address("255.255.255.255")
    ):
        raise InvalidRequest(f"{what} {text!r} is not the address of one host")
    return address


def parse_int(value: object, low: int, high: int, what: str) -> int:
    """Return a number, which the original's clients write as a string."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{what} {value!r} is not a number from {low} to {high}")
    return value


def load_switches(path: Path) -> list[SwitchConfig]:
    """Read a switches.json."""
    data = _read_json(path)
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{path}: expected a list of switches")
    switches = [_switch(path, index, entry) for index, entry in enumerate(data)]
    for what in ("id", "name", "addr"):
        values = [getattr(switch, what) for switch in switches]
        if len(set(values)) != len(values):
            raise ConfigError(f"{path}: two switches have the same {what}")
    if sum(switch.master for switch in switches) > 1:
        raise ConfigError(f"{path}: more than one switch is the master")
    return switches


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as ex:
        raise ConfigError(f"{path}: {ex.strerror}") from ex
    except ValueError as ex:
        raise ConfigError(f"{path}: not JSON: {ex}") from ex


def _switch(path: Path, index: int, entry: object) -> SwitchConfig:
    where = f"{path}: switch {index + 1}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected an object")
    try:
        nodes = entry.get("lb_nodes") or []
        if not isinstance(nodes, Sequence) or isinstance(nodes, str):
            raise InvalidRequest("lb_nodes is not a list")
        return SwitchConfig(
            id=parse_int(entry.get("id"), 0, 2**63, "id"),
            name=_text(entry, "name"),
            addr=_text(entry, "addr").replace("0.0.0.0:", "127.0.0.1:"),
            p4info=path.parent / _text(entry, "p4info_file_path"),
            bmv2_json=_optional_path(path, entry, "bmv2_file_path"),
            runtime_file=_optional_path(path, entry, "runtime_file"),
            master=bool(entry.get("master", False)),
            lb_nodes=tuple(_node(node) for node in nodes),
        )
    except InvalidRequest as ex:
        raise ConfigError(f"{where}: {ex}") from ex


def _text(entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{key} is missing")
    return value


def _optional_path(path: Path, entry: Mapping[str, object], key: str) -> Path | None:
    return path.parent / _text(entry, key) if entry.get(key) is not None else None


def _node(node: object) -> LbNode:
    if not isinstance(node, Mapping):
        raise InvalidRequest("a node of lb_nodes is not an object")
    return LbNode(
        parse_ipv4(node.get("ip"), "ip"),
        parse_mac(node.get("mac"), "mac"),
        parse_int(node.get("port"), 1, MAX_PORT, "port"),
        parse_int(node.get("weight", 1), 1, 100, "weight"),
    )


def load_runtime(path: Path) -> list[P4TableEntry]:
    """Read a runtime file's table entries, by names; whether the program has them only its P4Info can tell."""
    data = _read_json(path)
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected an object with table_entries")
    for section in _REFUSED:
        if data.get(section):
            raise ConfigError(f"{path}: {section} is not supported")
    entries = data.get("table_entries", [])
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ConfigError(f"{path}: table_entries is not a list")
    return [_runtime_entry(f"{path}: entry {index + 1}", entry) for index, entry in enumerate(entries)]


def _runtime_entry(where: str, entry: object) -> P4TableEntry:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("table"), str):
        raise ConfigError(f"{where}: expected an object with a table")
    match, params = entry.get("match") or {}, entry.get("action_params") or {}
    if not isinstance(match, Mapping) or not isinstance(params, Mapping):
        raise ConfigError(f"{where}: match and action_params must be objects")
    if not isinstance(entry.get("action_name"), str):
        raise ConfigError(f"{where}: action_name is missing")
    # JSON has no tuples: [address, prefix length], [value, mask] and [low, high] are lists.
    matches = {name: tuple(value) if isinstance(value, list) else value for name, value in match.items()}
    return P4TableEntry(
        entry["table"],
        match=P4TableMatch(matches),
        action=P4TableAction(entry["action_name"], **params),
        priority=int(entry.get("priority", 0)),
        is_default_action=bool(entry.get("default_action", False)),
    )
