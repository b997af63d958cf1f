"""The rows of all tables: what was written through P4Runtime, beside what runs in the kernel.

The pipeline answers whether a write succeeds; this store remembers what succeeded, with what only the controller
knows (metadata), so that reads need not decode maps. Writes are planned (checked and translated) and then applied in
runs, because one call of the pipeline with a thousand updates is much cheaper than a thousand calls.

Default entries are kept only while they differ from the program's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finsy.proto import p4r

from dataplane.switch.p4runtime.errors import (
    Code,
    RequestRefused,
    from_pipeline,
    invalid,
    refusals,
    unimplemented,
)
from dataplane.switch.p4runtime.matches import decode_action, decode_key, encode_key
from dataplane.switch.p4runtime.schema import Schema, TableInfo
from dataplane.switch.pipeline import (
    ActionCall,
    CounterValue,
    Match,
    Operation,
    Pipeline,
    PipelineError,
    TableEntry,
    Update,
)

Key = tuple[tuple[Match, ...], int]
"""What identifies a row: its match and its priority."""

_OPERATIONS = {
    p4r.Update.INSERT: Operation.INSERT,
    p4r.Update.MODIFY: Operation.MODIFY,
    p4r.Update.DELETE: Operation.DELETE,
}
_NO_ACTION = ActionCall("")


@dataclass(frozen=True, slots=True)
class Row:
    """An entry with what the controller attached to it."""

    entry: TableEntry
    metadata: bytes = b""
    controller_metadata: int = 0
    is_const: bool = False

    @property
    def key(self) -> Key:
        """Return what identifies the row in its table."""
        return self.entry.match, self.entry.priority


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked write of one row; `counter` is the initial or new value of its direct counter."""

    table: TableInfo
    update: Update
    row: Row
    counter: CounterValue | None = None


def operation_of(update: p4r.Update) -> Operation:
    """Return what an update does; raises RequestRefused when that is unset."""
    operation = _OPERATIONS.get(update.type)
    if operation is None:
        raise invalid("the update's type is neither INSERT, MODIFY nor DELETE")
    return operation


def counter_value(data: p4r.CounterData) -> CounterValue:
    """Return the counts that a client sent."""
    if data.packet_count < 0 or data.byte_count < 0:
        raise invalid("a counter cannot be set to a negative value")
    return CounterValue(data.packet_count, data.byte_count)


class Tables:
    """The rows and default entries of one pipeline."""

    def __init__(self, schema: Schema, pipeline: Pipeline) -> None:
        """Start with the rows that the program itself declares."""
        self.schema = schema
        self.pipeline = pipeline
        self.rows: dict[int, dict[Key, Row]] = {table_id: {} for table_id in schema.tables}
        self.defaults: dict[int, Row] = {}
        self._by_name = {table.name: table for table in schema.tables.values()}
        declared = pipeline.const_entries()
        for table in schema.tables.values():
            for entry in declared.get(table.name, ()):
                row = Row(entry, is_const=table.is_const)
                self.rows[table.id][row.key] = row

    def table(self, table_id: int) -> TableInfo:
        """Return the table with an id; raises RequestRefused."""
        table = self.schema.tables.get(table_id)
        if table is None:
            raise invalid(f"P4Info has no table with id {table_id} (0x{table_id:08x})")
        return table

    def key(self, table: TableInfo, message: p4r.TableEntry) -> Key:
        """Return what identifies the row that a message speaks of."""
        match = decode_key(table, message.match)
        priority: int = message.priority
        if table.needs_priority:
            if priority <= 0:
                raise invalid(f"table {table.name} needs a priority greater than zero")
        elif priority:
            raise invalid(f"table {table.name} takes no priority: it has no ternary, range or optional field")
        return match, priority

    def default_row(self, table: TableInfo) -> Row:
        """Return the default entry as it is now."""
        return self.defaults.get(table.id) or Row(TableEntry((), table.default))

    # ---- writes

    def plan(self, operation: Operation, message: p4r.TableEntry) -> Plan:
        """Check the write of a row against P4Info, and translate it. Default entries go to `write_default`."""
        table = self.table(message.table_id)
        if not table.fields:
            raise invalid(f"table {table.name} has no key, so it has a default entry only")
        if message.is_const:
            raise invalid(f"table {table.name}: is_const is not for clients to set")
        match, priority = self.key(table, message)
        if table.is_const:
            self._check_const_write(table, operation, message)
        if operation is Operation.DELETE:
            # "All other fields must be ignored, even if they have nonsensical values."
            entry = TableEntry(match, _NO_ACTION, priority)
            return Plan(table, Update(operation, table.name, entry), Row(entry))
        counter = self._check_extras(table, message)
        if message.HasField("action"):
            action = decode_action(table, message.action)
            self._check_scope(table, message.action.action.action_id, table.default_only, "an entry")
        elif operation is Operation.MODIFY:
            action = self._existing(table, (match, priority)).entry.action
        else:
            raise invalid(f"table {table.name}: an INSERT needs an action")
        entry = TableEntry(match, action, priority, message.idle_timeout_ns)
        row = Row(entry, message.metadata, message.controller_metadata, table.is_const)
        return Plan(table, Update(operation, table.name, entry), row, counter)

    def apply(self, plans: Sequence[Plan]) -> list[RequestRefused | None]:
        """Carry out planned writes in order; one result each."""
        if not plans:
            return []
        answers = self.pipeline.apply([plan.update for plan in plans])
        return [self._settle(plan, answer) for plan, answer in zip(plans, answers, strict=True)]

    def _settle(self, plan: Plan, answer: PipelineError | None) -> RequestRefused | None:
        if answer is not None:
            return from_pipeline(answer)
        rows = self.rows[plan.table.id]
        if plan.update.operation is Operation.DELETE:
            rows.pop(plan.row.key, None)
            return None
        rows[plan.row.key] = plan.row
        # A new row counts from zero anyway.
        wanted = (
            None
            if plan.update.operation is Operation.INSERT and plan.counter == CounterValue()
            else plan.counter
        )
        if wanted is not None:
            try:
                self.pipeline.write_direct_counter(plan.table.name, plan.row.entry, wanted)
            except PipelineError as ex:
                return from_pipeline(ex)
        return None

    def write_default(self, operation: Operation, message: p4r.TableEntry) -> None:
        """Set or reset the default entry of a table."""
        table = self.table(message.table_id)
        if operation is not Operation.MODIFY:
            raise invalid(f"table {table.name}: the default entry always exists, it can only be modified")
        if message.match or message.priority:
            raise invalid(f"table {table.name}: the default entry has neither match nor priority")
        if table.const_default:
            raise RequestRefused(Code.PERMISSION_DENIED, f"table {table.name}: the default action is const")
        if self._check_extras(table, message) is not None:
            raise unimplemented(f"table {table.name}: counters of default entries cannot be written")
        if not message.HasField("action"):
            # "... leave the action field unset, in which case the default entry will be reset to its original value"
            self.restore_default(table, None)
            return
        action = decode_action(table, message.action)
        self._check_scope(table, message.action.action.action_id, table.table_only, "the default entry")
        row = Row(TableEntry((), action), message.metadata, message.controller_metadata)
        self.restore_default(table, row)

    def restore_default(self, table: TableInfo, row: Row | None) -> None:
        """Make a row the default entry; None means the program's own."""
        with refusals():
            self.pipeline.set_default(table.name, row.entry.action if row else None)
        if row is None:
            self.defaults.pop(table.id, None)
        else:
            self.defaults[table.id] = row

    def _existing(self, table: TableInfo, key: Key) -> Row:
        row = self.rows[table.id].get(key)
        if row is None:
            raise RequestRefused(Code.NOT_FOUND, f"table {table.name} has no such entry")
        return row

    def _check_const_write(self, table: TableInfo, operation: Operation, message: p4r.TableEntry) -> None:
        # Spec section "Constant Tables": only MODIFY of direct resources, with the action left out.
        if operation is not Operation.MODIFY or message.HasField("action"):
            raise RequestRefused(Code.PERMISSION_DENIED, f"table {table.name} is const")

    def _check_extras(self, table: TableInfo, message: p4r.TableEntry) -> CounterValue | None:
        """Refuse what a table does not have; return the counter value if one is given."""
        if message.HasField("time_since_last_hit"):
            raise invalid(f"table {table.name}: time_since_last_hit is for reads only")
        if message.idle_timeout_ns and not table.idle_timeout:
            raise invalid(f"table {table.name} does not support idle timeouts")
        if message.idle_timeout_ns < 0:
            raise invalid(f"table {table.name}: an idle timeout cannot be negative")
        if message.idle_timeout_ns and message.is_default_action:
            raise invalid(f"table {table.name}: the default entry has no idle timeout")
        if message.HasField("meter_config") or message.HasField("meter_counter_data"):
            raise unimplemented(f"table {table.name}: direct meters are not offered")
        if not message.HasField("counter_data"):
            return None
        if table.direct_counter is None:
            raise invalid(f"table {table.name} has no direct counter")
        return counter_value(message.counter_data)

    def _check_scope(self, table: TableInfo, action_id: int, excluded: frozenset[int], what: str) -> None:
        if action_id in excluded:
            raise RequestRefused(
                Code.PERMISSION_DENIED,
                f"table {table.name}: action {table.actions[action_id].name} is not for {what}",
            )

    # ---- idle time-outs

    def idle_entries(self, most: int) -> list[p4r.TableEntry]:
        """Return up to `most` entries that have been silent for their time-out, as a notification tells of them."""
        found = []
        for name, entry in self.pipeline.idle_rows(most):
            table = self._by_name[name]
            row = self.rows[table.id].get((entry.match, entry.priority))
            if row is not None:
                message = p4r.TableEntry(
                    table_id=table.id,
                    match=encode_key(table, entry.match),
                    priority=entry.priority,
                    metadata=row.metadata,
                    controller_metadata=row.controller_metadata,
                    idle_timeout_ns=entry.idle_timeout_ns,
                )
                found.append(message)
        return found

    # ---- direct counters

    def write_direct_counter(self, operation: Operation, message: p4r.DirectCounterEntry) -> None:
        """Overwrite the counter of one row."""
        if operation is not Operation.MODIFY:
            raise invalid("direct counters come and go with their rows: they can only be modified")
        table = self.table(message.table_entry.table_id)
        if table.direct_counter is None:
            raise invalid(f"table {table.name} has no direct counter")
        if message.table_entry.is_default_action:
            raise unimplemented(f"table {table.name}: counters of default entries cannot be written")
        row = self._existing(table, self.key(table, message.table_entry))
        value = counter_value(message.data)
        with refusals():
            self.pipeline.write_direct_counter(table.name, row.entry, value)
