"""The checker of echoes finds every byte that is lost, doubled or changed, and nothing else."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from apps.echo.stream import EchoChecker, words

STREAM = words(5, 0, 200)


def check(*pieces: bytes) -> EchoChecker:
    """Feed pieces to a checker."""
    checker = EchoChecker(5)
    for piece in pieces:
        checker.feed(piece)
    checker.finish(len(STREAM))
    return checker


def verdict(checker: EchoChecker) -> tuple[int, int, int]:
    """Return what was lost, doubled, corrupt."""
    return checker.lost_bytes, checker.duplicated_bytes, checker.corrupt_bytes


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cutting_of_a_good_echo_is_good(cuts: list[int]) -> None:
    """How TCP cuts the stream does not matter."""
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(places)]
    assert verdict(check(*pieces)) == (0, 0, 0)


@given(st.integers(0, 800), st.integers(1, 700))
def test_lost_bytes_are_counted(at: int, length: int) -> None:
    """A hole of any size at any place is found."""
    assert verdict(check(STREAM[:at], STREAM[at + length :])) == (length, 0, 0)


@given(st.integers(8, 1500), st.integers(8, 700))
def test_doubled_bytes_are_counted(at: int, length: int) -> None:
    """What comes twice is counted once."""
    length = min(length, at)
    assert verdict(check(STREAM[:at], STREAM[at - length : at], STREAM[at:])) == (0, length, 0)


@given(st.integers(0, len(STREAM) - 1))
def test_a_changed_byte_is_seen(at: int) -> None:
    """One wrong byte makes the result unclean."""
    wrong = bytearray(STREAM)
    wrong[at] ^= 0x40
    assert verdict(check(bytes(wrong))) != (0, 0, 0)


def test_missing_end_is_lost() -> None:
    """What never came back is lost."""
    assert verdict(check(STREAM[:1000])) == (600, 0, 0)
