"""switches.json and runtime files: what is read, and what is refused with a sentence."""

from __future__ import annotations

import json
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from controllers.config import load_runtime, load_switches, parse_int, parse_ipv4, parse_mac
from controllers.errors import ConfigError, InvalidRequest

SWITCH: dict[str, Any] = {
    "id": 0,
    "name": "s1",
    "addr": "0.0.0.0:50051",
    "p4info_file_path": "build/lb.p4info.txt",
    "bmv2_file_path": "build/lb.json",
    "runtime_file": "config/s1.json",
    "master": True,
    "lb_nodes": [{"ip": "10.0.2.2", "mac": "08:00:00:00:02:02", "port": 2}],
}


def write(folder: Path, data: object) -> Path:
    """Write a JSON file."""
    path = folder / "switches.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_the_originals_file(tmp_path: Path) -> None:
    """Paths are relative to the file, an address for listening is one for calling."""
    (switch,) = load_switches(write(tmp_path, [SWITCH]))
    assert (switch.id, switch.name, switch.addr, switch.master) == (0, "s1", "127.0.0.1:50051", True)
    assert switch.p4info == tmp_path / "build/lb.p4info.txt"
    assert switch.runtime_file == tmp_path / "config/s1.json"
    (node,) = switch.lb_nodes
    assert (node.address, node.mac, node.port) == (IPv4Address("10.0.2.2"), 0x080000000202, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not JSON"),
        ({}, "expected a list"),
        ([], "expected a list"),
        ([7], "switch 1: expected an object"),
        ([{**SWITCH, "name": None}], "switch 1: name is missing"),
        ([{**SWITCH, "id": "x"}], "switch 1: id 'x' is not a number"),
        (
            [{**SWITCH, "lb_nodes": [{"ip": "10.0.2", "mac": "", "port": 1}]}],
            "ip '10.0.2' is not an IPv4 address",
        ),
        ([SWITCH, {**SWITCH, "name": "s2", "addr": "x:1"}], "two switches have the same id"),
        ([SWITCH, {**SWITCH, "id": 1, "name": "s2", "addr": "x:1"}], "more than one switch is the master"),
    ],
)
def test_refusals(tmp_path: Path, data: object, message: str) -> None:
    """The message says where and what."""
    with pytest.raises(ConfigError, match=message):
        load_switches(write(tmp_path, data))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(ConfigError, match=r"none\.json: No such file"):
        load_switches(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected an object"),
        (
            {"multicast_group_entries": [{"multicast_group_id": 1}]},
            "multicast_group_entries is not supported",
        ),
        ({"clone_session_entries": [{}]}, "clone_session_entries is not supported"),
        ({"table_entries": 3}, "table_entries is not a list"),
        ({"table_entries": [{"match": {}}]}, "entry 1: expected an object with a table"),
        ({"table_entries": [{"table": "t"}]}, "entry 1: action_name is missing"),
        (
            {"table_entries": [{"table": "t", "match": 1, "action_name": "a"}]},
            "entry 1: match and action_params",
        ),
    ],
)
def test_runtime_refusals(tmp_path: Path, data: object, message: str) -> None:
    """What is not supported is refused, not ignored."""
    with pytest.raises(ConfigError, match=message):
        load_runtime(write(tmp_path, data))


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.256", "224.0.0.1", "0.0.0.0", "127.0.0.1", "::1", None, 3]
)
def test_addresses_that_are_none(text: object) -> None:
    """Only one host's IPv4 address is one."""
    with pytest.raises(InvalidRequest, match="address"):
        parse_ipv4(text)


@pytest.mark.parametrize(
    "text", ["", "08:00:00:00:03", "08-00-00-00-03-03", "01:00:00:00:00:01", "00:00:00:00:00:00", 5]
)
def test_macs_that_are_none(text: object) -> None:
    """Only one interface's MAC address is one."""
    with pytest.raises(InvalidRequest, match="MAC"):
        parse_mac(text)


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (3, 3),
        ("3", 3),
        (" 3 ", 3),
        ("x", None),
        (0, None),
        (10, None),
        (True, None),
        ("-1", None),
        (2.0, None),
    ],
)
def test_numbers(value: object, parsed: int | None) -> None:
    """Numbers may be written as strings, as the original's clients do."""
    if parsed is not None:
        assert parse_int(value, 1, 9, "eport") == parsed
        return
    with pytest.raises(InvalidRequest, match=r"eport .* is not a number from 1 to 9"):
        parse_int(value, 1, 9, "eport")
