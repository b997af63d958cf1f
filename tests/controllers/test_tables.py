"""Rows that are written before anybody knows what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from controllers.errors import WriteRefused
from controllers.rows import Change, Op, Row
from controllers.switchlink import Packets
from controllers.tables import SwitchTables

HOLDING, OTHER = Row("holding", (1,), "keep", ()), Row("backend", (1,), "set_location", (1, 2))


class Taker:
    """A switch that takes everything soon, and then says that it did not take some tables' rows."""

    def __init__(self, *refuses: str) -> None:
        self.refuses = refuses
        self.written: list[tuple[Op, Row]] = []
        self.soon: list[tuple[Op, Row]] = []

    async def write(self, changes: Sequence[Change]) -> dict[int, str]:
        self.written += [(change.op, change.row) for change in changes]
        return {at: "no" for at, change in enumerate(changes) if change.row.table in self.refuses}

    async def write_soon(self, changes: Sequence[Change], behind: Packets | None = None) -> None:
        self.soon += [(change.op, change.row) for change in changes]


def test_the_next_write_confirms() -> None:
    """What is there already is not written again, and not to be confirmed either."""
    taker = Taker()
    tables = SwitchTables(taker, "s1")
    unconfirmed = asyncio.run(tables.apply_soon([HOLDING]))
    assert (unconfirmed, taker.soon) == ([HOLDING], [(Op.INSERT, HOLDING)])
    assert asyncio.run(tables.apply_soon([HOLDING])) == []
    asyncio.run(tables.apply([OTHER], (), unconfirmed))
    assert taker.written == [(Op.MODIFY, HOLDING), (Op.INSERT, OTHER)]
    assert set(tables.rows.values()) == {HOLDING, OTHER}


def test_what_has_gone_since_is_not_confirmed() -> None:
    """Else a row would be missed that nobody wants any more."""
    taker = Taker("holding")
    tables = SwitchTables(taker, "s1")
    unconfirmed = asyncio.run(tables.apply_soon([HOLDING]))
    tables.rows.clear()
    asyncio.run(tables.apply((), (), unconfirmed))
    assert taker.written == []


def test_a_row_that_was_not_taken() -> None:
    """The write that finds out fails as a whole, and the row is forgotten."""
    taker = Taker("holding")
    tables = SwitchTables(taker, "s1")
    unconfirmed = asyncio.run(tables.apply_soon([HOLDING]))
    with pytest.raises(WriteRefused, match="s1 refused to modify a row of holding: no"):
        asyncio.run(tables.apply([OTHER], (), unconfirmed))
    assert tables.rows == {}
    assert taker.written[-1] == (Op.DELETE, OTHER)


def test_a_row_that_was_not_taken_twice() -> None:
    """A hold that was begun, ended and begun again has told of its rows twice: they are seen to once."""
    taker = Taker("holding")
    tables = SwitchTables(taker, "s1")
    unconfirmed = asyncio.run(tables.apply_soon([HOLDING]))
    with pytest.raises(WriteRefused, match="s1 refused to modify a row of holding: no"):
        asyncio.run(tables.apply((), (), unconfirmed * 2))
    assert (tables.rows, taker.written) == ({}, [(Op.MODIFY, HOLDING)])
