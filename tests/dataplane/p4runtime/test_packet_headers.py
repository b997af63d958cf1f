"""Controller headers: bit-exact packing, for headers of any shape."""

from __future__ import annotations

import pytest
from finsy.proto import p4r
from hypothesis import given
from hypothesis import strategies as st

from dataplane.switch.p4runtime.errors import RequestRefused
from dataplane.switch.p4runtime.packet_io import packet_in, packet_out
from dataplane.switch.p4runtime.schema import Field


def header(*widths: int) -> tuple[Field, ...]:
    """Return fields of these widths."""
    return tuple(
        Field(number, f"f{number}", width, f"field f{number}") for number, width in enumerate(widths, 1)
    )


def test_bits_in_order() -> None:
    """Most significant bit first, no gap."""
    fields = header(9, 3, 12)
    message = packet_in(fields, bytes.fromhex("aad abc".replace(" ", "") + "ff"))
    assert [m.value.hex() for m in message.metadata] == ["0155", "05", "0abc"]
    assert message.payload == b"\xff"


@given(st.lists(st.integers(1, 70), max_size=8), st.data())
def test_round_trip(widths: list[int], data: st.DataObject) -> None:
    """Packet-in of what packet-out packed gives the same message."""
    widths.append(8 - sum(widths) % 8)
    fields = header(*widths)
    size = sum(widths) // 8
    frame = data.draw(st.binary(min_size=size, max_size=size + 20))
    message = packet_in(fields, frame)
    assert packet_out(fields, p4r.PacketOut(payload=message.payload, metadata=message.metadata)) == frame


def test_without_a_header() -> None:
    """A program may have none."""
    assert packet_in((), b"frame") == p4r.PacketIn(payload=b"frame")
    assert packet_out((), p4r.PacketOut(payload=b"frame")) == b"frame"


def test_short_frames_are_refused() -> None:
    """A frame without room for its header cannot be a packet-in."""
    with pytest.raises(RequestRefused, match="shorter than its header of 2"):
        packet_in(header(16), b"x")
