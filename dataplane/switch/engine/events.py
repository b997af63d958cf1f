"""What comes up from the kernel: packet-in and digests, in one ring buffer, in the order in which they happened.

A packet-in record carries the packet as it is in the kernel (headers already written back), and where its headers are;
the frame is put together here as the deparser says, with the headers that are new in front or in between.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from dataplane.switch.engine.actions import digest_widths
from dataplane.switch.engine.bmv2 import Header, Program
from dataplane.switch.engine.deparser import emitted
from dataplane.switch.engine.libbpf import Map, RingBuffer
from dataplane.switch.engine.names import container, is_wide
from dataplane.switch.engine.offload import complete_checksum
from dataplane.switch.engine.source import Source
from dataplane.switch.pipeline import DigestHandler, PacketInHandler

log = logging.getLogger(__name__)

_PACKET_IN = 0
_HEAD = struct.Struct("=IIII")


@dataclass(frozen=True, slots=True)
class _Place:
    """A header in the records: its bit, its index, its bytes among those of all headers."""

    bit: int
    index: int
    size: int
    offset: int


class RecordReader:
    """Knows the layout of one program's records."""

    def __init__(self, source: Source) -> None:
        program = source.program
        self._where = struct.Struct(f"=QQ{source.places}H")
        offsets, end = _wire_offsets(program.packet_headers)
        self._order = [
            _Place(1 << header.index, header.index, header.size, offsets[header.name])
            for header in emitted(program)
        ]
        self._out = _HEAD.size + self._where.size
        self._data = self._out + end
        self._digests = {
            id_: (digest.name, _digest_fields(program, id_)) for id_, digest in program.digests.items()
        }

    def frame(self, record: bytes) -> bytes:
        """Return the frame of a packet-in record, as the deparser left it and with complete checksums."""
        _, length, _, parsed = _HEAD.unpack_from(record)
        extracted, leaving, *at = self._where.unpack_from(record, _HEAD.size)
        packet = bytearray(memoryview(record)[self._data : self._data + length])
        complete_checksum(packet)
        parts: list[bytes | bytearray | memoryview] = []
        for place in self._order:
            if not leaving & place.bit:
                continue
            if extracted & place.bit:
                parts.append(packet[at[place.index] : at[place.index] + place.size])
            else:
                start = self._out + place.offset
                parts.append(record[start : start + place.size])
        return b"".join([*parts, memoryview(packet)[parsed:]])

    def record_size(self, head: bytes, size: int) -> int:
        """Return how much of a record is used; the rest of its class is not worth copying."""
        if int.from_bytes(head[:4], sys.byteorder) != _PACKET_IN:
            return size
        return min(size, self._data + int(_HEAD.unpack(head)[1]))

    def digest(self, record: bytes) -> tuple[str, tuple[int, ...]]:
        """Return a digest's name and values."""
        _, id_ = struct.unpack_from("=II", record)
        name, fields = self._digests[id_]
        values = []
        for offset, size, wide in fields:
            raw = record[offset : offset + size]
            values.append(int.from_bytes(raw, "big") if wide else struct.unpack("=Q", raw)[0])
        return name, tuple(values)


def _wire_offsets(headers: Sequence[Header]) -> tuple[dict[str, int], int]:
    offsets: dict[str, int] = {}
    end = 0
    for header in headers:
        offsets[header.name] = end
        end += max(header.size, 1)
        end += -end % 8
    return offsets, end or 8


def _digest_fields(program: Program, id_: int) -> list[tuple[int, int, bool]]:
    fields = []
    offset = 8
    for width in digest_widths(program, id_):
        size = container(width) if is_wide(width) else 8
        fields.append((offset, size, is_wide(width)))
        offset += size
    return fields


class EventReader:
    """A thread that hands out packet-in and digests."""

    def __init__(
        self, map_: Map, reader: RecordReader, on_packet_in: PacketInHandler, on_digest: DigestHandler
    ) -> None:
        self._reader = reader
        self._on_packet_in = on_packet_in
        self._on_digest = on_digest
        self._ring = RingBuffer(map_, self._sample)
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="p4-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        with select.epoll() as poll:
            poll.register(self._ring.fileno(), select.EPOLLIN)
            poll.register(self._stop, select.EPOLLIN)
            while True:
                ready = [fd for fd, _ in poll.poll()]
                self._ring.consume()
                if self._stop in ready:
                    return

    def _sample(self, address: int, size: int) -> None:
        """Take one record; whatever a handler does, the next one must be taken, too."""
        try:
            head = ctypes.string_at(address, min(size, _HEAD.size))
            record = ctypes.string_at(address, self._reader.record_size(head, size))
            if int.from_bytes(record[:4], sys.byteorder) == _PACKET_IN:
                self._on_packet_in(self._reader.frame(record))
            else:
                self._on_digest(*self._reader.digest(record))
        except Exception:
            log.exception("a handler of packet-in or digests failed")

    def close(self) -> None:
        """Hand out what is there, and end the thread."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
        os.close(self._stop)
        self._ring.close()
