"""Rows to P4Runtime table entries and back, by the P4Info of one switch.

Encoding builds the messages directly (a pool change is a thousand of them); decoding starts from finsy's entities.
Byte strings are P4Runtime's canonical ones: as short as possible, at least one byte (P4R-Spec section 8.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finsy import P4Schema, P4TableAction, P4TableEntry
from finsy.p4schema import P4Table
from finsy.proto import p4i, p4r

from controllers.errors import ConfigError
from controllers.rows import Change, Op, Row, Value

UPDATE_TYPE = {Op.INSERT: p4r.Update.INSERT, Op.MODIFY: p4r.Update.MODIFY, Op.DELETE: p4r.Update.DELETE}

_AHEAD = 1 << 15


@dataclass(frozen=True, slots=True)
class _Field:
    id: int
    name: str
    width: int
    kind: int


@dataclass(frozen=True, slots=True)
class _Action:
    id: int
    params: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class _Table:
    id: int
    fields: tuple[_Field, ...]
    actions: dict[str, _Action]
    const: bool


def canonical(value: int) -> bytes:
    """Return the shortest byte string of an unsigned integer."""
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")


class RowCodec:
    """Translate rows for one P4Info; tables and actions go by their aliases."""

    def __init__(self, schema: P4Schema) -> None:
        self._schema = schema
        info = schema.p4info
        actions = {action.preamble.id: action for action in info.actions}
        self._tables = {
            table.preamble.alias: _table(table, actions, schema.tables[table.preamble.id])
            for table in info.tables
        }
        self._ahead: dict[Row, p4r.TableEntry] = {}

    @property
    def tables(self) -> list[str]:
        """Return the tables that may be written."""
        return [name for name, table in self._tables.items() if not table.const]

    def update(self, change: Change) -> p4r.Update:
        """Return the update of a change."""
        entity = p4r.Entity(table_entry=self.entry(change.row))
        return p4r.Update(type=UPDATE_TYPE[change.op], entity=entity)

    def encode_ahead(self, rows: Iterable[Row]) -> None:
        """Build entries that will be written when there is no time for it."""
        if len(self._ahead) > _AHEAD:
            self._ahead.clear()  # of changes that were never made
        for row in rows:
            if row not in self._ahead:
                self._ahead[row] = self._encode(row)

    def entry(self, row: Row) -> p4r.TableEntry:
        """Return the table entry of a row."""
        made = self._ahead.pop(row, None) if self._ahead else None
        return made if made is not None else self._encode(row)

    def _encode(self, row: Row) -> p4r.TableEntry:
        table = self._tables.get(row.table)
        if table is None:
            raise ConfigError(f"the switch's program has no table {row.table!r}")
        action = table.actions.get(row.action)
        if action is None:
            raise ConfigError(f"table {row.table!r} has no action {row.action!r}")
        params = [
            p4r.Action.Param(param_id=param_id, value=canonical(value))
            for (param_id, _), value in zip(action.params, row.params, strict=True)
        ]
        matches = [
            match
            for field, value in zip(table.fields, row.match, strict=True)
            if (match := _field_match(field, value)) is not None
        ]
        return p4r.TableEntry(
            table_id=table.id,
            match=matches,
            action=p4r.TableAction(action=p4r.Action(action_id=action.id, params=params)),
            priority=row.priority,
        )

    def row(self, entry: P4TableEntry) -> Row:
        """Return the row of an entry that was read (finsy has decoded its values)."""
        return self._row(entry.table_id, entry)

    def encode_named(self, entry: P4TableEntry) -> Row:
        """Return the row of an entry that was written by names, as in a runtime file."""
        message = entry.encode_entry(self._schema)
        return self.row(P4TableEntry.decode_entry(message, self._schema))

    def _row(self, name: str, entry: P4TableEntry) -> Row:
        table = self._tables[name]
        action = entry.action
        if not isinstance(action, P4TableAction):
            raise ConfigError(f"table {name!r} has an entry without a direct action, which is not supported")
        given: Mapping[str, object] = entry.match or {}
        match = tuple(_value(field, given.get(field.name)) for field in table.fields)
        params = tuple(int(action.args[param]) for _, param in table.actions[action.name].params)
        return Row(name, match, action.name, params, entry.priority)


def _table(table: p4i.Table, actions: dict[int, p4i.Action], known: P4Table) -> _Table:
    # finsy decodes a match under the last part of a field's name, its alias.
    fields = tuple(
        _Field(f.id, known.match_fields[f.id].alias, f.bitwidth, f.match_type) for f in table.match_fields
    )
    refs = [actions[ref.id] for ref in table.action_refs]
    by_name = {
        action.preamble.alias: _Action(action.preamble.id, tuple((p.id, p.name) for p in action.params))
        for action in refs
    }
    return _Table(table.preamble.id, fields, by_name, table.is_const_table)


def _value(field: _Field, value: object) -> Value:
    if value is None:
        # P4R-Spec section 9.1.1: a missing field is a "don't care" match.
        if field.kind in (p4i.MatchField.LPM, p4i.MatchField.TERNARY):
            return (0, 0)
        if field.kind == p4i.MatchField.RANGE:
            return (0, (1 << field.width) - 1)
        return None
    if isinstance(value, tuple):
        low, high = value
        return (int(low), int(high))
    return int(value)  # type: ignore[call-overload,no-any-return]


def _field_match(field: _Field, value: Value) -> p4r.FieldMatch | None:
    match = p4r.FieldMatch(field_id=field.id)
    if isinstance(value, int):
        if field.kind == p4i.MatchField.OPTIONAL:
            match.optional.value = canonical(value)
        else:
            match.exact.value = canonical(value)
        return match
    if value is None:
        return None
    first, second = value
    if field.kind == p4i.MatchField.LPM and second:
        match.lpm.value, match.lpm.prefix_len = canonical(first), second
    elif field.kind == p4i.MatchField.TERNARY and second:
        match.ternary.value, match.ternary.mask = canonical(first), canonical(second)
    elif field.kind == p4i.MatchField.RANGE and (first, second) != (0, (1 << field.width) - 1):
        match.range.low, match.range.high = canonical(first), canonical(second)
    else:
        return None
    return match
