"""P4Runtime's byte strings for bit<W> values (spec section "Bytestrings").

Accepted: any length of at least one byte, as long as the value fits the width. Returned: the canonical form, the
shortest big-endian string, one zero byte for 0. Signed values and varbit do not occur in what this server offers.
"""

from __future__ import annotations

from dataplane.switch.p4runtime.errors import Code, RequestRefused


def encode(value: int) -> bytes:
    """Return the canonical byte string."""
    return value.to_bytes((value.bit_length() + 7) // 8 or 1, "big")


def decode(data: bytes, width: int, what: str) -> int:
    """Return the value; `what` names the field in the refusal."""
    value = int.from_bytes(data, "big")
    if value >> width or not data:
        raise _out_of_range(data, width, what)
    return value


def _out_of_range(data: bytes, width: int, what: str) -> RequestRefused:
    # "When the server rejects a binary string due to any of the previous criteria, it returns an OUT_OF_RANGE error."
    if not data:
        return RequestRefused(Code.OUT_OF_RANGE, f"{what}: the byte string is empty")
    return RequestRefused(Code.OUT_OF_RANGE, f"{what}: 0x{data.hex()} does not fit bit<{width}>")
