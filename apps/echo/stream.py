"""A byte stream in which every word says where it belongs, and the check of its echo. Pure.

The stream of a connection is a sequence of 64-bit words: a bit that is set, 15 bits of the connection's
number, 48 bits of the word's index. Where the echo differs, the words after the difference tell how much
was lost or doubled.
"""

from __future__ import annotations

import struct

WORD = 8
_INDEX_BITS = 48
_WORD = struct.Struct(">Q")
# How far an echo may be off and still be recognised.
REACH = 1 << 24


def tag(connection: int) -> int:
    """Return the upper 16 bits of all words of a connection; the set bit shows where a word begins."""
    return 0x8000 | (connection & 0x7FFF)


def words(connection: int, index: int, count: int) -> bytes:
    """Return `count` words of a connection's stream, from word `index` on."""
    first = (tag(connection) << _INDEX_BITS) + index
    return struct.pack(f">{count}Q", *range(first, first + count))


class EchoChecker:
    """Compares an echo with the stream that was sent, byte by byte."""

    def __init__(self, connection: int) -> None:
        self._connection = connection
        self.position = 0  # in bytes: everything before it has been accounted for
        self.lost_bytes = 0
        self.duplicated_bytes = 0
        self.corrupt_bytes = 0
        self._odd = b""  # received, but not understood yet

    def feed(self, data: bytes) -> None:
        """Check the next piece of the echo."""
        if not self._odd and data == self._expected(self.position, len(data)):
            self.position += len(data)
            return
        self._resynchronise(self._odd + data)

    def _expected(self, position: int, length: int) -> bytes:
        skip = position % WORD
        count = (skip + length + WORD - 1) // WORD
        return words(self._connection, position // WORD, count)[skip : skip + length]

    def _resynchronise(self, data: bytes) -> None:
        """Follow the stream to where it differs, and find out where it goes on."""
        good = _common(data, self._expected(self.position, len(data)))
        self.position += good
        data = data[good:]
        self._odd = b""
        while data:
            found = self._find_word(data)
            if found is None:
                self._odd = data[-2 * WORD :]
                self.corrupt_bytes += len(data) - len(self._odd)
                return
            at, position = found
            # Bytes before a recognised word belong right before it in the stream.
            position -= at
            if position > self.position:
                self.lost_bytes += position - self.position
            else:
                self.duplicated_bytes += self.position - position
            self.position = position
            good = _common(data, self._expected(position, len(data))) if position >= 0 else 0
            if good == 0:
                self.corrupt_bytes += at + WORD
                good = at + WORD
            self.position += good
            data = data[good:]

    def _find_word(self, data: bytes) -> tuple[int, int] | None:
        """Return where in `data` a whole word begins, and its position in the stream."""
        here = self.position // WORD
        for at in range(len(data) - WORD + 1):
            (value,) = _WORD.unpack_from(data, at)
            index = value & ((1 << _INDEX_BITS) - 1)
            if value >> _INDEX_BITS == tag(self._connection) and abs(index - here) < REACH:
                return at, index * WORD
        return None

    def finish(self, sent: int) -> None:
        """Account for what was sent and never came back."""
        self.corrupt_bytes += len(self._odd)
        self._odd = b""
        self.lost_bytes += max(0, sent - self.position)
        self.position = max(self.position, sent)


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes at the beginning are the same."""
    if one == other:
        return len(one)
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
