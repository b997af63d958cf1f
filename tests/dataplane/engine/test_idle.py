"""Which rows have been silent, compared with looking at all of them."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dataplane.switch.engine.idle import IdleRows

CELLS = 4


@dataclass
class _Row:
    """A row as the test knows it."""

    timeout: int
    hit: int
    told: int = -1


OPERATIONS = st.one_of(
    st.tuples(st.just("watch"), st.integers(0, CELLS - 1), st.integers(0, 30)),
    st.tuples(st.sampled_from(["hit", "forget"]), st.integers(0, CELLS - 1), st.just(0)),
    st.tuples(st.just("pass"), st.just(0), st.integers(0, 40)),
    st.tuples(st.just("look"), st.just(0), st.integers(1, CELLS)),
)


@given(st.lists(OPERATIONS, max_size=60))
def test_every_silence_is_told_of_once(operations: list[tuple[str, int, int]]) -> None:
    """Not before its time-out, at any look after it, and `next` is never later than what there is to tell."""
    hits = [0] * CELLS
    idle = IdleRows[int](lambda cell: hits[cell])
    rows: dict[int, _Row] = {}
    now = 0
    for operation, cell, number in operations:
        if operation == "watch":
            hits[cell] = now
            idle.watch(cell, cell, number)
            rows[cell] = _Row(number, now)
        elif operation == "forget":
            idle.forget(cell)
            rows.pop(cell, None)
        elif operation == "hit":
            hits[cell] = now
            if cell in rows:
                rows[cell].hit = now
        elif operation == "pass":
            now += number
        else:
            due = {
                at
                for at, row in rows.items()
                if row.timeout and now - row.hit >= row.timeout and row.told != row.hit
            }
            earliest = idle.next()
            assert not due or (earliest is not None and earliest <= now)
            found = idle.due(now, number)
            assert len(found) == min(number, len(due))
            assert set(found) <= due
            for at in found:
                rows[at].told = rows[at].hit
    assert (idle.next() is None) == (not any(row.timeout for row in rows.values()))


def test_rows_that_are_gone_take_no_room() -> None:
    """However many came and went before their time."""
    idle = IdleRows[int](lambda _: 0)
    for _ in range(50_000):
        idle.watch(1, 1, 10**12)
    assert len(idle._heap) < 3000
