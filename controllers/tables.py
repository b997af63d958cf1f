"""The rows of one switch as the controller wants them, and the only way to change them.

`SwitchTables` remembers every row that a switch has acknowledged. A change is written as one P4Runtime request; if
the switch refuses a part of it, the part that it took is taken back, so a change is made as a whole or not at all.
After a reconnect the memory is compared with what the switch has, and the difference is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from controllers.errors import WriteRefused
from controllers.rows import Change, Key, Op, Row, by_key, diff
from controllers.switchlink import Packets


class Writer(Protocol):
    """What carries changes to a switch."""

    async def write(self, changes: Sequence[Change]) -> dict[int, str]:
        """Write the changes in order; return the refused ones by index, with the reason."""

    async def write_soon(self, changes: Sequence[Change], behind: Packets | None = None) -> None:
        """Write the changes, and send the packets behind them; nothing says what became of them."""


class SwitchTables:
    """What is in a switch's tables."""

    def __init__(self, writer: Writer, name: str) -> None:
        self.rows: dict[Key, Row] = {}
        self._writer = writer
        self._name = name
        self._lock = asyncio.Lock()
        self.on_change: Callable[[Iterable[Change]], None] = lambda changes: None
        """Hears of every change that the switch has taken."""

    async def apply(
        self, upserts: Iterable[Row] = (), deletes: Iterable[Key] = (), unconfirmed: Iterable[Row] = ()
    ) -> None:
        """Add or change rows, then delete others; raises WriteRefused with nothing changed.

        Rows that `apply_soon` has written and nothing has confirmed are written once more; a refusal of one means that
        it never was there.
        """
        async with self._lock:
            again = [
                Change(Op.MODIFY, row)
                for key, row in by_key(unconfirmed).items()  # a hold that is begun again has its rows twice
                if self.rows.get(key) == row
            ]
            changes = [*again, *self._changes(upserts, deletes)]
            if not changes:
                return
            before = [self.rows.get(change.row.key) for change in changes]
            refused = await self._writer.write(changes)
            for index in refused:
                if index < len(again):
                    self.rows.pop(changes[index].row.key)
            if refused:
                await self._take_back(changes, before, refused)
            self._remember(changes)

    async def apply_soon(self, upserts: Iterable[Row], behind: Packets | None = None) -> list[Row]:
        """Add or change rows, and send packets behind them; return the rows that are still to be confirmed."""
        async with self._lock:
            changes = self._changes(upserts, ())
            if changes or behind is not None:
                await self._writer.write_soon(changes, behind)
                self._remember(changes)
            return [change.row for change in changes]

    async def apply_each(self, upserts: Sequence[Row] = (), deletes: Iterable[Key] = ()) -> dict[Key, str]:
        """Add, change and delete rows independently of one another; return the refused ones with the reason."""
        async with self._lock:
            changes = self._changes(upserts, deletes)
            if not changes:
                return {}
            refused = await self._writer.write(changes)
            self._remember([change for index, change in enumerate(changes) if index not in refused])
            return {changes[index].row.key: reason for index, reason in refused.items()}

    async def reconcile(self, present: Iterable[Row]) -> int:
        """Make the switch's rows those that are remembered; return how many had to be written."""
        async with self._lock:
            changes = diff(by_key(present), self.rows)
            if changes:
                refused = await self._writer.write(changes)
                for index, reason in refused.items():
                    row = changes[index].row
                    raise WriteRefused(f"{self._name} refused to restore a row of {row.table}: {reason}")
            return len(changes)

    def _changes(self, upserts: Iterable[Row], deletes: Iterable[Key]) -> list[Change]:
        wanted = by_key(upserts)
        changes = [
            Change(Op.MODIFY if key in self.rows else Op.INSERT, row)
            for key, row in wanted.items()
            if self.rows.get(key) != row
        ]
        gone = dict.fromkeys(key for key in deletes if key in self.rows and key not in wanted)
        changes += [Change(Op.DELETE, self.rows[key]) for key in gone]
        return changes

    def _remember(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.op is Op.DELETE:
                self.rows.pop(change.row.key, None)
            else:
                self.rows[change.row.key] = change.row
        self.on_change(changes)

    async def _take_back(
        self, changes: list[Change], before: list[Row | None], refused: dict[int, str]
    ) -> None:
        """Undo what was taken of a refused change, then say what was refused."""
        undo: list[Change] = []
        for index in reversed(range(len(changes))):
            if index in refused:
                continue
            change, old = changes[index], before[index]
            if change.op is Op.INSERT:
                undo.append(Change(Op.DELETE, change.row))
            elif change.op is Op.DELETE:
                undo.append(Change(Op.INSERT, change.row))
            elif old is not None:
                undo.append(Change(Op.MODIFY, old))
        if undo:
            await self._writer.write(undo)
        index, reason = min(refused.items())
        row = changes[index].row
        raise WriteRefused(
            f"{self._name} refused to {changes[index].op.value} a row of {row.table}: {reason}"
        )
