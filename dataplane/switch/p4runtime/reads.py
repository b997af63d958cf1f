"""Reads of table entries and direct counters, with P4Runtime's filters (spec section "Wildcard Reads").

A read is in two halves: the snapshot is taken when the function is called (under the server's lock), the messages are
made while the caller iterates, so that reading a hundred thousand rows keeps no writer waiting.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from finsy.proto import p4r

from dataplane.switch.p4runtime.errors import invalid, refusals, unimplemented
from dataplane.switch.p4runtime.matches import encode_action, encode_key
from dataplane.switch.p4runtime.schema import TableInfo
from dataplane.switch.p4runtime.tables import Key, Row, Tables
from dataplane.switch.pipeline import CounterValue


@dataclass(frozen=True, slots=True)
class _Selection:
    """The rows of one table that a request selects, and their counters if it asks for them."""

    table: TableInfo
    rows: list[Row]
    is_default: bool = False
    counters: Mapping[Key, CounterValue] | None = None
    silences: Mapping[Key, int] | None = None
    """For how many nanoseconds each was not hit, if the request asks for that."""


def read_entries(tables: Tables, request: p4r.TableEntry) -> Iterator[p4r.Entity]:
    """Return the entries that a request selects."""
    selections = list(_select_all(tables, request))
    return (
        p4r.Entity(table_entry=_entry(tables, selection, row))
        for selection in selections
        for row in selection.rows
    )


def _select_all(tables: Tables, request: p4r.TableEntry) -> Iterator[_Selection]:
    if request.table_id == 0:
        # "If default (0), entries from all tables [...] will be selected and no other filter can be used."
        if request.match or request.priority or request.HasField("action") or request.metadata:
            raise invalid("a read of all tables (table_id 0) takes no other filter")
        wanted: Iterable[TableInfo] = tables.schema.tables.values()
    else:
        wanted = [tables.table(request.table_id)]
    if request.HasField("meter_config") or request.HasField("meter_counter_data"):
        raise unimplemented("direct meters are not offered")
    for table in wanted:
        if request.is_default_action:
            if request.match or request.priority:
                raise invalid(f"table {table.name}: the default entry has neither match nor priority")
            yield _Selection(table, _filtered(table, [tables.default_row(table)], request), is_default=True)
        else:
            rows = _rows(tables, table, request)
            counters = _counters(tables, table, rows) if request.HasField("counter_data") else None
            yield _Selection(table, rows, counters=counters, silences=_silences(tables, table, rows, request))


def _rows(tables: Tables, table: TableInfo, request: p4r.TableEntry) -> list[Row]:
    stored = tables.rows[table.id]
    if not request.match:
        return _filtered(table, stored.values(), request)
    if table.needs_priority and request.priority == 0:
        probe = p4r.TableEntry(table_id=table.id, match=request.match, priority=1)
        match, _ = tables.key(table, probe)
        return _filtered(table, (row for row in stored.values() if row.entry.match == match), request)
    row = stored.get(tables.key(table, request))
    return _filtered(table, [row] if row else [], request)


def _filtered(table: TableInfo, rows: Iterable[Row], request: p4r.TableEntry) -> list[Row]:
    if request.HasField("action"):
        action = table.actions.get(request.action.action.action_id)
        if action is None:
            raise invalid(f"table {table.name} has no action with id {request.action.action.action_id}")
        rows = (row for row in rows if row.entry.action.name == action.name)
    if request.priority:
        rows = (row for row in rows if row.entry.priority == request.priority)
    if request.metadata:
        rows = (row for row in rows if row.metadata == request.metadata)
    if request.controller_metadata:
        rows = (row for row in rows if row.controller_metadata == request.controller_metadata)
    return list(rows)


def _counters(tables: Tables, table: TableInfo, rows: list[Row]) -> Mapping[Key, CounterValue]:
    """Read the direct counters of rows, all at once where that is cheaper."""
    if table.direct_counter is None:
        return {}
    with refusals():
        if len(rows) > 8:
            return tables.pipeline.read_direct_counters(table.name)
        return {row.key: tables.pipeline.read_direct_counter(table.name, row.entry) for row in rows}


def _silences(
    tables: Tables, table: TableInfo, rows: list[Row], request: p4r.TableEntry
) -> Mapping[Key, int] | None:
    """Read for how long rows were not hit; raises RequestRefused where a single table cannot tell."""
    if not request.HasField("time_since_last_hit"):
        return None
    if not table.idle_timeout:
        if request.table_id:
            raise invalid(f"table {table.name} does not support idle timeouts")
        return None
    with refusals():
        hits = {row.key: tables.pipeline.last_hit(table.name, row.entry) for row in rows}
    now = time.monotonic_ns()
    return {key: max(0, now - hit) for key, hit in hits.items()}


def _entry(tables: Tables, selection: _Selection, row: Row) -> p4r.TableEntry:
    table = selection.table
    message = p4r.TableEntry(
        table_id=table.id,
        match=() if selection.is_default else encode_key(table, row.entry.match),
        action=encode_action(table, row.entry.action),
        priority=row.entry.priority,
        is_default_action=selection.is_default,
        metadata=row.metadata,
        controller_metadata=row.controller_metadata,
        is_const=row.is_const,
        idle_timeout_ns=row.entry.idle_timeout_ns,
    )
    if selection.silences is not None:
        message.time_since_last_hit.elapsed_ns = selection.silences[row.key]
    if selection.counters is not None and table.direct_counter is not None:
        value = selection.counters.get(row.key, CounterValue())
        message.counter_data.CopyFrom(direct_counter_data(tables, table, value))
    return message


def direct_counter_data(tables: Tables, table: TableInfo, value: CounterValue) -> p4r.CounterData:
    """Return a value in the units that the counter is declared for."""
    assert table.direct_counter is not None
    info = tables.schema.direct_counters[table.direct_counter]
    return p4r.CounterData(
        packet_count=value.packets if info.counts_packets else 0,
        byte_count=value.bytes if info.counts_bytes else 0,
    )


def read_direct_counters(tables: Tables, request: p4r.DirectCounterEntry) -> Iterator[p4r.Entity]:
    """Return the direct counters that a request selects: of one row, of a table, or of all tables."""
    wanted = request.table_entry
    if wanted.is_default_action:
        raise unimplemented("counters of default entries cannot be read")
    if wanted.table_id == 0:
        chosen = [table for table in tables.schema.tables.values() if table.direct_counter is not None]
    else:
        chosen = [tables.table(wanted.table_id)]
        if chosen[0].direct_counter is None:
            raise invalid(f"table {chosen[0].name} has no direct counter")
    selections = []
    for table in chosen:
        rows = _rows(tables, table, wanted)
        selections.append(_Selection(table, rows, counters=_counters(tables, table, rows)))
    return (
        p4r.Entity(direct_counter_entry=_counter_entry(tables, selection, row))
        for selection in selections
        for row in selection.rows
    )


def _counter_entry(tables: Tables, selection: _Selection, row: Row) -> p4r.DirectCounterEntry:
    table = selection.table
    value = (selection.counters or {}).get(row.key, CounterValue())
    return p4r.DirectCounterEntry(
        table_entry=p4r.TableEntry(
            table_id=table.id, match=encode_key(table, row.entry.match), priority=row.entry.priority
        ),
        data=direct_counter_data(tables, table, value),
    )
