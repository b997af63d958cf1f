"""Array maps as shared memory: counters and registers are read and written without a system call."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence

from dataplane.switch.engine.libbpf import Map
from dataplane.switch.pipeline import BadEntry, CounterValue


class Cells:
    """The cells of a BPF_F_MMAPABLE array, each of one or two unsigned 64 bit numbers."""

    def __init__(self, map_: Map, size: int, numbers: int) -> None:
        self.name = map_.name
        self.size = size
        self._cell = struct.Struct(f"={numbers}Q")
        self._memory = mmap.mmap(map_.fd, _whole_pages(size * self._cell.size))

    @property
    def memory(self) -> memoryview:
        """Return the cells' memory itself."""
        return memoryview(self._memory)

    def read(self, index: int) -> tuple[int, ...]:
        """Return a cell's numbers; raises BadEntry."""
        return self._cell.unpack_from(self._memory, self._offset(index))

    def write(self, index: int, *numbers: int) -> None:
        """Overwrite a cell; raises BadEntry."""
        self._cell.pack_into(self._memory, self._offset(index), *numbers)

    def read_raw(self, index: int) -> bytes:
        """Return a cell's bytes; raises BadEntry."""
        offset = self._offset(index)
        return self._memory[offset : offset + self._cell.size]

    def write_raw(self, index: int, data: bytes) -> None:
        """Overwrite a cell with as many bytes as it has; raises BadEntry."""
        offset = self._offset(index)
        self._memory[offset : offset + self._cell.size] = data

    def read_all(self) -> list[tuple[int, ...]]:
        """Return every cell."""
        return list(self._cell.iter_unpack(self._memory[: self.size * self._cell.size]))

    def _offset(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise BadEntry(f"{self.name} has no cell {index}; it has {self.size}")
        return index * self._cell.size

    def close(self) -> None:
        self._memory.close()


def _whole_pages(size: int) -> int:
    return size + -size % mmap.PAGESIZE


def counter_value(numbers: Sequence[int]) -> CounterValue:
    """Read a counter's cell."""
    packets, count = numbers
    return CounterValue(packets, count)
