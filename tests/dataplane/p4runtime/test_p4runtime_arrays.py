"""Counters and registers over real gRPC."""

from __future__ import annotations

from typing import Any

import pytest
from finsy.proto import p4d, p4r

from dataplane.switch.pipeline import CounterValue
from tests.dataplane.p4runtime.client import (
    Client,
    action,
    codes,
    entry,
    exact_entry,
    failure,
    insert,
    modify,
)
from tests.dataplane.p4runtime.conftest import ModelSwitch
from tests.dataplane.p4runtime.programs import BYTES_ID, COUNTER_ID, DROP_ID, EXACT_ID, LPM_ID, REGISTER_ID

INVALID, OUT_OF_RANGE, NOT_FOUND = 3, 11, 5


def update(kind: int = p4r.Update.MODIFY, **entity: Any) -> p4r.Update:
    return p4r.Update(type=kind, entity=p4r.Entity(**entity))


def counter(
    counter_id: int = COUNTER_ID, index: int | None = None, packets: int = 0, octets: int = 0
) -> p4r.CounterEntry:
    message = p4r.CounterEntry(counter_id=counter_id)
    if index is not None:
        message.index.index = index
    if packets or octets:
        message.data.packet_count, message.data.byte_count = packets, octets
    return message


def register(
    value: bytes | None = None, index: int | None = None, register_id: int = REGISTER_ID
) -> p4r.RegisterEntry:
    message = p4r.RegisterEntry(register_id=register_id)
    if index is not None:
        message.index.index = index
    if value is not None:
        message.data.CopyFrom(p4d.P4Data(bitstring=value))
    return message


def test_counter_cells(ready: Client, switch: ModelSwitch) -> None:
    """One cell, all cells, all counters; the undeclared unit stays zero."""
    switch.engine.running.counters["Ingress.octets"][2] = CounterValue(7, 70)
    ready.write(update(counter_entry=counter(index=3, packets=5, octets=50)))
    (one,) = ready.read(p4r.Entity(counter_entry=counter(index=3)))
    assert one.counter_entry == counter(index=3, packets=5, octets=50)
    assert len(ready.read(p4r.Entity(counter_entry=counter()))) == 8
    assert len(ready.read(p4r.Entity(counter_entry=p4r.CounterEntry()))) == 16
    (octets,) = ready.read(p4r.Entity(counter_entry=counter(BYTES_ID, 2)))
    assert (octets.counter_entry.data.packet_count, octets.counter_entry.data.byte_count) == (0, 70)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (INVALID, p4r.Update.INSERT, counter(index=1)),
        (INVALID, p4r.Update.DELETE, counter(index=1)),
        (INVALID, p4r.Update.MODIFY, counter()),
        (INVALID, p4r.Update.MODIFY, counter(index=-1)),
        (OUT_OF_RANGE, p4r.Update.MODIFY, counter(index=8)),
        (INVALID, p4r.Update.MODIFY, counter(counter_id=4, index=0)),
        (INVALID, p4r.Update.MODIFY, counter(index=1, packets=-3)),
    ],
)
def test_wrong_counter_writes(ready: Client, code: int, kind: int, message: p4r.CounterEntry) -> None:
    """Cells can only be modified, within the array, to counts."""
    assert codes(failure(lambda: ready.write(update(kind, counter_entry=message)))) == [code]


def test_direct_counters(ready: Client, switch: ModelSwitch) -> None:
    """With the row, alone, of a table, of all tables; written with the row and alone."""
    data = p4r.CounterData(packet_count=2, byte_count=20)
    ready.write(
        *(insert(exact_entry(number)) for number in range(10)), insert(exact_entry(99, counter_data=data))
    )
    key = exact_entry(99).match
    assert not ready.read_table(EXACT_ID, match=key)[0].HasField("counter_data")
    (row,) = ready.read_table(EXACT_ID, match=key, counter_data=p4r.CounterData())
    assert row.counter_data == data
    assert len(ready.read_table(EXACT_ID, counter_data=p4r.CounterData())) == 11
    request = p4r.DirectCounterEntry(table_entry=p4r.TableEntry(table_id=EXACT_ID, match=key))
    (one,) = ready.read(p4r.Entity(direct_counter_entry=request))
    assert one.direct_counter_entry == p4r.DirectCounterEntry(table_entry=request.table_entry, data=data)
    assert len(ready.read(p4r.Entity(direct_counter_entry=p4r.DirectCounterEntry()))) == 11
    request.data.packet_count = 8
    ready.write(update(direct_counter_entry=request))
    ready.write(modify(entry(EXACT_ID, key, action(DROP_ID))))
    (row,) = ready.read_table(EXACT_ID, match=key, counter_data=p4r.CounterData())
    assert row.counter_data == p4r.CounterData(packet_count=8)


def test_wrong_direct_counters(ready: Client) -> None:
    """No counter, no row, no insert."""
    of_row = p4r.DirectCounterEntry(table_entry=exact_entry(1))
    of_lpm = p4r.DirectCounterEntry(table_entry=p4r.TableEntry(table_id=LPM_ID))
    error = failure(
        lambda: ready.write(
            update(direct_counter_entry=of_row),
            update(direct_counter_entry=of_lpm),
            update(p4r.Update.INSERT, direct_counter_entry=of_row),
        )
    )
    assert codes(error) == [NOT_FOUND, INVALID, INVALID]
    assert codes(failure(lambda: ready.read(p4r.Entity(direct_counter_entry=of_lpm)))) == [INVALID]


def test_registers(ready: Client, switch: ModelSwitch) -> None:
    """One cell and all cells, read and written."""
    ready.write(update(register_entry=register(b"\x0f\xff", 2)))
    assert switch.engine.running.registers["Ingress.last"] == [0, 0, 0xFFF, 0]
    cells = [e.register_entry for e in ready.read(p4r.Entity(register_entry=register()))]
    assert cells == [register(b"\0", 0), register(b"\0", 1), register(b"\x0f\xff", 2), register(b"\0", 3)]
    ready.write(update(register_entry=register(b"\x05")))
    (cell,) = ready.read(p4r.Entity(register_entry=register(index=1)))
    assert cell.register_entry == register(b"\x05", 1)
    error = failure(
        lambda: ready.write(
            update(register_entry=register(b"\x10\x00", 0)),
            update(register_entry=register(b"\x01", 4)),
            update(register_entry=register(index=1)),
            update(register_entry=register(b"\x01", register_id=3)),
        )
    )
    assert codes(error) == [OUT_OF_RANGE, OUT_OF_RANGE, INVALID, INVALID]
