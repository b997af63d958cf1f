"""Rows: keys, differences, and the way to P4Runtime messages and back."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from finsy import P4Schema, P4TableEntry
from hypothesis import given
from hypothesis import strategies as st

from controllers import rows
from controllers.codec import RowCodec
from controllers.errors import ConfigError
from controllers.rows import Change, Op, Row
from migration.steering import Endpoint
from tests.controllers.conftest import VIP, tcp

CLIENT, HOME = tcp("10.0.1.1", 40000), tcp("10.0.2.2")
EVERY = [
    rows.speak_as(rows.connection_source_key(HOME, CLIENT), VIP),
    rows.speak_as(rows.endpoint_source_key(HOME), VIP),
    rows.pin_to_backend(CLIENT, VIP, 1, 2),
    rows.pin_to_location(CLIENT, HOME, tcp("10.0.3.3")),
    rows.stay_as(HOME, CLIENT, VIP),
    rows.stay_at(CLIENT, VIP, HOME),
    rows.serve(VIP, 1),
    rows.direct(HOME, 0),
    rows.send_identity_to(HOME, tcp("10.0.3.3")),
    rows.maglev_slot(1, 0, 5),
    rows.backend_at(5, HOME),
    rows.hold_for(HOME, 7),
    rows.route(IPv4Network("10.0.2.0/24"), 2, 1, 2),
    rows.route(IPv4Network("0.0.0.0/0"), 2, 1, 2),
    rows.arp_reply(IPv4Address("10.0.0.100"), 0x0270340001),
    rows.echo_reply(IPv4Address("10.0.0.100")),
]

small = st.dictionaries(st.integers(0, 5), st.integers(1, 3)).map(
    lambda slots: rows.by_key([rows.maglev_slot(1, slot, backend) for slot, backend in slots.items()])
)


@pytest.mark.parametrize("row", EVERY, ids=lambda row: f"{row.table}-{row.action}")
def test_there_and_back(row: Row, program: tuple[Path, Path]) -> None:
    """Every row survives the way through a message."""
    schema = P4Schema(program[0])
    codec = RowCodec(schema)
    assert codec.row(P4TableEntry.decode_entry(codec.entry(row), schema)) == row


@given(small, small)
def test_a_difference_leads_there(current: dict[rows.Key, Row], wanted: dict[rows.Key, Row]) -> None:
    """Applied one by one, the changes make one set out of the other, and none is superfluous."""
    table = dict(current)
    for change in rows.diff(current, wanted):
        assert (change.row.key in table) == (change.op is not Op.INSERT)
        if change.op is Op.DELETE:
            del table[change.row.key]
        else:
            assert table.get(change.row.key) != change.row
            table[change.row.key] = change.row
    assert table == wanted


def test_an_empty_switch_gets_its_routes_last() -> None:
    """Nothing flows before everything is there."""
    changes = rows.diff({}, rows.by_key(reversed(EVERY)))
    tables = [change.row.table for change in changes]
    assert tables[-3:] == ["destination", "route", "route"]


def test_endpoints_of_keys() -> None:
    """Both ends of a connection's key can be read."""
    key = rows.connection_key(CLIENT, VIP)
    assert (rows.first_endpoint(key), rows.second_endpoint(key)) == (CLIENT, VIP)
    assert rows.first_endpoint(rows.hold_key(HOME)) == HOME
    assert isinstance(rows.first_endpoint(key), Endpoint)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("nat", (1,), "drop"), "no table 'nat'"),
        (Row("arp", (1,), "fly"), "table 'arp' has no action 'fly'"),
    ],
)
def test_what_the_program_lacks_is_named(row: Row, message: str, program: tuple[Path, Path]) -> None:
    """A row that does not fit is not sent."""
    with pytest.raises(ConfigError, match=message):
        RowCodec(P4Schema(program[0])).update(Change(Op.INSERT, row))
