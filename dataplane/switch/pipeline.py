"""The seam between the P4Runtime service and the engine that runs a pipeline.

Everything is named as in the BMv2 JSON (`Ingress.connection`, `Ingress.send_to`), which are also the names in
P4Info. Values are unsigned integers; widths are those of the JSON. Priorities are P4Runtime's: the larger number
wins, 0 where the table takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Exact:
    """Match one value."""

    value: int


@dataclass(frozen=True, slots=True)
class Lpm:
    """Match the `prefix_len` leading bits of `value`."""

    value: int
    prefix_len: int


@dataclass(frozen=True, slots=True)
class Ternary:
    """Match `value` where `mask` has ones."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class Range:
    """Match `low` to `high`, both included."""

    low: int
    high: int


Match = Exact | Lpm | Ternary | Range


@dataclass(frozen=True, slots=True)
class ActionCall:
    """An action with its data, in the order of the action's parameters."""

    name: str
    params: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One row: a match for every key of the table, in the table's order."""

    match: tuple[Match, ...]
    action: ActionCall
    priority: int = 0
    idle_timeout_ns: int = 0
    """After how much silence `idle_rows` has it; 0 for never."""


@dataclass(frozen=True, slots=True)
class CounterValue:
    """What a counter cell holds; a counter declared for one unit leaves the other at what the kernel counted."""

    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class HoldQueue:
    """Packet-ins that wait in the switch, and come back as packet-outs when they are let go.

    `packet_in` are the header fields that they have, `packet_out` those that they come back with. A field `port` is in
    neither: it is carried over. `budget` is the number of bytes that may wait.
    """

    packet_in: Mapping[str, int]
    packet_out: Mapping[str, int]
    budget: int


@dataclass(frozen=True, slots=True)
class QueueState:
    """A hold queue, what it has held so far (packets, bytes, and those without room), and the bytes that wait now.

    Of the latter, `datagrams` are in UDP's lane.
    """

    queue: HoldQueue
    holding: bool
    packets: int = 0
    bytes: int = 0
    dropped: int = 0
    waiting: int = 0
    datagrams: int = 0


class Operation(Enum):
    """What an update does to a table."""

    INSERT = "insert"
    MODIFY = "modify"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one table; for DELETE the entry's action is ignored."""

    operation: Operation
    table: str
    entry: TableEntry


class PipelineError(Exception):
    """Base of what a pipeline answers with.

    PipelineError
      +-- PipelineRejected   the program cannot be loaded; the message names P4 source position and reason
      +-- EntryExists        INSERT of a row that is there
      +-- EntryNotFound      MODIFY or DELETE of a row that is not there
      +-- TableFull          the table's declared size is used up
      +-- BadEntry           a match, action or index that this table or array does not take
    """


class PipelineRejected(PipelineError):
    """The program cannot be loaded."""


class EntryExists(PipelineError):
    """The row is there already."""


class EntryNotFound(PipelineError):
    """The row is not there."""


class TableFull(PipelineError):
    """The table's declared size is used up."""


class BadEntry(PipelineError):
    """A match, action or index that this table or array does not take."""


class Pipeline(Protocol):
    """A program that the kernel has accepted. Methods may be called from any thread, one at a time."""

    def activate(self) -> None:
        """Attach to every port in place of what ran there before, without a packet passing unprocessed."""

    def close(self) -> None:
        """Detach if active, and free every map and program."""

    def const_entries(self) -> Mapping[str, Sequence[TableEntry]]:
        """Return the rows that the program itself declares, by table."""

    def apply(self, updates: Sequence[Update]) -> list[PipelineError | None]:
        """Make the changes in order; one result each, and a failed one changes nothing."""

    def set_default(self, table: str, action: ActionCall | None) -> None:
        """Set a table's default action; None brings back the declared one."""

    def read_direct_counter(self, table: str, entry: TableEntry) -> CounterValue:
        """Read the counter of a row; raises EntryNotFound."""

    def read_direct_counters(self, table: str) -> Mapping[tuple[tuple[Match, ...], int], CounterValue]:
        """Read all counters of a table at once, by (match, priority)."""

    def write_direct_counter(self, table: str, entry: TableEntry, value: CounterValue) -> None:
        """Overwrite the counter of a row; raises EntryNotFound."""

    def last_hit(self, table: str, entry: TableEntry) -> int:
        """Return when a row was hit last, or written, as time.monotonic_ns() tells it; raises EntryNotFound."""

    def idle_rows(self, most: int) -> Sequence[tuple[str, TableEntry]]:
        """Return up to `most` rows that have been silent for their idle time-out, each once in a silence."""

    def next_idle(self) -> int | None:
        """Return the earliest time.monotonic_ns() at which there may be such a row; None if none has a time-out."""

    def read_counters(self, name: str) -> Sequence[CounterValue]:
        """Read every cell of an indirect counter."""

    def write_counter(self, name: str, index: int, value: CounterValue) -> None:
        """Overwrite a cell; raises BadEntry."""

    def read_register(self, name: str) -> Sequence[int]:
        """Read every cell of a register array."""

    def write_register(self, name: str, index: int, value: int) -> None:
        """Overwrite a cell; raises BadEntry."""

    def packet_out(self, frame: bytes) -> None:
        """Let a frame (packet-out header in front, if the program declares one) enter on the CPU port."""

    # ---- hold queues, by number; they belong to the switch and outlive its pipelines

    def add_queue(self, number: int, queue: HoldQueue) -> None:
        """Begin to hold; raises BadEntry where that is not possible."""

    def hold_queue(self, number: int) -> None:
        """Hold again."""

    def release_queue(self, number: int, room: int | None = None) -> None:
        """Let go what waits, in order, and whatever comes behind it; return when nothing waits any more.

        With a `room`, only as many of UDP's datagrams leave as take so many bytes of memory at their receivers; the
        others go on waiting, and whatever comes behind them.
        """

    def remove_queue(self, number: int) -> None:
        """Let go, and give such packet-ins to the controller again."""

    def queues(self) -> Mapping[int, QueueState]:
        """Return all hold queues."""

    def lost(self) -> Mapping[str, int]:
        """Return how many digests and packet-ins were lost on their way to the controller."""


PacketInHandler = Callable[[bytes], None]
"""Called with the frame as the deparser left it: packet-in header in front, all checksums complete. A TCP packet may
be larger than the link's MTU (GSO): it is one valid IP packet, and `packet_out` takes it back and segments it."""

DigestHandler = Callable[[str, tuple[int, ...]], None]
"""Called with the digest's name (its struct type) and its fields' values, in order."""


class Engine(Protocol):
    """Ports, and whatever turns a BMv2 JSON into a running pipeline."""

    def add_port(self, port: int, interface: str) -> None:
        """Bind a port number to an existing network interface; raises PipelineError when it is not there."""

    def remove_port(self, port: int) -> None:
        """Unbind a port, and detach from its interface."""

    def load(self, bmv2_json: bytes) -> Pipeline:
        """Generate, compile and let the kernel verify; nothing is attached. Raises PipelineRejected."""

    def close(self) -> None:
        """Close the pipelines and remove everything that the engine made."""
