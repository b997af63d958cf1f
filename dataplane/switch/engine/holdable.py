"""Which programs' packet-ins can wait in the kernel, and what the generated code must know for that.

A packet that waits in a hold queue (see `hold_queues`) goes there as it came in, and comes back as a packet-out. So the
program's packet-in header must be one that only the pipeline makes, in front of everything; and the two headers must
both have a field `port` of 16 bits, which is carried over. All else in them is the same for every packet of a queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.switch.engine.bmv2 import Header, Program
from dataplane.switch.engine.deparser import emitted, extracted, order_differs
from dataplane.switch.engine.expressions import valid_bit
from dataplane.switch.engine.names import identifier
from dataplane.switch.engine.parser import front_headers
from dataplane.switch.pipeline import BadEntry

QUEUES = 64
"""Hold queues of a switch; their numbers must fit into 8 bits of a packet's mark."""
LONGEST = 65535 + 14
"""The longest frame that waits in a queue."""
DATAGRAM_OVERHEAD = 1024
"""Bytes that a datagram in the kernel's memory takes beside its own, at most, if those count twice: struct sk_buff, its
shared information, and a buffer that is a power of two (SKB_TRUESIZE, kmalloc_reserve)."""
ETHERNET_DATAGRAM = 2 * 1514 + DATAGRAM_OVERHEAD
"""Bytes of memory for the largest one of an Ethernet link."""

_PORT, _PORT_BITS = "port", 16
_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Holdable:
    """A program's packet-in and packet-out headers."""

    packet_in: Header
    packet_out: Header

    def definitions(self) -> list[str]:
        """Return what runtime.h wants defined."""
        return [
            f"#define P4_HOLD_HEADER {valid_bit(self.packet_in)}",
            f"#define P4_HOLD_NAME {identifier(self.packet_in.name)}",
            f"#define P4_HOLD_IN_PORT {_port_at(self.packet_in)}",
            f"#define P4_HOLD_OUT_PORT {_port_at(self.packet_out)}",
        ]

    def key(self, values: Mapping[str, int]) -> bytes:
        """Return the map's key for packet-ins with these fields; raises BadEntry."""
        return _pack(self.packet_in, values).ljust(_KEY_BYTES, b"\0")

    def front(self, values: Mapping[str, int]) -> bytes:
        """Return the packet-out header with these fields; raises BadEntry."""
        return _pack(self.packet_out, values)


def find_holdable(program: Program, cpu_port: int) -> Holdable | None:
    """Find the two headers, if they are as they must be."""
    front, order = front_headers(program, cpu_port), emitted(program)
    if len(front) != 1 or order_differs(program):
        return None
    made = [header for header in order if header.name not in extracted(program)]
    if len(made) != 1 or order[0] is not made[0] or made[0].size > _KEY_BYTES:
        return None
    found = Holdable(made[0], front[0])
    return found if _port_at(found.packet_in) >= 0 and _port_at(found.packet_out) >= 0 else None


def _port_at(header: Header) -> int:
    """Return the offset of the port in bytes, -1 if it is not as it must be."""
    for field in header.fields:
        if field.name == _PORT and field.width == _PORT_BITS and field.offset % 8 == 0:
            return field.offset // 8
    return -1


def _pack(header: Header, values: Mapping[str, int]) -> bytes:
    """Put fields into a header, all but the port, which stays zero."""
    names = {field.name: field for field in header.fields if field.name != _PORT}
    if set(names) != set(values):
        raise BadEntry(f"a hold queue needs {', '.join(sorted(names))} of {header.name}, and no other field")
    number = 0
    for name, field in names.items():
        if not 0 <= values[name] < 1 << field.width:
            raise BadEntry(f"{values[name]:#x} does not fit {header.name}.{name} of {field.width} bits")
        number |= values[name] << (header.size * 8 - field.offset - field.width)
    return number.to_bytes(header.size, "big")
