"""Table entries over real gRPC: write, read back, and each rule that a write can break."""

from __future__ import annotations

from functools import partial
from typing import Any

import grpc
import pytest
from finsy.proto import p4r

from dataplane.switch.pipeline import ActionCall, Exact, TableEntry
from tests.dataplane.p4runtime import programs
from tests.dataplane.p4runtime.client import (
    Client,
    Stream,
    action,
    codes,
    delete,
    details,
    entry,
    exact,
    exact_entry,
    explanation,
    failure,
    insert,
    lpm,
    modify,
    optional,
    ranged,
    ternary,
)
from tests.dataplane.p4runtime.conftest import ModelSwitch
from tests.dataplane.p4runtime.programs import (
    CONST_ID,
    DROP_ID,
    EXACT_ID,
    FIXED_ID,
    KEYLESS_ID,
    LPM_ID,
    MARK_ID,
    NO_ACTION_ID,
    SEND_ID,
    TERNARY_ID,
)

INVALID, NOT_FOUND, EXISTS, DENIED, EXHAUSTED, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED = (
    3,
    5,
    6,
    7,
    8,
    10,
    11,
    12,
)
DROP = action(DROP_ID)


def acl(**fields: Any) -> p4r.TableEntry:
    match = [
        exact(1, b"\x06"),
        ternary(2, b"\x0a\x00\x00\x00", b"\xff\x00\x00\x00"),
        ranged(3, b"\x50", b"\x01\xbb"),
        optional(4, b"\x03"),
    ]
    return entry(TERNARY_ID, match, DROP, **({"priority": 10} | fields))


def test_what_is_written_is_read_back(ready: Client) -> None:
    """Canonical entries of every match kind come back as they were sent."""
    rows = [
        exact_entry(300, metadata=b"cookie", controller_metadata=9),
        entry(LPM_ID, [lpm(1, b"\x0a\x00\x00\x00", 8)], action(SEND_ID, b"\x01\xff", b"\x00")),
        entry(LPM_ID, [], DROP),
        acl(),
        entry(TERNARY_ID, [exact(1, b"\x00")], DROP, priority=1),
    ]
    ready.write(*map(insert, rows))
    for row in rows:
        assert row in ready.read_table(row.table_id)
    assert len(ready.read_table()) == len(rows)


def test_padded_bytes_are_accepted_and_canonical_ones_returned(ready: Client) -> None:
    """ "The receiver does not impose any restrictions on the maximum length of the string itself"."""
    padded = entry(
        EXACT_ID,
        [exact(2, b"\x00\x00\x00\x00\x00\x05"), exact(1, b"\x00\x01")],
        action(SEND_ID, b"\x00\x00\x02", b"\x00\x0a"),
    )
    ready.write(insert(padded))
    assert ready.read_table(EXACT_ID) == [exact_entry(5)]


@pytest.mark.parametrize(
    ("code", "row", "words"),
    [
        (INVALID, entry(0x02FFFFFF, [], DROP), "no table with id"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1")], DROP), "field address is matched exactly and must be given"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), exact(1, b"\1")], DROP), "given twice"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), exact(2, b"\1"), exact(3, b"\1")], DROP), "field with id 3"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), lpm(2, b"\1", 32)], DROP), "is matched exact, not lpm"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), p4r.FieldMatch(field_id=2)], DROP), "not at all"),
        (OUT_OF_RANGE, entry(EXACT_ID, [exact(1, b"\x02\x00"), exact(2, b"\1")], DROP), "0x0200 does not fit bit<9>"),
        (OUT_OF_RANGE, entry(EXACT_ID, [exact(1, b""), exact(2, b"\1")], DROP), "empty"),
        (INVALID, exact_entry(1, priority=1), "takes no priority"),
        (INVALID, acl(priority=0), "needs a priority"),
        (INVALID, acl(priority=-1), "needs a priority"),
        (INVALID, entry(LPM_ID, [lpm(1, b"\0", 0)], DROP), "omit a don't care"),
        (INVALID, entry(LPM_ID, [lpm(1, b"\1", 33)], DROP), "prefix length 33"),
        (INVALID, entry(LPM_ID, [lpm(1, b"\x0a\0\0\1", 8)], DROP), "beyond its prefix"),
        (INVALID, entry(TERNARY_ID, [exact(1, b"\1"), ternary(2, b"\0", b"\0")], DROP, priority=1), "mask is zero"),
        (INVALID, entry(TERNARY_ID, [exact(1, b"\1"), ternary(2, b"\3", b"\1")], DROP, priority=1), "outside its mask"),
        (INVALID, entry(TERNARY_ID, [exact(1, b"\1"), ranged(3, b"\2", b"\1")], DROP, priority=1), "greater than high"),
        (INVALID, entry(TERNARY_ID, [exact(1, b"\1"), ranged(3, b"\0", b"\xff\xff")], DROP, priority=1), "everything"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), exact(2, b"\1")]), "needs an action"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), exact(2, b"\1")], p4r.TableAction()), "takes an action"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), exact(2, b"\1")], action(MARK_ID, b"\1")), "no action with id"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), exact(2, b"\1")], action(SEND_ID, b"\1")), "2 (mac); given: 1"),
        (INVALID, entry(EXACT_ID, [exact(1, b"\1"), exact(2, b"\1")], action(DROP_ID, b"\1")), "none; given: 1"),
        (OUT_OF_RANGE, entry(EXACT_ID, [exact(1, b"\1"), exact(2, b"\1")], action(SEND_ID, b"\2\0", b"\1")), "port"),
        (INVALID, exact_entry(1, is_const=True), "is_const"),
        (INVALID, exact_entry(1, idle_timeout_ns=5), "idle timeout"),
        (UNIMPLEMENTED, exact_entry(1, meter_config=p4r.MeterConfig()), "meters"),
        (INVALID, acl(counter_data=p4r.CounterData()), "no direct counter"),
        (INVALID, exact_entry(1, counter_data=p4r.CounterData(packet_count=-1)), "negative"),
        (INVALID, exact_entry(1, is_default_action=True), "can only be modified"),
        (INVALID, entry(KEYLESS_ID, [], action(MARK_ID, b"\1")), "default entry only"),
        (DENIED, entry(CONST_ID, [exact(1, b"\1")], action(MARK_ID, b"\1")), "const"),
        (DENIED, entry(FIXED_ID, [exact(1, b"\1")], action(NO_ACTION_ID)), "not for an entry"),
    ],
)  # fmt: skip
def test_malformed_inserts_are_refused(ready: Client, code: int, row: p4r.TableEntry, words: str) -> None:
    """Each rule has its code and a message that names the offender, and nothing changes."""
    error = failure(lambda: ready.write(insert(row)))
    assert error.code() is grpc.StatusCode.UNKNOWN
    (detail,) = details(error)
    assert (detail.canonical_code, detail.space) == (code, "p4ferry")
    assert words in detail.message
    assert ready.read_table() == []


def test_insert_modify_delete_answer_by_state(ready: Client) -> None:
    """ALREADY_EXISTS, NOT_FOUND; only the failed updates of a batch are not carried out."""
    one, two = exact_entry(1), exact_entry(2)
    ready.write(insert(one))
    changed = entry(EXACT_ID, one.match, DROP, metadata=b"m")
    error = failure(
        lambda: ready.write(
            insert(one), insert(two), modify(exact_entry(3)), delete(exact_entry(4)), modify(changed)
        )
    )
    assert codes(error) == [EXISTS, 0, NOT_FOUND, NOT_FOUND, 0]
    assert details(error)[1] == p4r.Error()
    assert ready.read_table(EXACT_ID) == [changed, two]
    ready.write(delete(entry(EXACT_ID, one.match, action(0x01FFFFFF, b"nonsense"))))
    assert ready.read_table(EXACT_ID) == [two]


def test_modify_without_action_keeps_the_action(ready: Client) -> None:
    """An unset action means no change of it; also within the batch that inserts the row."""
    row = exact_entry(1)
    ready.write(insert(row), modify(entry(EXACT_ID, row.match, metadata=b"new")))
    row.metadata = b"new"
    assert ready.read_table(EXACT_ID) == [row]
    assert codes(failure(lambda: ready.write(modify(entry(EXACT_ID, exact_entry(2).match))))) == [NOT_FOUND]


def test_a_full_table_says_so(ready: Client) -> None:
    """RESOURCE_EXHAUSTED comes from the pipeline."""
    rows = [insert(entry(LPM_ID, [lpm(1, bytes([number, 0, 0, 0]), 8)], DROP)) for number in range(1, 6)]
    assert codes(failure(lambda: ready.write(*rows))) == [0, 0, 0, 0, EXHAUSTED]
    assert len(ready.read_table(LPM_ID)) == 4


def test_default_entries(ready: Client, switch: ModelSwitch) -> None:
    """They can be modified, read and reset, and are no part of other reads."""
    (default,) = ready.read_table(LPM_ID, is_default_action=True)
    assert default == entry(LPM_ID, [], DROP, is_default_action=True)
    wanted = entry(LPM_ID, [], action(SEND_ID, b"\3", b"\4"), is_default_action=True, metadata=b"mine")
    ready.write(modify(wanted))
    assert switch.engine.running.defaults["Ingress.lpm"] == ActionCall("Ingress.send", (3, 4))
    assert ready.read_table(LPM_ID, is_default_action=True) == [wanted]
    assert ready.read_table(LPM_ID) == []
    ready.write(modify(entry(LPM_ID, [], is_default_action=True)))
    assert switch.engine.running.defaults["Ingress.lpm"] is None
    assert ready.read_table(LPM_ID, is_default_action=True) == [default]
    assert {row.table_id for row in ready.read_table(is_default_action=True)} == set(
        range(EXACT_ID - 1, FIXED_ID + 1)
    )


@pytest.mark.parametrize(
    ("code", "update"),
    [
        (INVALID, insert(entry(LPM_ID, [], DROP, is_default_action=True))),
        (INVALID, delete(entry(LPM_ID, [], DROP, is_default_action=True))),
        (INVALID, modify(entry(LPM_ID, [lpm(1, b"\x0a\0\0\0", 8)], DROP, is_default_action=True))),
        (INVALID, modify(entry(LPM_ID, [], DROP, priority=1, is_default_action=True))),
        (DENIED, modify(entry(FIXED_ID, [], DROP, is_default_action=True))),
        (DENIED, modify(entry(KEYLESS_ID, [], action(NO_ACTION_ID), is_default_action=True))),
        (INVALID, modify(entry(LPM_ID, [], action(MARK_ID, b"\1"), is_default_action=True))),
        (INVALID, p4r.Update(entity=p4r.Entity(table_entry=exact_entry(1)))),
        (INVALID, p4r.Update(type=p4r.Update.INSERT)),
    ],
)
def test_wrong_writes_of_default_entries(ready: Client, code: int, update: p4r.Update) -> None:
    """No insert, no delete, no key, no const default, no action out of scope."""
    assert codes(failure(lambda: ready.write(update))) == [code]


def test_const_entries_are_visible_and_immutable(
    client: Client, primary: Stream, switch: ModelSwitch
) -> None:
    """They are read with is_const; writes are denied."""
    switch.engine.const = {"Ingress.constant": [TableEntry((Exact(6),), ActionCall("Ingress.mark", (3,)))]}
    client.set_config()
    row = entry(CONST_ID, [exact(1, b"\x06")], action(MARK_ID, b"\x03"), is_const=True)
    assert client.read_table(CONST_ID) == [row] == client.read_table()
    row.is_const = False
    for update in (insert(row), modify(row), delete(row)):
        assert codes(failure(partial(client.write, update))) == [DENIED]


def test_read_filters(ready: Client) -> None:
    """Match, priority, metadata and action select."""
    first, second = acl(metadata=b"a"), acl(priority=20, metadata=b"b", controller_metadata=5)
    send = entry(TERNARY_ID, [exact(1, b"\x11")], action(SEND_ID, b"\1", b"\1"), priority=10)
    ready.write(insert(first), insert(second), insert(send))
    assert ready.read_table(TERNARY_ID) == [first, second, send]
    assert ready.read_table(TERNARY_ID, priority=10) == [first, send]
    assert ready.read_table(TERNARY_ID, match=first.match) == [first, second]
    assert ready.read_table(TERNARY_ID, match=first.match, priority=20) == [second]
    assert ready.read_table(TERNARY_ID, match=first.match, priority=30) == []
    assert ready.read_table(TERNARY_ID, metadata=b"b") == [second]
    assert ready.read_table(TERNARY_ID, controller_metadata=5) == [second]
    assert ready.read_table(TERNARY_ID, action=p4r.TableAction(action=p4r.Action(action_id=SEND_ID))) == [
        send
    ]


def test_failed_reads_come_after_what_succeeded(ready: Client) -> None:
    """ "entities corresponding to a and c, followed by a status" for b and d."""
    ready.write(insert(exact_entry(1)))
    wanted = [
        p4r.Entity(table_entry=p4r.TableEntry(table_id=EXACT_ID)),
        p4r.Entity(table_entry=p4r.TableEntry(table_id=1)),
        p4r.Entity(),
        p4r.Entity(meter_entry=p4r.MeterEntry(meter_id=1)),
        p4r.Entity(table_entry=p4r.TableEntry(match=[exact(1, b"\1")])),
    ]
    found = []
    request = p4r.ReadRequest(device_id=ready.device_id, entities=wanted)
    with pytest.raises(grpc.RpcError) as caught:
        for response in ready.stub.Read(request):
            found += response.entities
    assert [e.table_entry for e in found] == [exact_entry(1)]
    assert codes(caught.value) == [0, INVALID, INVALID, UNIMPLEMENTED, INVALID]


def test_many_rows_come_in_many_messages(ready: Client) -> None:
    """A large table fits no single message; the last one is not full."""
    ready.write(*(insert(exact_entry(number)) for number in range(1, 2501)))
    request = p4r.ReadRequest(device_id=ready.device_id, entities=[p4r.Entity(table_entry=p4r.TableEntry())])
    assert [len(response.entities) for response in ready.stub.Read(request)] == [1000, 1000, 500]


def test_rollback_takes_everything_back(ready: Client) -> None:
    """ROLLBACK_ON_ERROR: all or nothing, counters of deleted rows included."""
    kept, gone = exact_entry(1, metadata=b"x"), exact_entry(2)
    counted = entry(
        EXACT_ID, gone.match, gone.action, counter_data=p4r.CounterData(packet_count=3, byte_count=4)
    )
    default = entry(LPM_ID, [], action(SEND_ID, b"\3", b"\4"), is_default_action=True)
    ready.write(insert(kept), insert(counted))
    updates = [
        modify(entry(EXACT_ID, kept.match, DROP)),
        delete(gone),
        insert(exact_entry(3)),
        modify(default),
        insert(kept),
    ]
    error = failure(lambda: ready.write(*updates, atomicity=p4r.WriteRequest.ROLLBACK_ON_ERROR))
    assert codes(error) == [ABORTED, ABORTED, ABORTED, ABORTED, EXISTS]
    assert ready.read_table(EXACT_ID) == [kept, gone]
    assert ready.read_table(LPM_ID, is_default_action=True) != [default]
    (read,) = ready.read_table(EXACT_ID, match=gone.match, counter_data=p4r.CounterData())
    assert read.counter_data == counted.counter_data
    ready.write(*updates[:-1], atomicity=p4r.WriteRequest.ROLLBACK_ON_ERROR)
    assert len(ready.read_table(EXACT_ID)) == 2


def test_atomicity_that_is_not_offered(ready: Client) -> None:
    """DATAPLANE_ATOMIC with several updates, rollback of anything but table entries: UNIMPLEMENTED as a whole."""
    atomic = p4r.WriteRequest.DATAPLANE_ATOMIC
    ready.write(insert(exact_entry(1)), atomicity=atomic)
    error = failure(lambda: ready.write(insert(exact_entry(2)), insert(exact_entry(3)), atomicity=atomic))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    counter = p4r.Update(type=p4r.Update.MODIFY, entity=p4r.Entity(counter_entry=p4r.CounterEntry()))
    error = failure(lambda: ready.write(counter, atomicity=p4r.WriteRequest.ROLLBACK_ON_ERROR))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert len(ready.read_table()) == 1


@pytest.mark.parametrize("size", [200, 1000, 3000])
def test_errors_of_large_batches_fit_the_metadata(ready: Client, size: int) -> None:
    """Codes are kept as long as finsy's 64 KiB allow; beyond, the message still names the first failures."""
    ready.write(insert(exact_entry(5)))
    error = failure(lambda: ready.write(*(insert(exact_entry(5)) for _ in range(size))))
    assert error.code() is grpc.StatusCode.UNKNOWN
    assert "update 0: ALREADY_EXISTS" in explanation(error)
    if size <= 1000:
        assert codes(error) == [EXISTS] * size
    else:
        assert error.trailing_metadata() == ()


def test_program_description_is_consistent() -> None:
    """The test program's ids are of the kinds that P4Runtime prescribes."""
    info = programs.p4info()
    assert all(table.preamble.id >> 24 == 2 for table in info.tables)
    assert all(table_action.preamble.id >> 24 == 1 for table_action in info.actions)
