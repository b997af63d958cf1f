"""A pipeline and an engine in memory that obey the seam: the reference model that service tests run on.

It keeps real tables, counters and registers and answers as the kernel's would; it does not process packets.
A test makes packets and digests happen through the engine's callbacks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dataplane.switch.pipeline import (
    ActionCall,
    BadEntry,
    CounterValue,
    EntryExists,
    EntryNotFound,
    HoldQueue,
    Match,
    Operation,
    Pipeline,
    PipelineError,
    PipelineRejected,
    QueueState,
    TableEntry,
    TableFull,
    Update,
)

Key = tuple[tuple[Match, ...], int]


class ModelPipeline:
    """Tables and arrays in dictionaries."""

    def __init__(self, program: dict[str, Any], const: Mapping[str, Sequence[TableEntry]]) -> None:
        self.program = program
        self.const = const
        self.active = self.closed = False
        self.sent: list[bytes] = []
        self.held: dict[int, QueueState] = {}
        self.rooms: list[int | None] = []
        """Of the releases so far."""
        self.lost_packet_ins = 0
        tables = [t for p in program["pipelines"] for t in p["tables"]]
        self.sizes: dict[str, int] = {t["name"]: t.get("max_size", 1024) for t in tables}
        self.tables: dict[str, dict[Key, TableEntry]] = {name: {} for name in self.sizes}
        self.direct: dict[str, dict[Key, CounterValue]] = {name: {} for name in self.sizes}
        self.defaults: dict[str, ActionCall | None] = {}
        arrays = program.get("counter_arrays", [])
        self.counters = {c["name"]: [CounterValue()] * c["size"] for c in arrays if not c.get("is_direct")}
        self.registers = {r["name"]: [0] * r["size"] for r in program.get("register_arrays", [])}
        for name, entries in const.items():
            self.tables[name] = {(e.match, e.priority): e for e in entries}

    def activate(self) -> None:
        self.active = True

    def close(self) -> None:
        assert not self.closed
        self.active, self.closed = False, True

    def const_entries(self) -> Mapping[str, Sequence[TableEntry]]:
        return self.const

    def apply(self, updates: Sequence[Update]) -> list[PipelineError | None]:
        return [self._apply(update) for update in updates]

    def _apply(self, update: Update) -> PipelineError | None:
        rows, key = self.tables[update.table], (update.entry.match, update.entry.priority)
        if update.operation is Operation.INSERT:
            if key in rows:
                return EntryExists(f"{update.table}: the entry exists")
            if len(rows) >= self.sizes[update.table]:
                return TableFull(f"{update.table}: full")
            self.direct[update.table][key] = CounterValue()
        elif key not in rows:
            return EntryNotFound(f"{update.table}: no such entry")
        if update.operation is Operation.DELETE:
            del rows[key]
        else:
            rows[key] = update.entry
        return None

    def set_default(self, table: str, action: ActionCall | None) -> None:
        self.defaults[table] = action

    def read_direct_counter(self, table: str, entry: TableEntry) -> CounterValue:
        key = (entry.match, entry.priority)
        if key not in self.tables[table]:
            raise EntryNotFound(f"{table}: no such entry")
        return self.direct[table].get(key, CounterValue())

    def read_direct_counters(self, table: str) -> Mapping[Key, CounterValue]:
        return {key: self.direct[table].get(key, CounterValue()) for key in self.tables[table]}

    def write_direct_counter(self, table: str, entry: TableEntry, value: CounterValue) -> None:
        self.read_direct_counter(table, entry)
        self.direct[table][entry.match, entry.priority] = value

    def last_hit(self, table: str, entry: TableEntry) -> int:
        self.read_direct_counter(table, entry)
        return time.monotonic_ns()

    def idle_rows(self, most: int) -> Sequence[tuple[str, TableEntry]]:
        return []

    def next_idle(self) -> int | None:
        return None

    def read_counters(self, name: str) -> Sequence[CounterValue]:
        return self.counters[name]

    def write_counter(self, name: str, index: int, value: CounterValue) -> None:
        self._check(name, index, len(self.counters[name]))
        self.counters[name][index] = value

    def read_register(self, name: str) -> Sequence[int]:
        return self.registers[name]

    def write_register(self, name: str, index: int, value: int) -> None:
        self._check(name, index, len(self.registers[name]))
        self.registers[name][index] = value

    def _check(self, name: str, index: int, size: int) -> None:
        if not 0 <= index < size:
            raise BadEntry(f"{name}: no cell {index}")

    def packet_out(self, frame: bytes) -> None:
        assert self.active
        self.sent.append(frame)

    def add_queue(self, number: int, queue: HoldQueue) -> None:
        if number >= 64:
            raise BadEntry(f"hold queue {number}: a switch has 64")
        if number in self.held:
            raise EntryExists(f"hold queue {number} is there already")
        self.held[number] = QueueState(queue, True)

    def _queue(self, number: int) -> QueueState:
        if number not in self.held:
            raise EntryNotFound(f"there is no hold queue {number}")
        return self.held[number]

    def hold_queue(self, number: int) -> None:
        self.held[number] = replace(self._queue(number), holding=True)

    def release_queue(self, number: int, room: int | None = None) -> None:
        self.held[number] = replace(self._queue(number), holding=False, waiting=0)
        self.rooms.append(room)

    def remove_queue(self, number: int) -> None:
        self.release_queue(number)
        del self.held[number]

    def queues(self) -> Mapping[int, QueueState]:
        return dict(self.held)

    def lost(self) -> Mapping[str, int]:
        return {"digests": 0, "packet_ins": self.lost_packet_ins}


class ModelEngine:
    """Loads any BMv2 JSON; one with a key "reject" is refused with that text."""

    def __init__(
        self, on_packet_in: Callable[[bytes], None], on_digest: Callable[[str, tuple[int, ...]], None]
    ) -> None:
        self.on_packet_in = on_packet_in
        self.on_digest = on_digest
        self.loaded: list[ModelPipeline] = []
        self.const: dict[str, list[TableEntry]] = {}

    def add_port(self, port: int, interface: str) -> None:
        raise PipelineError(f"{interface}: there is no such interface")

    def remove_port(self, port: int) -> None:
        raise PipelineError(f"there is no port {port}")

    def load(self, bmv2_json: bytes) -> Pipeline:
        program = json.loads(bmv2_json)
        if "reject" in program:
            raise PipelineRejected(program["reject"])
        self.loaded.append(ModelPipeline(program, self.const))
        return self.loaded[-1]

    @property
    def running(self) -> ModelPipeline:
        """Return the pipeline that was loaded last."""
        return self.loaded[-1]

    def close(self) -> None:
        for pipeline in self.loaded:
            assert pipeline.closed
