"""Packet-in and packet-out: the controller's header in front of a frame, packed and unpacked bit by bit.

The fields follow each other in P4Info's order, most significant bit first, with no gap; the whole header is a number
of bytes (the schema checks that), a single field need not be.
"""

from __future__ import annotations

from collections.abc import Sequence

from finsy.proto import p4r

from dataplane.switch.p4runtime import bytestrings
from dataplane.switch.p4runtime.errors import invalid
from dataplane.switch.p4runtime.schema import Field


def packet_in(fields: Sequence[Field], frame: bytes) -> p4r.PacketIn:
    """Split a frame from the CPU port into metadata and payload."""
    bits = sum(field.width for field in fields)
    size = bits // 8
    if len(frame) < size:
        raise invalid(f"a packet-in of {len(frame)} bytes is shorter than its header of {size}")
    header = int.from_bytes(frame[:size], "big")
    message = p4r.PacketIn(payload=frame[size:])
    for field in fields:
        bits -= field.width
        value = (header >> bits) & field.maximum
        message.metadata.add(metadata_id=field.id, value=bytestrings.encode(value))
    return message


def packet_out(fields: Sequence[Field], message: p4r.PacketOut) -> bytes:
    """Put the metadata in front of the payload; raises RequestRefused unless each field is there exactly once."""
    given = {m.metadata_id: m.value for m in message.metadata}
    if len(given) != len(message.metadata):
        raise invalid("a metadata field of the packet-out is given twice")
    header = bits = 0
    for field in fields:
        data = given.pop(field.id, None)
        if data is None:
            raise invalid(f"{field.where} (id {field.id}) is missing")
        header = header << field.width | bytestrings.decode(data, field.width, field.where)
        bits += field.width
    if given:
        raise invalid(f"packet_out has no metadata field with id {min(given)}")
    payload: bytes = message.payload
    return header.to_bytes(bits // 8, "big") + payload
