"""A pipeline that any thread may call at any time.

The seam wants one call at a time. A lock around each call gives that; long runs of updates are cut, so that a
packet-out waits for a slice of a batch and not for all of it. (Batches as a whole are kept apart by the device's lock.)
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from dataplane.switch.pipeline import (
    ActionCall,
    CounterValue,
    HoldQueue,
    Match,
    Pipeline,
    PipelineError,
    QueueState,
    TableEntry,
    Update,
)

SLICE = 128


class SerializedPipeline:
    """Obeys the seam's `Pipeline`, for any number of threads."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Wrap a pipeline that nobody else calls."""
        self._pipeline = pipeline
        self._lock = threading.Lock()

    def activate(self) -> None:
        """Attach to every port."""
        with self._lock:
            self._pipeline.activate()

    def close(self) -> None:
        """Free the pipeline."""
        with self._lock:
            self._pipeline.close()

    def const_entries(self) -> Mapping[str, Sequence[TableEntry]]:
        """Return the rows that the program declares."""
        with self._lock:
            return self._pipeline.const_entries()

    def apply(self, updates: Sequence[Update]) -> list[PipelineError | None]:
        """Make the changes in order, a slice at a time."""
        results: list[PipelineError | None] = []
        for start in range(0, len(updates), SLICE):
            with self._lock:
                results += self._pipeline.apply(updates[start : start + SLICE])
        return results

    def set_default(self, table: str, action: ActionCall | None) -> None:
        """Set a table's default action."""
        with self._lock:
            self._pipeline.set_default(table, action)

    def read_direct_counter(self, table: str, entry: TableEntry) -> CounterValue:
        """Read the counter of a row."""
        with self._lock:
            return self._pipeline.read_direct_counter(table, entry)

    def read_direct_counters(self, table: str) -> Mapping[tuple[tuple[Match, ...], int], CounterValue]:
        """Read all counters of a table."""
        with self._lock:
            return self._pipeline.read_direct_counters(table)

    def write_direct_counter(self, table: str, entry: TableEntry, value: CounterValue) -> None:
        """Overwrite the counter of a row."""
        with self._lock:
            self._pipeline.write_direct_counter(table, entry, value)

    def last_hit(self, table: str, entry: TableEntry) -> int:
        """Return when a row was hit last, or written."""
        with self._lock:
            return self._pipeline.last_hit(table, entry)

    def idle_rows(self, most: int) -> Sequence[tuple[str, TableEntry]]:
        """Return some rows that have been silent for their idle time-out."""
        with self._lock:
            return self._pipeline.idle_rows(most)

    def next_idle(self) -> int | None:
        """Return when there may be such a row."""
        with self._lock:
            return self._pipeline.next_idle()

    def read_counters(self, name: str) -> Sequence[CounterValue]:
        """Read every cell of an indirect counter."""
        with self._lock:
            return self._pipeline.read_counters(name)

    def write_counter(self, name: str, index: int, value: CounterValue) -> None:
        """Overwrite a cell of a counter."""
        with self._lock:
            self._pipeline.write_counter(name, index, value)

    def read_register(self, name: str) -> Sequence[int]:
        """Read every cell of a register array."""
        with self._lock:
            return self._pipeline.read_register(name)

    def write_register(self, name: str, index: int, value: int) -> None:
        """Overwrite a cell of a register array."""
        with self._lock:
            self._pipeline.write_register(name, index, value)

    def packet_out(self, frame: bytes) -> None:
        """Let a frame enter on the CPU port."""
        with self._lock:
            self._pipeline.packet_out(frame)

    def add_queue(self, number: int, queue: HoldQueue) -> None:
        """Begin to hold packet-ins."""
        with self._lock:
            self._pipeline.add_queue(number, queue)

    def hold_queue(self, number: int) -> None:
        """Hold again."""
        with self._lock:
            self._pipeline.hold_queue(number)

    def release_queue(self, number: int, room: int | None = None) -> None:
        """Let go what waits."""
        with self._lock:
            self._pipeline.release_queue(number, room)

    def remove_queue(self, number: int) -> None:
        """Let go, and hold no longer."""
        with self._lock:
            self._pipeline.remove_queue(number)

    def queues(self) -> Mapping[int, QueueState]:
        """Return all hold queues."""
        with self._lock:
            return self._pipeline.queues()

    def lost(self) -> Mapping[str, int]:
        """Return what was lost on its way to the controller."""
        with self._lock:
            return self._pipeline.lost()
