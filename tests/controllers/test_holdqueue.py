"""Held packets: order and budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controllers.holdqueue import HoldQueue, KeptPacket


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
