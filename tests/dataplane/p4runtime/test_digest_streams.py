"""Digest bundling on a clock of the test's own."""

from __future__ import annotations

import pytest
from finsy.proto import p4i, p4t
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from dataplane.switch.p4runtime.digests import DigestConfig, DigestStream, encode_data
from dataplane.switch.p4runtime.errors import RequestRefused


def test_list_goes_out_when_full() -> None:
    """max_list_size counts distinct messages."""
    stream = DigestStream(DigestConfig(max_timeout_ns=100, max_list_size=2))
    assert [stream.add((value,), 0) for value in (1, 1, 2)] == [False, False, True]
    assert stream.take(1, 0) == [(1,), (2,)]


@pytest.mark.parametrize("config", [DigestConfig(0, 100), DigestConfig(100, 1)])
def test_no_waiting(config: DigestConfig) -> None:
    """ "When max_timeout_ns is set to 0 and / or max_list_size is set to 1": each message at once."""
    assert DigestStream(config).add((1,), 0)


def test_deadline_is_the_oldest_messages() -> None:
    """It does not move with later messages, and is gone with the list."""
    stream = DigestStream(DigestConfig(max_timeout_ns=100, max_list_size=10))
    assert stream.deadline() is None
    stream.add((1,), 50)
    stream.add((2,), 90)
    assert stream.deadline() == 150
    stream.take(1, 150)
    assert stream.deadline() is None


def test_unacknowledged_messages_are_not_repeated() -> None:
    """Until the acknowledgement or the timeout."""
    stream = DigestStream(DigestConfig(max_timeout_ns=0, ack_timeout_ns=100))
    stream.add((1,), 0)
    stream.take(1, 0)
    assert not stream.add((1,), 99)
    stream.acknowledge(2)
    assert not stream.add((1,), 99)
    stream.acknowledge(1)
    assert stream.add((1,), 99)
    stream.take(2, 99)
    assert not stream.add((1,), 198)
    assert stream.add((1,), 199)
    stream.take(3, 199)
    stream.forget()
    assert stream.add((1,), 200)


def test_no_cache_without_ack_timeout() -> None:
    """ "If ack_timeout_ns is set to 0, the cache must always be an empty set." """
    stream = DigestStream(DigestConfig())
    assert stream.add((1,), 0)
    stream.take(1, 0)
    assert stream.add((1,), 0)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=60),
    st.integers(0, 40),
    st.integers(0, 4),
)
def test_every_message_is_reported_once_per_window(
    events: list[tuple[int, int]], timeout: int, size: int
) -> None:
    """A message is in no list twice within its acknowledgement time, and never lost before its deadline."""
    stream = DigestStream(DigestConfig(max_timeout_ns=10, max_list_size=size, ack_timeout_ns=timeout))
    now = list_id = 0
    sent: dict[int, int] = {}
    for value, step in events:
        now += step
        full = stream.add((value,), now)
        if full or ((deadline := stream.deadline()) is not None and deadline <= now):
            list_id += 1
            values = stream.take(list_id, now)
            assert len(values) == len(set(values))
            assert not size or len(values) <= size
            for (one,) in values:
                assert one not in sent or now - sent[one] >= timeout
                sent[one] = now


def test_shapes() -> None:
    """Structs in structs, tuples, booleans, new types."""
    info = text_format.Parse(
        """type_info {
          structs { key: "s" value {
            members { name: "a" type_spec { bitstring { bit { bitwidth: 16 } } } }
            members { name: "b" type_spec { bool { } } }
            members { name: "c" type_spec { new_type { name: "port" } } } } }
          new_types { key: "port" value { original_type { bitstring { bit { bitwidth: 9 } } } } } }""",
        p4i.P4Info(),
    )
    spec = text_format.Parse(
        "tuple { members { struct { name: 's' } } members { bitstring { bit { bitwidth: 8 } } } }",
        p4t.P4DataTypeSpec(),
    )
    data = encode_data(info, spec, (300, 1, 5, 255))
    inner, last = data.tuple.members
    a, b, c = inner.struct.members
    assert (a.bitstring, b.bool, c.bitstring, last.bitstring) == (b"\x01\x2c", True, b"\x05", b"\xff")
    with pytest.raises(RequestRefused, match="more fields"):
        encode_data(info, spec, (300, 1, 5, 255, 0))
