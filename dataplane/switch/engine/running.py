"""A loaded program as the `Pipeline` of dataplane/switch/pipeline.py."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from dataplane.switch.engine import matches
from dataplane.switch.engine.bmv2 import Table
from dataplane.switch.engine.cells import Cells, counter_value
from dataplane.switch.engine.events import EventReader, RecordReader
from dataplane.switch.engine.hold_queues import HoldMaps
from dataplane.switch.engine.libbpf import Map, Object
from dataplane.switch.engine.parser import front_headers
from dataplane.switch.engine.source import Source
from dataplane.switch.engine.tables import ExactRows, TableMaps, TableRows, TernaryRows, declared_entries
from dataplane.switch.pipeline import (
    ActionCall,
    BadEntry,
    CounterValue,
    HoldQueue,
    Match,
    Operation,
    PipelineError,
    QueueState,
    TableEntry,
    Update,
)

if TYPE_CHECKING:
    from dataplane.switch.engine.engine import EbpfEngine

_PACKET_OUT_BYTES = 128
_BATCH_FROM = 4
"""Inserts in a row from which one system call for all of them pays."""


class EbpfPipeline:
    """One loaded program, its tables and arrays."""

    def __init__(self, engine: EbpfEngine, source: Source, loaded: Object) -> None:
        self._engine = engine
        self.source = source
        self.object = loaded
        self.program = source.program
        self._front = sum(header.size for header in front_headers(self.program, source.options.cpu_port))
        self._cells: dict[str, Cells] = {}
        self._tables = {table.name: self._rows(table.name) for table in self.program.tables}
        for name, array in self.program.counters.items():
            self._cells[name] = Cells(self._map(source.arrays[name]), array.size, 2)
        for name, array in self.program.registers.items():
            self._cells[name] = Cells(self._map(source.arrays[name]), array.size, 1)
        self._lost = Cells(self._map("p4_lost"), 3, 1)
        self._packet_out = Cells(self._map("p4_packet_out"), 1, _PACKET_OUT_BYTES // 8)
        self.holds = HoldMaps(loaded, source.holdable) if source.holdable is not None else None
        self._declared = {
            table.name: declared_entries(table, self.program.actions)
            for table in self.program.tables
            if table.entries
        }
        for name, entries in self._declared.items():
            for entry in entries:
                self._tables[name].insert(entry)
        self.events = EventReader(
            self._map("p4_events"), RecordReader(source), engine.on_packet_in, engine.on_digest
        )

    def _map(self, name: str) -> Map:
        return self.object.map(name)

    def _rows(self, name: str) -> TableRows:
        """Make the control plane's side of a table."""
        table = next(table for table in self.program.tables if table.name == name)
        writer = self.source.writer(table)
        has_keys, is_ternary = bool(table.keys), table.kind == "ternary"
        maps = TableMaps(
            rows=self._map(writer.name) if has_keys else None,
            default=None if writer.fixed_default else self._map(f"{writer.name}_default"),
            masks=self._map(f"{writer.name}_masks") if is_ternary else None,
            counters=self._cells_of(table, "counters", 2) if has_keys and table.with_counters else None,
            hits=self._cells_of(table, "hits", 1) if has_keys and table.with_timeout else None,
        )
        if is_ternary:
            return TernaryRows(table, maps)
        return (ExactRows if table.kind == "exact" else TableRows)(table, maps)

    def _cells_of(self, table: Table, what: str, numbers: int) -> Cells:
        """Return the cells that a table has, one for each row."""
        cells = Cells(self._map(f"{self.source.writer(table).name}_{what}"), table.size, numbers)
        self._cells[f"table {table.name} {what}"] = cells
        return cells

    # ---- life

    @property
    def verified_insns(self) -> int:
        """Return how many instructions the kernel's verifier went through; 0 before Linux 5.16."""
        return self.object.verified_insns()

    def set_port(self, port: int, ifindex: int) -> None:
        """Make a port known to the program."""
        self._map("p4_ports").update(struct.pack("=I", port), struct.pack("=I", ifindex))
        self._map("p4_port_of").update(struct.pack("=I", ifindex), struct.pack("=I", port))

    def clear_port(self, port: int, ifindex: int) -> None:
        """Make the program forget a port."""
        self._map("p4_ports").update(struct.pack("=I", port), struct.pack("=I", 0))
        with contextlib.suppress(FileNotFoundError):  # it was never set
            self._map("p4_port_of").delete(struct.pack("=I", ifindex))

    def activate(self) -> None:
        """Attach to every port in place of what ran there before, without a packet passing unprocessed."""
        self._engine.activate(self)

    def close(self) -> None:
        """Detach if active, and free every map and program."""
        self._engine.forget(self)

    def release(self) -> None:
        """Free every map and program; the engine has detached."""
        self.events.close()
        for cells in (*self._cells.values(), self._lost, self._packet_out):
            cells.close()
        if self.holds is not None:
            self.holds.close()
        self.object.close()

    # ---- tables

    def const_entries(self) -> Mapping[str, Sequence[TableEntry]]:
        """Return the rows that the program itself declares, by table."""
        return self._declared

    def _table(self, name: str) -> TableRows:
        rows = self._tables.get(name)
        if rows is None:
            raise BadEntry(f"the program has no table {name}")
        return rows

    def apply(self, updates: Sequence[Update]) -> list[PipelineError | None]:
        """Make the changes in order; one result each, and a failed one changes nothing."""
        results: list[PipelineError | None] = []
        while len(results) < len(updates):
            run = self._inserts(updates, len(results))
            if len(run) >= _BATCH_FROM:
                results += self._table(run[0].table).insert_many([update.entry for update in run])
            else:
                results.append(self._apply_one(updates[len(results)]))
        return results

    def _inserts(self, updates: Sequence[Update], start: int) -> list[Update]:
        """Return the inserts into one table that follow each other."""
        table = updates[start].table
        run: list[Update] = []
        if table not in self._tables:
            return run
        for index in range(start, len(updates)):
            update = updates[index]
            if update.operation is not Operation.INSERT or update.table != table:
                break
            run.append(update)
        return run

    def _apply_one(self, update: Update) -> PipelineError | None:
        try:
            rows = self._table(update.table)
            _CHANGES[update.operation](rows, update.entry)
        except PipelineError as ex:
            return ex
        return None

    def set_default(self, table: str, action: ActionCall | None) -> None:
        """Set a table's default action; None brings back the declared one."""
        self._table(table).set_default(action)

    # ---- counters and registers

    def read_direct_counter(self, table: str, entry: TableEntry) -> CounterValue:
        """Read the counter of a row; raises EntryNotFound."""
        return self._table(table).counter(entry)

    def read_direct_counters(self, table: str) -> Mapping[tuple[tuple[Match, ...], int], CounterValue]:
        """Read all counters of a table at once, by (match, priority)."""
        return self._table(table).all_counters()

    def write_direct_counter(self, table: str, entry: TableEntry, value: CounterValue) -> None:
        """Overwrite the counter of a row; raises EntryNotFound."""
        self._table(table).set_counter(entry, value)

    def last_hit(self, table: str, entry: TableEntry) -> int:
        """Return when a row was hit last, or written, as time.monotonic_ns() tells it; raises EntryNotFound."""
        return self._table(table).last_hit(entry)

    def idle_rows(self, most: int) -> Sequence[tuple[str, TableEntry]]:
        """Return up to `most` rows that have been silent for their idle time-out, each once in a silence."""
        found: list[tuple[str, TableEntry]] = []
        now = time.monotonic_ns()
        for name, rows in self._tables.items():
            found += [(name, row.entry) for row in rows.idle.due(now, most - len(found))]
        return found

    def next_idle(self) -> int | None:
        """Return the earliest time.monotonic_ns() at which there may be such a row; None if none has a time-out."""
        times = (rows.idle.next() for rows in self._tables.values())
        return min((at for at in times if at is not None), default=None)

    def read_counters(self, name: str) -> Sequence[CounterValue]:
        """Read every cell of an indirect counter."""
        return [counter_value(cell) for cell in self._array(name, self.program.counters).read_all()]

    def write_counter(self, name: str, index: int, value: CounterValue) -> None:
        """Overwrite a cell; raises BadEntry."""
        self._array(name, self.program.counters).write(index, value.packets, value.bytes)

    def read_register(self, name: str) -> Sequence[int]:
        """Read every cell of a register array."""
        return [cell[0] for cell in self._array(name, self.program.registers).read_all()]

    def write_register(self, name: str, index: int, value: int) -> None:
        """Overwrite a cell; raises BadEntry."""
        cells = self._array(name, self.program.registers)
        width = self.program.registers[name].width
        if not 0 <= value <= matches.ones(width):
            raise BadEntry(f"{value:#x} does not fit {name} of {width} bits")
        cells.write(index, value)

    def _array(self, name: str, declared: Mapping[str, object]) -> Cells:
        if name not in declared:
            raise BadEntry(f"the program has no array {name}")
        return self._cells[name]

    # ---- packets

    def packet_out(self, frame: bytes) -> None:
        """Let a frame (packet-out header in front, if the program declares one) enter on the CPU port."""
        if len(frame) < self._front:
            raise BadEntry(
                f"a packet-out begins with a header of {self._front} bytes; this one has {len(frame)} in all"
            )
        self._engine.send(self, self._packet_out, frame[: self._front], frame[self._front :])

    def lost(self) -> Mapping[str, int]:
        """Return how many digests and packet-ins found no room, and packets that could not be reshaped."""
        names = ("digests", "packet_ins", "reshaped")
        return {name: self._lost.read(index)[0] for index, name in enumerate(names)}

    # ---- hold queues (the engine's: they outlive a change of the pipeline)

    def add_queue(self, number: int, queue: HoldQueue) -> None:
        """Begin to hold."""
        self._engine.queues_of(self).add(number, queue)

    def hold_queue(self, number: int) -> None:
        """Hold again."""
        self._engine.queues_of(self).hold(number)

    def release_queue(self, number: int, room: int | None = None) -> None:
        """Let go what waits, in order, and whatever comes behind it, datagrams within a `room`."""
        self._engine.queues_of(self).release(number, room)

    def remove_queue(self, number: int) -> None:
        """Let go, and give such packet-ins to the controller again."""
        self._engine.queues_of(self).remove(number)

    def queues(self) -> Mapping[int, QueueState]:
        """Return all hold queues."""
        return self._engine.queues_of(self).states()


_CHANGES: Mapping[Operation, Callable[[TableRows, TableEntry], None]] = {
    Operation.INSERT: lambda rows, entry: rows.insert(entry),
    Operation.MODIFY: lambda rows, entry: rows.modify(entry),
    Operation.DELETE: lambda rows, entry: rows.delete(entry),
}
