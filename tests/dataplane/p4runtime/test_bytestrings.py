"""Byte strings: the specification's own examples, and properties for all widths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.switch.p4runtime import bytestrings
from dataplane.switch.p4runtime.errors import Code, RequestRefused


@pytest.mark.parametrize(
    ("width", "value", "data", "canonical"),
    [  # table "Examples of Valid Bytestring Encoding"
        (8, 99, b"\x63", True),
        (16, 99, b"\x00\x63", False),
        (16, 99, b"\x63", True),
        (16, 12388, b"\x30\x64", True),
        (16, 12388, b"\x00\x30\x64", False),
        (12, 99, b"\x00\x63", False),
        (12, 99, b"\x63", True),
        (12, 99, b"\x00\x00\x63", False),
        (16, 0, b"\x00\x00", False),
        (16, 0, b"\x00", True),
    ],
)
def test_valid_examples(width: int, value: int, data: bytes, canonical: bool) -> None:
    """Every form is accepted, the canonical one is returned."""
    assert bytestrings.decode(data, width, "x") == value
    assert (bytestrings.encode(value) == data) is canonical


@pytest.mark.parametrize(
    ("width", "data"),
    [  # table "Examples of Invalid Bytestring Encoding"
        (8, b"\x01\x63"),
        (8, b""),
        (16, b"\x01\x00\x63"),
        (12, b"\x10\x63"),
        (12, b"\x01\x00\x63"),
        (12, b"\x00\x40\x63"),
    ],
)
def test_invalid_examples(width: int, data: bytes) -> None:
    """OUT_OF_RANGE, naming the field."""
    with pytest.raises(RequestRefused, match="field x") as caught:
        bytestrings.decode(data, width, "field x")
    assert caught.value.code is Code.OUT_OF_RANGE


@given(
    st.integers(1, 2048).flatmap(lambda w: st.tuples(st.just(w), st.integers(0, (1 << w) - 1))),
    st.integers(0, 9),
)
def test_round_trip(width_and_value: tuple[int, int], padding: int) -> None:
    """Whatever the padding, the value comes back, in the shortest string."""
    width, value = width_and_value
    data = bytestrings.encode(value)
    assert bytestrings.decode(bytes(padding) + data, width, "x") == value
    assert len(data) == 1 or data[0] != 0
    with pytest.raises(RequestRefused):
        bytestrings.decode(bytestrings.encode(value | 1 << width), width, "x")
