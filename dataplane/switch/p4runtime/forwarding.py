"""The forwarding state of one pipeline, as P4Runtime entities: batches of writes, reads, rollback, copying.

Which module handles which entity is decided here and nowhere else. Consecutive writes of table rows are collected and
given to the pipeline in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from finsy.proto import p4r
from google.protobuf.message import Message

from dataplane.switch.p4runtime import arrays, externs, reads
from dataplane.switch.p4runtime.digests import Digests
from dataplane.switch.p4runtime.errors import Code, RequestRefused, invalid, refusals, unimplemented
from dataplane.switch.p4runtime.matches import encode_key
from dataplane.switch.p4runtime.schema import Schema
from dataplane.switch.p4runtime.tables import Plan, Row, Tables, operation_of
from dataplane.switch.pipeline import Operation, Pipeline, Update

Result = RequestRefused | None
Undo = Callable[[], None]

NOT_OFFERED = {
    "action_profile_member": "action profiles",
    "action_profile_group": "action profiles",
    "meter_entry": "meters",
    "direct_meter_entry": "direct meters",
    "packet_replication_engine_entry": "multicast groups and clone sessions",
    "value_set_entry": "parser value sets",
}


class Forwarding:
    """A loaded pipeline with everything that clients wrote to it."""

    def __init__(self, schema: Schema, pipeline: Pipeline) -> None:
        """Start from the state that the program declares."""
        self.schema = schema
        self.pipeline = pipeline
        self.tables = Tables(schema, pipeline)
        self.digests = Digests(schema)

    # ---- writes

    def write(self, updates: Sequence[p4r.Update]) -> list[Result]:
        """Attempt every update in order (CONTINUE_ON_ERROR); one result each."""
        results: list[Result] = [None] * len(updates)
        pending: list[Plan] = []
        positions: list[int] = []

        def flush() -> None:
            for position, result in zip(positions, self.tables.apply(pending), strict=True):
                results[position] = result
            pending.clear()
            positions.clear()

        for position, update in enumerate(updates):
            try:
                if _is_row(update):
                    message = update.entity.table_entry
                    if pending and update.type == p4r.Update.MODIFY and not message.HasField("action"):
                        flush()  # keeps the row's action, which an earlier update may set
                    pending.append(self.tables.plan(operation_of(update), message))
                    positions.append(position)
                else:
                    flush()
                    self._write_other(update)
            except RequestRefused as ex:
                results[position] = ex
        flush()
        return results

    def _write_other(self, update: p4r.Update) -> None:
        operation = operation_of(update)
        entity = update.entity
        match entity.WhichOneof("entity"):
            case "table_entry":
                self.tables.write_default(operation, entity.table_entry)
            case "direct_counter_entry":
                self.tables.write_direct_counter(operation, entity.direct_counter_entry)
            case "counter_entry":
                arrays.write_counter(self.schema, self.pipeline, operation, entity.counter_entry)
            case "register_entry":
                arrays.write_register(self.schema, self.pipeline, operation, entity.register_entry)
            case "digest_entry":
                self.digests.write(operation, entity.digest_entry)
            case "extern_entry":
                externs.write_extern(self.pipeline, self.schema.packet_out, operation, entity.extern_entry)
            case None:
                raise invalid("the update names no entity")
            case kind:
                raise unimplemented(f"{NOT_OFFERED.get(kind, kind)} are not offered by this switch")

    def write_or_roll_back(self, updates: Sequence[p4r.Update]) -> list[Result]:
        """Attempt updates until one fails, then take back those before it (ROLLBACK_ON_ERROR)."""
        if any(update.entity.WhichOneof("entity") != "table_entry" for update in updates):
            raise unimplemented("ROLLBACK_ON_ERROR is offered for batches of table entries only")
        undo: list[Undo] = []
        for position, update in enumerate(updates):
            try:
                step = self._undo(update)
            except RequestRefused:
                step = None  # the update itself says better what is wrong with it
            (result,) = self.write([update])
            if result is not None:
                for take_back in reversed(undo):
                    take_back()
                aborted = RequestRefused(Code.ABORTED, f"taken back: update {position} of the batch failed")
                return [result if i == position else aborted for i in range(len(updates))]
            if step is not None:
                undo.append(step)
        return [None] * len(updates)

    def _undo(self, update: p4r.Update) -> Undo | None:
        """Return what takes an update of a table entry back, as things are now."""
        message = update.entity.table_entry
        table = self.tables.table(message.table_id)
        if message.is_default_action:
            before = self.tables.defaults.get(table.id)
            return lambda: self.tables.restore_default(table, before)
        row = self.tables.rows[table.id].get(self.tables.key(table, message))
        if row is None:
            delete = p4r.Update(type=p4r.Update.DELETE, entity=update.entity)
            return lambda: self._must(delete)
        if row.is_const:
            return None
        operation = p4r.Update.INSERT if operation_of(update) is Operation.DELETE else p4r.Update.MODIFY
        with_counter = operation == p4r.Update.INSERT or message.HasField("counter_data")
        restore = p4r.Update(type=operation, entity=self._entity(table.id, row, with_counter))
        return lambda: self._must(restore)

    def _entity(self, table_id: int, row: Row, with_counter: bool) -> p4r.Entity:
        request = p4r.TableEntry(table_id=table_id)
        table = self.tables.table(table_id)
        if with_counter and table.direct_counter is not None:
            request.counter_data.SetInParent()
        request.match.extend(encode_key(table, row.entry.match))
        request.priority = row.entry.priority
        found = [
            entity
            for entity in reads.read_entries(self.tables, request)
            if self.tables.key(table, entity.table_entry) == row.key
        ]
        return found[0]

    def _must(self, update: p4r.Update) -> None:
        (result,) = self.write([update])
        if result is not None:
            raise RequestRefused(Code.INTERNAL, f"cannot take an update back: {result.message}")

    # ---- reads

    def read(self, request: p4r.Entity) -> Iterator[p4r.Entity]:
        """Take a snapshot of what a request selects; the messages are made while the caller iterates."""
        match request.WhichOneof("entity"):
            case "table_entry":
                return reads.read_entries(self.tables, request.table_entry)
            case "direct_counter_entry":
                return reads.read_direct_counters(self.tables, request.direct_counter_entry)
            case "counter_entry":
                return arrays.read_counters(self.schema, self.pipeline, request.counter_entry)
            case "register_entry":
                return arrays.read_registers(self.schema, self.pipeline, request.register_entry)
            case "digest_entry":
                return self.digests.read(request.digest_entry)
            case "extern_entry":
                return externs.read_externs(self.pipeline, request.extern_entry)
            case None:
                raise invalid("the request names no entity")
            case kind if kind in NOT_OFFERED and _selects_all(getattr(request, kind)):
                return iter(())  # nobody can have made any; finsy's delete_all asks for them
            case kind:
                raise unimplemented(f"{NOT_OFFERED.get(kind, kind)} are not offered by this switch")

    # ---- reconciliation

    def adopt(self, other: Forwarding) -> None:
        """Take over all that clients wrote to another pipeline; raises RequestRefused if something does not fit."""
        initial = [
            Plan(table, Update(Operation.DELETE, table.name, row.entry), row)
            for table in self.schema.tables.values()
            for row in self.tables.rows[table.id].values()
            if not row.is_const
        ]
        self.tables.apply(initial)  # what the program preinstalls and clients may have deleted
        updates = [update for entity in other.everything() if (update := _adopting(entity)) is not None]
        for update, result in zip(updates, self.write(updates), strict=True):
            if result is not None:
                entity = str(update.entity).replace("\n", " ")
                raise invalid(
                    f"the forwarding state does not fit the new pipeline: {result.message} ({entity})"
                )

    def everything(self) -> Iterator[p4r.Entity]:
        """Read the whole state, with counters, registers and changed default entries."""
        requests = [
            p4r.Entity(table_entry=p4r.TableEntry(counter_data=p4r.CounterData())),
            p4r.Entity(counter_entry=p4r.CounterEntry()),
            p4r.Entity(register_entry=p4r.RegisterEntry()),
            p4r.Entity(digest_entry=p4r.DigestEntry()),
        ]
        requests += [
            p4r.Entity(table_entry=p4r.TableEntry(table_id=table_id, is_default_action=True))
            for table_id in self.tables.defaults
        ]
        for request in requests:
            yield from self.read(request)

    def close(self) -> None:
        """Free the pipeline."""
        with refusals():
            self.pipeline.close()


def _is_row(update: p4r.Update) -> bool:
    entity = update.entity
    return entity.HasField("table_entry") and not entity.table_entry.is_default_action


def _adopting(entity: p4r.Entity) -> p4r.Update | None:
    """Return the update that copies an entity to a fresh pipeline; None where there is nothing to copy."""
    match entity.WhichOneof("entity"):
        case "table_entry" if entity.table_entry.is_const:
            return None
        case "table_entry" if entity.table_entry.is_default_action:
            return p4r.Update(type=p4r.Update.MODIFY, entity=entity)
        case "counter_entry" if not entity.counter_entry.data.ByteSize():
            return None
        case "register_entry" if entity.register_entry.data.bitstring == b"\0":
            return None
        case "counter_entry" | "register_entry":
            return p4r.Update(type=p4r.Update.MODIFY, entity=entity)
    return p4r.Update(type=p4r.Update.INSERT, entity=entity)


def _selects_all(request: Message) -> bool:
    """Say whether a read sets no field, so that it asks for every entity of its kind."""
    return all(isinstance(value, Message) and _selects_all(value) for _, value in request.ListFields())
