"""Held packets: order and budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controllers.holdqueue import DATAGRAM_OVERHEAD, HoldQueue, KeptPacket
from tests.controllers.model_switch import ACK, frame


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(1, 300))
def test_order_and_budget(frames: list[bytes], budget: int) -> None:
    """What fits comes out in order; the rest is counted; never is more kept than the budget."""
    queue = HoldQueue(budget)
    taken = [frame for port, frame in enumerate(frames) if queue.put(KeptPacket(port, frame))]
    assert queue.size <= budget
    assert [packet.frame for packet in queue.take_all()] == taken
    assert (queue.packets, queue.bytes, queue.dropped) == (
        len(taken),
        sum(map(len, taken)),
        len(frames) - len(taken),
    )
    assert (len(queue), queue.size) == (0, 0)


def test_what_was_taken_makes_room() -> None:
    """The budget is for what waits, not for what ever came."""
    queue = HoldQueue(10)
    for _ in range(5):
        assert queue.put(KeptPacket(1, b"0123456789"))
        assert not queue.put(KeptPacket(1, b"x"))
        assert len(queue.take_all()) == 1
    assert (queue.packets, queue.dropped) == (5, 5)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200))), st.integers(0, 5000))
def test_datagrams_leave_as_there_is_room(kinds: list[tuple[bool, int]], room: int) -> None:
    """Segments leave at once, datagrams in slices that fit, or one by one; both in their order, and none is lost."""
    queue = HoldQueue()
    ends = (0x0A000101, 20001), (0x0A000202, 7000)
    frames = [frame(17 if is_udp else 6, *ends, ACK, bytes(size)) for is_udp, size in kinds]
    for port, one in enumerate(frames):
        queue.put(KeptPacket(port, one))
    segments = [port for port, (is_udp, _) in enumerate(kinds) if not is_udp]
    datagrams = [port for port, (is_udp, _) in enumerate(kinds) if is_udp]
    first = True
    while queue.datagrams or first:
        slice_ = queue.take_within(room)
        taken = [packet.port for packet in slice_ if packet.port in datagrams]
        assert [packet.port for packet in slice_ if packet.port in segments] == (segments if first else [])
        assert taken == datagrams[: len(taken)]
        assert taken or not datagrams
        cost = sum(2 * len(frames[port]) + DATAGRAM_OVERHEAD for port in taken)
        assert len(taken) <= 1 or cost <= room
        datagrams = datagrams[len(taken) :]
        assert queue.size == queue.datagrams == sum(len(frames[port]) for port in datagrams)
        first = False
