"""Externs of this switch, beyond what a P4 program declares: hold queues, packets between updates, and what was lost.

P4Runtime's ExternEntry carries them (type ids from 0x81 are for what the specification does not know), so they come in
Write and Read like everything else, and a switch without them says UNIMPLEMENTED. Their `entry` is a
google.protobuf.Struct:

  HOLD_QUEUES  insert {"queue": 3, "packet_in": {"reason": 2, "id": 7}, "packet_out": {"operation": 1, "id": 7},
               "budget": 67108864}; modify {"queue": 3, "holding": false}; delete {"queue": 3}. Read, it says what a
               queue has held: "packets", "bytes", "dropped", and "waiting" bytes, "datagrams" of them UDP's.
               modify {"queue": 3, "holding": false, "room": 212992} lets go no more datagrams than take so many
               bytes of memory at their receivers; what is left of them waits for the next modify.
  PACKETS      insert a p4.v1.PacketOut, which takes the Struct's place: the packet leaves when the updates before it
               in its message have taken effect.
  LOSSES       read only: {"digests": 0, "packet_ins": 0}, since the pipeline was loaded.

Updates of externs and of table entries may also come on the stream, as a StreamMessageRequest's `other` with a
p4.v1.Update in it, or with several in a p4.v1.WriteRequest: they take effect sooner than a Write does, behind the
packet-outs that were sent before them and before those that are sent after them. Only refusals are answered, the first
one of a message.

A read must name the extern: who asks for everything does not expect what P4Info does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finsy.proto import p4r
from google.protobuf import any_pb2, struct_pb2
from google.protobuf.message import DecodeError

from dataplane.switch.p4runtime import packet_io
from dataplane.switch.p4runtime.errors import invalid, refusals, unimplemented
from dataplane.switch.p4runtime.schema import Field
from dataplane.switch.pipeline import HoldQueue, Operation, Pipeline, QueueState

EXTERN_TYPE = 0x81
HOLD_QUEUES, LOSSES, PACKETS = 0x8100_0001, 0x8100_0002, 0x8100_0003
_ON_STREAM = ("extern_entry", "table_entry")


def write_extern(
    pipeline: Pipeline, packet_out: Sequence[Field], operation: Operation, entry: p4r.ExternEntry
) -> None:
    """Carry out a write; `packet_out` is the header of packets from controllers. Raises RequestRefused."""
    if (entry.extern_type_id, entry.extern_id) == (EXTERN_TYPE, PACKETS):
        frame = packet_io.packet_out(packet_out, _packet(operation, entry))
        with refusals():
            pipeline.packet_out(frame)
        return
    if (entry.extern_type_id, entry.extern_id) != (EXTERN_TYPE, HOLD_QUEUES):
        raise unimplemented("externs are not offered by this switch, but for its hold queues")
    fields = _fields(entry)
    number = _number(fields, "queue")
    with refusals():
        if operation is Operation.INSERT:
            budget = _number(fields, "budget")
            pipeline.add_queue(
                number, HoldQueue(_header(fields, "packet_in"), _header(fields, "packet_out"), budget)
            )
        elif operation is Operation.DELETE:
            pipeline.remove_queue(number)
        elif fields.get("holding") is True:
            pipeline.hold_queue(number)
        elif fields.get("holding") is False:
            pipeline.release_queue(number, _number(fields, "room") if "room" in fields else None)
        else:
            raise invalid("a hold queue is modified by holding: true or false")


def _packet(operation: Operation, entry: p4r.ExternEntry) -> p4r.PacketOut:
    packet = p4r.PacketOut()
    try:
        if operation is Operation.INSERT and entry.entry.Unpack(packet):
            return packet
    except DecodeError as ex:
        raise invalid("a packet between updates is no valid p4.v1.PacketOut") from ex
    raise invalid("a packet between updates is a p4.v1.PacketOut that is inserted")


def stream_updates(message: any_pb2.Any) -> Sequence[p4r.Update]:
    """Unpack what came as a stream's `other` message; raises RequestRefused if it is none that may."""
    update, several = p4r.Update(), p4r.WriteRequest()
    updates: Sequence[p4r.Update] = ()
    try:
        if message.Unpack(update):
            updates = (update,)
        elif message.Unpack(several):
            updates = several.updates
    except DecodeError as ex:
        raise invalid("a stream message of our own is a p4.v1.Update; this one cannot be decoded") from ex
    if not updates or any(one.entity.WhichOneof("entity") not in _ON_STREAM for one in updates):
        raise unimplemented(
            "a stream takes no message of another kind than updates of externs and of table entries, as p4.v1.Update"
        )
    return updates


def read_externs(pipeline: Pipeline, request: p4r.ExternEntry) -> Iterator[p4r.Entity]:
    """Return what a read selects."""
    match request.extern_type_id, request.extern_id:
        case 0, 0:
            return iter(())
        case 0x81, 0x81000001:
            with refusals():
                states = pipeline.queues()
            return (_entity(HOLD_QUEUES, _state(number, state)) for number, state in states.items())
        case 0x81, 0x81000002:
            with refusals():
                return iter([_entity(LOSSES, dict(pipeline.lost()))])
    raise unimplemented("externs are not offered by this switch, but for its hold queues and losses")


def _fields(entry: p4r.ExternEntry) -> Mapping[str, Any]:
    struct = struct_pb2.Struct()
    try:
        if not entry.entry.Unpack(struct):
            raise invalid("a hold queue's entry is a google.protobuf.Struct")
    except DecodeError as ex:
        raise invalid("a hold queue's entry is no valid google.protobuf.Struct") from ex
    return dict(struct.items())


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, float) or not value.is_integer() or value < 0:
        raise invalid(f"a hold queue needs {name}: a whole number")
    return int(value)


def _header(fields: Mapping[str, Any], name: str) -> dict[str, int]:
    value = fields.get(name)
    if not isinstance(value, struct_pb2.Struct):
        raise invalid(f"a hold queue needs {name}: the fields of that header")
    given = dict(value.items())
    return {field: _number(given, field) for field in given}


def _state(number: int, state: QueueState) -> dict[str, Any]:
    queue = state.queue
    return {
        "queue": number,
        "packet_in": dict(queue.packet_in),
        "packet_out": dict(queue.packet_out),
        "budget": queue.budget,
        "holding": state.holding,
        "packets": state.packets,
        "bytes": state.bytes,
        "dropped": state.dropped,
        "waiting": state.waiting,
        "datagrams": state.datagrams,
    }


def _entity(id_: int, fields: Mapping[str, Any]) -> p4r.Entity:
    struct = struct_pb2.Struct()
    struct.update(fields)
    message = p4r.Entity(extern_entry=p4r.ExternEntry(extern_type_id=EXTERN_TYPE, extern_id=id_))
    message.extern_entry.entry.Pack(struct)
    return message
