"""The control plane's side of a table: checks entries, and keeps the maps in step with them.

The maps hold what the program needs to find a row; the entries themselves, and which counter cell belongs to which,
are kept here. A change is one map update wherever that is possible; a ternary table's row goes in before its mask is
searched, and out after, so that no packet sees half an entry.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dataplane.switch.engine import matches
from dataplane.switch.engine.bmv2 import Action, Table, hexstr
from dataplane.switch.engine.cells import Cells, counter_value
from dataplane.switch.engine.idle import IdleRows
from dataplane.switch.engine.layout import MAX_MASKS, Slot, key_layout, row_actions, row_layout
from dataplane.switch.engine.libbpf import Map
from dataplane.switch.pipeline import (
    ActionCall,
    BadEntry,
    CounterValue,
    EntryExists,
    EntryNotFound,
    Match,
    PipelineError,
    TableEntry,
    TableFull,
)

log = logging.getLogger(__name__)

RowKey = tuple[tuple[Match, ...], int]
_ZERO = bytes(4)


@dataclass(slots=True)
class Row:
    """An entry in the table, and the number of the cell that its counter and its last hit have."""

    entry: TableEntry
    cell: int


@dataclass(frozen=True, slots=True)
class TableMaps:
    """What the kernel has of a table; None where its kind needs no such thing."""

    rows: Map | None = None
    default: Map | None = None
    masks: Map | None = None
    counters: Cells | None = None
    hits: Cells | None = None


class TableRows:
    """The rows of an exact or lpm table, and what every table has: the default action and counters."""

    def __init__(self, table: Table, maps: TableMaps) -> None:
        self.table = table
        self.name = table.name
        self.layout = key_layout(table)
        self.row_layout = row_layout(table)
        self.actions = {action.name: action for action in reversed(row_actions(table))}
        self.rows: dict[RowKey, Row] = {}
        self.counters, self.hits = maps.counters, maps.hits
        self.idle = IdleRows[Row](self._hit)
        self.map, self.default_map = maps.rows, maps.default
        self._free: list[int] = []
        self._used = 0
        self.set_default(None)

    # ---- changes

    def insert(self, entry: TableEntry) -> None:
        """Add a row."""
        key = self._key(entry)
        action = self._action(entry.action)
        if key in self.rows:
            raise EntryExists(f"{self.name} has an entry with this match{self._priority_text(entry)} already")
        if len(self.rows) >= self.table.size:
            raise TableFull(f"{self.name} is full: its size is {self.table.size}")
        row = Row(entry, self._take_cell())
        try:
            self._put(key, self._encode(row, action), row)
        except BaseException:
            self._give_back(row)
            raise
        self.rows[key] = row
        self._watch(row)

    def insert_many(self, entries: Sequence[TableEntry]) -> list[PipelineError | None]:
        """Add rows, with one system call if none of them is wrong."""
        results: list[PipelineError | None] = []
        for entry in entries:
            try:
                self.insert(entry)
                results.append(None)
            except PipelineError as ex:
                results.append(ex)
        return results

    def modify(self, entry: TableEntry) -> None:
        """Replace a row's action; its counter goes on."""
        key = self._key(entry)
        row = self._row(key, entry)
        changed = Row(entry, row.cell)
        self._put(key, self._encode(changed, self._action(entry.action)), changed)
        self.rows[key] = changed
        self._watch(changed)

    def delete(self, entry: TableEntry) -> None:
        """Remove a row."""
        key = self._key(entry)
        row = self._row(key, entry)
        self._remove(key)
        del self.rows[key]
        self._give_back(row)

    def set_default(self, call: ActionCall | None) -> None:
        """Set the action of a miss; None is the declared one."""
        if self.default_map is None:
            if call is not None and self.table.default_const:
                raise BadEntry(f"the default action of {self.name} is constant")
            return
        if call is None:
            declared = self.table.default
            if declared is None:
                self._clear_default()
            else:
                self.default_map.update(_ZERO, self.row_layout.encode(declared.action, declared.data))
            return
        self.default_map.update(_ZERO, self.row_layout.encode(self._action(call), call.params))

    def _clear_default(self) -> None:
        assert self.default_map is not None
        with contextlib.suppress(FileNotFoundError):  # there was none
            self.default_map.delete(_ZERO)

    # ---- counters

    def counter(self, entry: TableEntry) -> CounterValue:
        """Return a row's counter."""
        return counter_value(self._counters().read(self._row(self._key(entry), entry).cell))

    def all_counters(self) -> dict[RowKey, CounterValue]:
        """Return every row's counter, by match and priority as they were inserted."""
        cells = self._counters().read_all()
        return {
            (row.entry.match, row.entry.priority): counter_value(cells[row.cell])
            for row in list(self.rows.values())
        }

    def set_counter(self, entry: TableEntry, value: CounterValue) -> None:
        """Overwrite a row's counter."""
        row = self._row(self._key(entry), entry)
        self._counters().write(row.cell, value.packets, value.bytes)

    def _counters(self) -> Cells:
        if self.counters is None:
            raise BadEntry(f"{self.name} has no direct counter")
        return self.counters

    def _take_cell(self) -> int:
        if self._free:
            index = self._free.pop()
        else:
            index, self._used = self._used, self._used + 1
        if self.counters is not None:
            self.counters.write(index, 0, 0)
        return index

    def _give_back(self, row: Row) -> None:
        self.idle.forget(row.cell)
        self._free.append(row.cell)

    # ---- idle time-outs

    def last_hit(self, entry: TableEntry) -> int:
        """Return when a row was hit last, or written."""
        if self.hits is None:
            raise BadEntry(f"{self.name} does not support idle timeouts")
        return self._hit(self._row(self._key(entry), entry))

    def _hit(self, row: Row) -> int:
        assert self.hits is not None
        return self.hits.read(row.cell)[0]

    def _watch(self, row: Row) -> None:
        """Begin a silence: the row has just been written."""
        if self.hits is not None:
            self.hits.write(row.cell, time.monotonic_ns())
            self.idle.watch(row.cell, row, row.entry.idle_timeout_ns)

    # ---- checks

    def _key(self, entry: TableEntry) -> RowKey:
        if self.map is None:
            raise BadEntry(f"{self.name} has no key, so it takes no entries")
        if entry.idle_timeout_ns and self.hits is None:
            raise BadEntry(f"{self.name} does not support idle timeouts")
        return matches.check(self.table, entry.match), self._priority(entry)

    def _priority(self, entry: TableEntry) -> int:
        return 0

    def _priority_text(self, entry: TableEntry) -> str:
        return ""

    def _row(self, key: RowKey, entry: TableEntry) -> Row:
        row = self.rows.get(key)
        if row is None:
            raise EntryNotFound(f"{self.name} has no entry with this match{self._priority_text(entry)}")
        return row

    def _action(self, call: ActionCall) -> Action:
        """Check an action call."""
        action = self.actions.get(call.name)
        if action is None:
            raise BadEntry(f"{self.name} has no action {call.name}")
        if len(call.params) != len(action.params):
            raise BadEntry(
                f"action {call.name} takes {len(action.params)} parameters, not {len(call.params)}"
            )
        for param, value in zip(action.params, call.params, strict=True):
            if not 0 <= value <= matches.ones(param.width):
                raise BadEntry(
                    f"action {call.name}: {value:#x} does not fit {param.name} of {param.width} bits"
                )
        return action

    def _encode(self, row: Row, action: Action) -> bytes:
        return self.row_layout.encode(action, row.entry.action.params, row.cell, self._priority(row.entry))

    # ---- maps

    def _put(self, key: RowKey, value: bytes, row: Row) -> None:
        assert self.map is not None
        try:
            self.map.update(matches.exact_key(self.layout, key[0]), value)
        except OSError as ex:
            raise self._map_error(ex) from ex

    def _remove(self, key: RowKey) -> None:
        assert self.map is not None
        self.map.delete(matches.exact_key(self.layout, key[0]))

    def _map_error(self, ex: OSError) -> PipelineError:
        if ex.errno in (errno.E2BIG, errno.ENOMEM, errno.ENOSPC):
            return TableFull(f"{self.name}: the kernel has no room for another row ({ex.strerror})")
        return BadEntry(f"{self.name}: the kernel does not take this row ({ex.strerror})")


@dataclass(slots=True)
class _Pending:
    """A checked row that is not in the map yet; `index` is its place in the answer."""

    index: int
    key: RowKey
    map_key: bytes
    value: bytes


class ExactRows(TableRows):
    """The rows of an exact table, which can be put in in batches."""

    BATCH = 1024

    def insert_many(self, entries: Sequence[TableEntry]) -> list[PipelineError | None]:
        """Add rows, with one system call for many."""
        results: list[PipelineError | None] = []
        pending: list[_Pending] = []
        for entry in entries:
            try:
                pending.append(self._prepare(len(results), entry))
                results.append(None)
            except PipelineError as ex:
                results.append(ex)
        for start in range(0, len(pending), self.BATCH):
            self._put_batch(pending[start : start + self.BATCH], results)
        return results

    def _prepare(self, index: int, entry: TableEntry) -> _Pending:
        """Check an entry and take its place."""
        key, action = self._key(entry), self._action(entry.action)
        if key in self.rows:
            raise EntryExists(f"{self.name} has an entry with this match already")
        if len(self.rows) >= self.table.size:
            raise TableFull(f"{self.name} is full: its size is {self.table.size}")
        row = Row(entry, self._take_cell())
        self.rows[key] = row
        self._watch(row)
        return _Pending(index, key, matches.exact_key(self.layout, key[0]), self._encode(row, action))

    def _put_batch(self, batch: Sequence[_Pending], results: list[PipelineError | None]) -> None:
        """Put rows into the map; where the kernel does not take all at once, find out which it does not take."""
        assert self.map is not None
        try:
            self.map.update_batch([row.map_key for row in batch], [row.value for row in batch])
            return
        except OSError:
            pass  # one by one tells which
        for row in batch:
            try:
                self.map.update(row.map_key, row.value)
            except OSError as ex:
                results[row.index] = self._map_error(ex)
                self._give_back(self.rows.pop(row.key))


@dataclass(slots=True)
class _Mask:
    """A mask in use: its number, and how many rows of which priority are under it."""

    number: int
    priorities: Counter[int] = field(default_factory=Counter)


class TernaryRows(TableRows):
    """The rows of a table with ternary, range, optional or several lpm keys.

    For each different mask the program looks up one hash map; the masks are ordered by the best priority under them.
    Several entries can meet in one cell (same masked value under the same mask): the map holds the best of them.
    """

    def __init__(self, table: Table, maps: TableMaps) -> None:
        assert maps.masks is not None
        self._masks: dict[bytes, _Mask] = {}
        self._cells: dict[tuple[bytes, bytes], dict[RowKey, bytes]] = {}
        self.mask_map = maps.masks
        self._free_numbers = list(range(MAX_MASKS - 1, -1, -1))
        super().__init__(table, maps)

    def _priority(self, entry: TableEntry) -> int:
        if not 0 <= entry.priority < 1 << 31:
            raise BadEntry(f"{self.name}: priority {entry.priority} is not 0 to 2147483647")
        return entry.priority

    def _priority_text(self, entry: TableEntry) -> str:
        return f" and priority {entry.priority}"

    def _put(self, key: RowKey, value: bytes, row: Row) -> None:
        pairs = list(matches.masked_keys(self.layout, key[0]))
        new = {mask for _, mask in pairs} - set(self._masks)
        if len(self._masks) + len(new) > MAX_MASKS:
            raise TableFull(
                f"{self.name} already uses {len(self._masks)} different masks; at most {MAX_MASKS} are supported"
            )
        replaced = key in self.rows
        done: list[tuple[bytes, bytes]] = []
        try:
            for components, mask in pairs:
                self._put_piece(key, components, mask, value, replaced)
                done.append((components, mask))
        except PipelineError:
            if not replaced:
                for components, mask in done:
                    self._remove_piece(key, components, mask)
            raise
        if not replaced:
            self._write_masks()

    def _put_piece(self, key: RowKey, components: bytes, mask: bytes, value: bytes, replaced: bool) -> None:
        info = self._masks.get(mask) or _Mask(self._free_numbers[-1])
        cell = self._cells.get((components, mask), {})
        self._write_cell(info.number, components, {**cell, key: value})
        if mask not in self._masks:
            self._masks[mask] = info
            self._free_numbers.pop()
        if not replaced:
            info.priorities[key[1]] += 1
        self._cells.setdefault((components, mask), cell)[key] = value

    def _remove(self, key: RowKey) -> None:
        for components, mask in matches.masked_keys(self.layout, key[0]):
            self._remove_piece(key, components, mask)
        self._write_masks()

    def _remove_piece(self, key: RowKey, components: bytes, mask: bytes) -> None:
        info, cell = self._masks[mask], self._cells[components, mask]
        del cell[key]
        if cell:
            self._write_cell(info.number, components, cell)
        else:
            del self._cells[components, mask]
            self._map().delete(self._map_key(info.number, components))
        info.priorities[key[1]] -= 1
        if not info.priorities[key[1]]:
            del info.priorities[key[1]]
        if not info.priorities:
            self._free_numbers.append(info.number)
            del self._masks[mask]

    def _map(self) -> Map:
        assert self.map is not None
        return self.map

    def _map_key(self, number: int, components: bytes) -> bytes:
        head = bytearray(self.layout.start)
        Slot(0, 4, 32, False).put(head, number)
        return bytes(head) + components

    def _write_cell(self, number: int, components: bytes, cell: Mapping[RowKey, bytes]) -> None:
        """Put the best row of a cell into the map; of equal ones the first."""
        best = max(cell, key=lambda key: key[1])
        try:
            self._map().update(self._map_key(number, components), cell[best])
        except OSError as ex:
            raise self._map_error(ex) from ex

    def _write_masks(self) -> None:
        """Replace the list of masks."""
        words = self.layout.words * 8
        step = 8 + words
        value = bytearray(8 + MAX_MASKS * step)
        Slot(0, 4, 32, False).put(value, len(self._masks))
        ordered = sorted(self._masks.items(), key=lambda item: -max(item[1].priorities))
        for index, (mask, info) in enumerate(ordered):
            at = 8 + index * step
            Slot(at, 4, 32, False).put(value, info.number)
            Slot(at + 4, 4, 32, False).put(value, max(info.priorities))
            value[at + 8 : at + step] = mask
        self.mask_map.update(_ZERO, bytes(value))


def declared_entries(table: Table, actions: Mapping[int, Action]) -> list[TableEntry]:
    """Return the entries that the program declares for a table, with P4Runtime's priorities.

    BMv2's priorities go the other way: the smaller number wins, and the first entry has 1.
    """
    worst = max((int(item.get("priority", 0)) for item in table.entries), default=0)
    found = []
    for item in table.entries:
        match = tuple(
            matches.declared(key, node) for key, node in zip(table.keys, item["match_key"], strict=True)
        )
        call = item["action_entry"]
        action = ActionCall(
            actions[call["action_id"]].name, tuple(hexstr(value) for value in call.get("action_data", ()))
        )
        priority = worst + 1 - int(item.get("priority", 0)) if table.kind == "ternary" else 0
        found.append(TableEntry(match, action, priority))
    return found
