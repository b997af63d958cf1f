"""How a table's keys, masks and rows lie in BPF maps: the one description that C and Python share.

A key component of up to 64 bits is a naturally aligned integer in host order, a wider one is bytes in network order.
All padding is explicit and zero, since the kernel compares keys byte by byte. The map kinds:

  exact    {components}
  lpm      {u32 prefix length, exact components, the lpm component left-aligned in network order}
  ternary  {u32 mask number, u32 zero, components}, in 64 bit words so that a mask is applied word by word

A row is {u32 action id, u32 cell[, u32 priority, u32 zero], action data}; its counter and the time of its last hit
are in the cell of that number.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dataplane.switch.engine.bmv2 import Action, Key, Table
from dataplane.switch.engine.names import container, is_wide

MAX_MASKS = 64
"""Different masks in one ternary table; every lookup may try them all."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a value lies: `size` bytes at `offset`; `big` says network order."""

    offset: int
    size: int
    width: int
    big: bool

    def put(self, buffer: bytearray, value: int) -> None:
        """Store a value."""
        order = "big" if self.big else sys.byteorder
        buffer[self.offset : self.offset + self.size] = value.to_bytes(self.size, order)

    def get(self, buffer: bytes) -> int:
        """Load a value."""
        order = "big" if self.big else sys.byteorder
        return int.from_bytes(buffer[self.offset : self.offset + self.size], order)


def place(widths: Sequence[int], start: int = 0) -> tuple[tuple[Slot, ...], int]:
    """Place values one after the other with natural alignment; return the slots and the end."""
    slots = []
    offset = start
    for width in widths:
        size = container(width)
        if not is_wide(width):
            offset += -offset % size
        slots.append(Slot(offset, size, width, is_wide(width)))
        offset += size
    return tuple(slots), offset


class Packer:
    """Stores values in slots, much faster than slot by slot."""

    def __init__(self, slots: Sequence[Slot], size: int) -> None:
        ordered = sorted(range(len(slots)), key=lambda index: slots[index].offset)
        form, end = "=", 0
        for index in ordered:
            slot = slots[index]
            form += "x" * (slot.offset - end)
            form += f"{slot.size}s" if slot.big else _FORMATS[slot.size]
            end = slot.offset + slot.size
        self._struct = struct.Struct(form + "x" * (size - end))
        self._order = [(index, slots[index].size if slots[index].big else 0) for index in ordered]
        self._plain = [index for index, _ in self._order] == list(range(len(slots))) and not any(
            slot.big for slot in slots
        )

    def pack(self, values: Sequence[int]) -> bytes:
        """Return the bytes; every value must fit its slot."""
        if self._plain:
            return self._struct.pack(*values)
        return self._struct.pack(
            *(values[index].to_bytes(big, "big") if big else values[index] for index, big in self._order)
        )


_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True)
class KeyLayout:
    """The key of a table's map."""

    kind: str
    slots: tuple[Slot, ...]
    size: int
    lpm: int | None = None
    """Index of the lpm component."""
    start: int = 0
    """Where the components start."""

    @property
    def words(self) -> int:
        """Return the number of 64 bit words of the components, for ternary keys."""
        return (self.size - self.start) // 8

    @cached_property
    def packer(self) -> Packer:
        """Return the packer of whole keys: the components, and for lpm the prefix length last."""
        extra = (Slot(0, 4, 32, False),) if self.lpm is not None else ()
        return Packer((*self.slots, *extra), self.size)

    @property
    def front_bits(self) -> int:
        """Return the bits in front of the lpm component that are always compared."""
        assert self.lpm is not None
        return (self.slots[self.lpm].offset - self.start) * 8


def key_layout(table: Table) -> KeyLayout:
    """Lay out the key of a table."""
    keys: Sequence[Key] = table.keys
    widths = [key.width for key in keys]
    if table.kind == "ternary":
        slots, end = place(widths, 8)
        return KeyLayout("ternary", slots, end + -end % 8, start=8)
    if table.kind != "lpm":
        slots, end = place(widths)
        return KeyLayout(table.kind, slots, end + -end % _alignment(widths))
    lpm = next(index for index, key in enumerate(keys) if key.match_type == "lpm")
    others = [index for index in range(len(keys)) if index != lpm]
    front, end = place([widths[index] for index in others], 4)
    size = container(widths[lpm])
    last = Slot(end + (-end % size if size in (1, 2, 4, 8) else 0), size, widths[lpm], True)
    ordered = dict(zip(others, front, strict=True)) | {lpm: last}
    end = last.offset + last.size
    alignment = max(4, _alignment(widths))
    slots = tuple(ordered[index] for index in range(len(keys)))
    return KeyLayout("lpm", slots, end + -end % alignment, lpm=lpm, start=4)


def _alignment(widths: Sequence[int]) -> int:
    return max((1 if is_wide(width) else container(width) for width in widths), default=1)


@dataclass(frozen=True)
class RowLayout:
    """The value of a table's map."""

    with_priority: bool
    data: int
    """Offset of the action data."""
    size: int
    _packers: dict[int, Packer] = field(default_factory=dict, compare=False, repr=False)

    def encode(self, action: Action, params: Sequence[int], cell: int = 0, priority: int = 0) -> bytes:
        """Return a row's bytes; the parameters must fit."""
        packer = self._packers.get(action.id)
        if packer is None:
            head = (Slot(0, 4, 32, False), Slot(4, 4, 32, False))
            extra = (Slot(8, 4, 32, False),) if self.with_priority else ()
            slots, _ = place([param.width for param in action.params], self.data)
            packer = self._packers[action.id] = Packer((*head, *extra, *slots), self.size)
        return packer.pack([action.id, cell, *([priority] if self.with_priority else ()), *params])


def row_layout(table: Table) -> RowLayout:
    """Lay out the rows of a table; the default action has a row of its own in the same layout."""
    with_priority = table.kind == "ternary"
    start = 16 if with_priority else 8
    end = start
    for action in _row_actions(table):
        end = max(end, place([param.width for param in action.params], start)[1])
    return RowLayout(with_priority, start, end + -end % 8)


def _row_actions(table: Table) -> Sequence[Action]:
    default = (table.default.action,) if table.default else ()
    return (*table.actions, *default)


def row_actions(table: Table) -> list[Action]:
    """Return the actions that a row can hold, the declared default's included, each once."""
    return list({action.id: action for action in _row_actions(table)}.values())


_MAX_ROWS = 1 << 20


def expanded_size(table: Table) -> int:
    """Return the rows that a ternary table's map has room for: a range of w bits is up to 2w - 2 prefixes."""
    factor = 1
    for key in table.keys:
        if key.match_type == "range":
            factor *= max(2 * key.width - 2, 1)
    return min(table.size * factor, _MAX_ROWS)
