"""Hold queues and losses as extern entries, over real gRPC."""

from __future__ import annotations

from typing import Any

import pytest
from finsy.proto import p4r
from google.protobuf import any_pb2, struct_pb2, wrappers_pb2

from dataplane.switch.p4runtime.externs import EXTERN_TYPE, HOLD_QUEUES, LOSSES, PACKETS
from tests.dataplane.p4runtime.client import Client, Stream, codes, exact_entry, failure, insert
from tests.dataplane.p4runtime.conftest import ModelSwitch
from tests.dataplane.p4runtime.test_p4runtime_sessions import packet_out

INVALID, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, UNIMPLEMENTED = 3, 5, 6, 7, 12
INSERT, MODIFY, DELETE = p4r.Update.INSERT, p4r.Update.MODIFY, p4r.Update.DELETE
QUEUE = {"queue": 3, "packet_in": {"reason": 2, "id": 7}, "packet_out": {"id": 7}, "budget": 1 << 26}


def extern(fields: dict[str, Any] | None, id_: int = HOLD_QUEUES, type_: int = EXTERN_TYPE) -> p4r.Entity:
    message = p4r.Entity(extern_entry=p4r.ExternEntry(extern_type_id=type_, extern_id=id_))
    if fields is not None:
        struct = struct_pb2.Struct()
        struct.update(fields)
        message.extern_entry.entry.Pack(struct)
    return message


def write(client: Client, kind: int, fields: dict[str, Any]) -> None:
    client.write(p4r.Update(type=kind, entity=extern(fields)))


def read(client: Client, id_: int = HOLD_QUEUES) -> list[dict[str, Any]]:
    found = []
    for entity in client.read(extern(None, id_)):
        assert (entity.extern_entry.extern_type_id, entity.extern_entry.extern_id) == (EXTERN_TYPE, id_)
        struct = struct_pb2.Struct()
        assert entity.extern_entry.entry.Unpack(struct)
        found.append({k: dict(v) if isinstance(v, struct_pb2.Struct) else v for k, v in struct.items()})
    return found


def test_the_life_of_a_queue(ready: Client, switch: ModelSwitch) -> None:
    """Made, let go, held again, removed; read at every stage."""
    assert read(ready) == []
    write(ready, INSERT, QUEUE)
    counts = {"packets": 0, "bytes": 0, "dropped": 0, "waiting": 0, "datagrams": 0}
    assert read(ready) == [{**QUEUE, "holding": True, **counts}]
    write(ready, MODIFY, {"queue": 3, "holding": False})
    assert read(ready)[0]["holding"] is False
    write(ready, MODIFY, {"queue": 3, "holding": False, "room": 212_992})
    assert switch.engine.running.rooms == [None, 212_992]
    write(ready, MODIFY, {"queue": 3, "holding": True})
    assert switch.engine.running.queues()[3].holding
    write(ready, DELETE, {"queue": 3})
    assert read(ready) == []


def test_losses(ready: Client, switch: ModelSwitch) -> None:
    """They can be read."""
    switch.engine.running.lost_packet_ins = 5
    assert read(ready, LOSSES) == [{"digests": 0, "packet_ins": 5}]


def test_a_read_of_everything_shows_none(ready: Client) -> None:
    """P4Info does not have them: who reads all externs would not know what they are."""
    write(ready, INSERT, QUEUE)
    assert ready.read(p4r.Entity(extern_entry=p4r.ExternEntry())) == []


@pytest.mark.parametrize(
    ("kind", "fields", "code", "message"),
    [
        (MODIFY, {"queue": 4, "holding": False}, NOT_FOUND, "there is no hold queue 4"),
        (DELETE, {"queue": 4}, NOT_FOUND, "there is no hold queue 4"),
        (INSERT, QUEUE, ALREADY_EXISTS, "hold queue 3 is there already"),
        (INSERT, QUEUE | {"queue": 64}, INVALID, "a switch has 64"),
        (INSERT, QUEUE | {"queue": 1.5}, INVALID, "needs queue: a whole number"),
        (INSERT, QUEUE | {"budget": -1}, INVALID, "needs budget: a whole number"),
        (INSERT, QUEUE | {"packet_in": 7}, INVALID, "needs packet_in: the fields"),
        (INSERT, QUEUE | {"packet_out": {"id": "x"}}, INVALID, "needs id: a whole number"),
        (MODIFY, {"queue": 3}, INVALID, "holding: true or false"),
        (MODIFY, {"queue": 3, "holding": False, "room": -1}, INVALID, "needs room: a whole number"),
        (MODIFY, {"queue": 3, "holding": False, "room": "all"}, INVALID, "needs room: a whole number"),
    ],
)
def test_refusals(ready: Client, kind: int, fields: dict[str, Any], code: int, message: str) -> None:
    """Each with code and reason."""
    write(ready, INSERT, QUEUE)
    error = failure(lambda: write(ready, kind, fields))
    assert codes(error) == [code]
    assert message in error.details() or message in str(error.trailing_metadata())


def test_other_externs(ready: Client) -> None:
    """What the switch does not know is unimplemented, as before."""
    error = failure(lambda: ready.write(p4r.Update(type=INSERT, entity=extern(QUEUE, LOSSES))))
    assert codes(error) == [UNIMPLEMENTED]
    assert codes(failure(lambda: ready.read(extern(None, 5, 0x90)))) == [UNIMPLEMENTED]
    other = extern(None)
    other.extern_entry.entry.Pack(wrappers_pb2.StringValue(value="hold"))
    assert codes(failure(lambda: ready.write(p4r.Update(type=INSERT, entity=other)))) == [INVALID]
    other.extern_entry.entry.Pack(struct_pb2.Struct())
    other.extern_entry.entry.value = b"\xff"
    assert codes(failure(lambda: ready.write(p4r.Update(type=INSERT, entity=other)))) == [INVALID]


def packed(kind: int, entity: p4r.Entity) -> any_pb2.Any:
    """Return an update as a stream's `other` message."""
    message = any_pb2.Any()
    message.Pack(p4r.Update(type=kind, entity=entity))
    return message


def on_stream(fields: dict[str, Any], kind: int = MODIFY) -> any_pb2.Any:
    """Return an update of a hold queue."""
    return packed(kind, extern(fields))


def test_a_queue_is_let_go_on_the_stream(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """In order with the packets that were sent before; nothing answers, and a Write of the same finds it done."""
    write(ready, INSERT, QUEUE)
    primary.send(other=on_stream({"queue": 3, "holding": False}))
    assert primary.nothing_comes()
    assert not switch.engine.running.queues()[3].holding
    write(ready, MODIFY, {"queue": 3, "holding": False})


def row_on_stream(kind: int) -> any_pb2.Any:
    """Return an update of a table entry."""
    return packed(kind, p4r.Entity(table_entry=exact_entry(1)))


def test_a_row_is_written_on_the_stream(ready: Client, primary: Stream) -> None:
    """Nothing answers; a Write finds the row there."""
    primary.send(other=row_on_stream(INSERT))
    assert primary.nothing_comes()
    assert codes(failure(lambda: ready.write(insert(exact_entry(1))))) == [ALREADY_EXISTS]
    primary.send(other=row_on_stream(DELETE))
    assert primary.nothing_comes()
    ready.write(insert(exact_entry(1)))


def several(*updates: p4r.Update) -> any_pb2.Any:
    """Return updates as a stream's `other` message."""
    message = any_pb2.Any()
    message.Pack(p4r.WriteRequest(updates=updates))
    return message


def test_several_updates_in_one_message(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """All are carried out, the first refusal is answered; a message with nothing in it is refused."""
    write(ready, INSERT, QUEUE)
    let_go = p4r.Update(type=MODIFY, entity=extern({"queue": 3, "holding": False}))
    primary.send(other=several(insert(exact_entry(1)), let_go))
    assert primary.nothing_comes()
    assert not switch.engine.running.queues()[3].holding
    message = several(insert(exact_entry(1)), insert(exact_entry(2)))
    primary.send(other=message)
    error = primary.expect("error")
    assert (error.canonical_code, error.other.other) == (ALREADY_EXISTS, message)
    assert codes(failure(lambda: ready.write(insert(exact_entry(2))))) == [ALREADY_EXISTS]
    counter = p4r.Update(type=MODIFY, entity=p4r.Entity(counter_entry=p4r.CounterEntry(counter_id=1)))
    for message in (several(), several(insert(exact_entry(3)), counter)):
        primary.send(other=message)
        assert primary.expect("error").canonical_code == UNIMPLEMENTED
    ready.write(insert(exact_entry(3)))


def packet(message: p4r.PacketOut, kind: int = INSERT) -> p4r.Update:
    """Return a packet as an update."""
    entity = extern(None, PACKETS)
    entity.extern_entry.entry.Pack(message)
    return p4r.Update(type=kind, entity=entity)


def test_a_packet_between_updates(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """It leaves behind the updates before it, refused ones too, on the stream as in a Write."""
    model = switch.engine.running
    rows: list[int] = []
    before = sum(map(len, model.tables.values()))
    sending = model.packet_out

    def counting(frame: bytes) -> None:
        rows.append(sum(map(len, model.tables.values())) - before)
        sending(frame)

    model.packet_out = counting  # type: ignore[method-assign]
    first, second = packet_out(0x155, 5, 0xABC, b"frame"), packet_out(1, 1, 1, b"other")
    ready.write(insert(exact_entry(1)), packet(first), insert(exact_entry(2)), packet(second))
    assert rows == [1, 2]
    assert [frame[-5:] for frame in model.sent] == [b"frame", b"other"]
    model.packet_out = sending  # type: ignore[method-assign]
    primary.send(other=several(insert(exact_entry(2)), packet(second)))
    assert primary.expect("error").canonical_code == ALREADY_EXISTS
    assert [frame[-5:] for frame in model.sent] == [b"frame", b"other", b"other"]


def test_packets_that_are_refused(ready: Client, switch: ModelSwitch) -> None:
    """Anything but a whole P4Runtime PacketOut that is inserted."""
    whole = packet_out(0x155, 5, 0xABC, b"frame")
    broken = packet(whole)
    broken.entity.extern_entry.entry.value = b"\xff"
    queue = p4r.Update(type=INSERT, entity=extern(QUEUE, PACKETS))
    for update in (packet(whole, MODIFY), packet(whole, DELETE), packet(p4r.PacketOut()), broken, queue):
        assert codes(failure(lambda update=update: ready.write(update))) == [INVALID]  # type: ignore[misc]
    assert switch.engine.running.sent == []


def test_stream_messages_that_are_refused(ready: Client, primary: Stream) -> None:
    """With the reason and the message; the stream goes on, and only the primary may send them."""
    counter = packed(MODIFY, p4r.Entity(counter_entry=p4r.CounterEntry(counter_id=1)))
    string = any_pb2.Any()
    string.Pack(wrappers_pb2.StringValue(value="hold"))
    broken = on_stream({"queue": 3, "holding": False})
    broken.value = b"\xff"
    for message, code in (
        (on_stream({"queue": 9, "holding": False}), NOT_FOUND),
        (counter, UNIMPLEMENTED),
        (row_on_stream(MODIFY), NOT_FOUND),
        (string, UNIMPLEMENTED),
        (any_pb2.Any(), UNIMPLEMENTED),
        (broken, INVALID),
    ):
        primary.send(other=message)
        error = primary.expect("error")
        assert (error.canonical_code, error.other.other) == (code, message)
    backup = ready.stream()
    backup.bid(None)
    backup.expect("arbitration")
    write(ready, INSERT, QUEUE)
    backup.send(other=on_stream({"queue": 3, "holding": False}))
    assert backup.expect("error").canonical_code == PERMISSION_DENIED
    assert read(ready)[0]["holding"] is True
    backup.close()
