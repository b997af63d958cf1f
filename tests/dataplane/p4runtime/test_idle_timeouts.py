"""Idle time-outs of table entries (P4Runtime specification, "Idle-timeout"), in tables of every kind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from finsy.proto import p4r
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from dataplane.compiler import compile_program
from tests.dataplane.p4runtime import process
from tests.dataplane.p4runtime.client import Client, Stream, codes, delete, failure, insert, modify
from tests.dataplane.p4runtime.named import Program, Value
from tests.dataplane.p4runtime.test_switch_packets import DEVICE_ID, Lab, Set

pytestmark = pytest.mark.net

INVALID = 3
MILLISECOND = 1_000_000
SHORT, LONG = 300 * MILLISECOND, 3600 * 1000 * MILLISECOND
A, B = 0x020000000001, 0x020000000002
TABLES: list[tuple[str, Callable[[int], Value], str]] = [
    ("one", lambda mac: mac, "counted"),
    ("prefix", lambda mac: (mac, 48), "reflect"),
    ("masked", lambda mac: (mac, (1 << 48) - 1), "reflect"),
]


@pytest.fixture(scope="module")
def program() -> Program:
    result = compile_program(Path(__file__).with_name("idle.p4"))
    return Program(result.p4info, json.dumps(result.bmv2_json).encode())


@pytest.fixture
def lab(program: Program) -> Iterator[Lab]:
    with process.running("--no-p4", "--device-id", str(DEVICE_ID)) as (switch, cables):
        client = Client(switch.address, DEVICE_ID)
        stream = client.stream()
        stream.become_primary()
        built = Lab(client, stream, cables, switch.process.pid)
        built.use(program)
        yield built
        stream.close()
        client.close()


def row(program: Program, mac: int, timeout: int = 0, kind: int = 0, **fields: object) -> p4r.TableEntry:
    table, match, action = TABLES[kind]
    if table == "masked":
        fields["priority"] = 1
    return program.row(
        f"MyIngress.{table}",
        {"dst": match(mac)},
        f"MyIngress.{action}",
        idle_timeout_ns=timeout,
        **fields,
    )


def hit(lab: Lab, mac: int) -> None:
    """Send a frame that a row matches, and see it come back."""
    address = ":".join(f"{mac:012x}"[at : at + 2] for at in range(0, 12, 2))
    assert lab.exchange(Ether(dst=address, src="02:00:00:00:00:ff", type=0x88B5) / Raw(b"x" * 50)) is not None


def silent(stream: Stream, timeout: float = 5.0) -> list[p4r.TableEntry]:
    """Return the entries of the next notification."""
    told: p4r.IdleTimeoutNotification = stream.expect("idle_timeout_notification", timeout)
    assert 0 <= time.time_ns() - told.timestamp < 60 * 10**9
    return list(told.table_entry)


@pytest.mark.parametrize("kind", range(len(TABLES)), ids=[name for name, _, _ in TABLES])
def test_a_silent_entry_is_told_of_once(lab: Lab, program: Program, kind: int) -> None:
    """And again when it has fallen silent again; with its metadata, and it stays."""
    lab.client.write(insert(row(program, A, SHORT, kind, metadata=b"mine")))
    lab.client.write(insert(row(program, B, LONG, kind)))
    wanted = row(program, A, SHORT, kind, metadata=b"mine")
    wanted.ClearField("action")
    assert silent(lab.stream) == [wanted]
    assert lab.stream.nothing_comes(3 * SHORT / 1e9)
    hit(lab, A)
    assert silent(lab.stream) == [wanted]
    assert lab.stream.nothing_comes(2 * SHORT / 1e9)
    assert len(lab.client.read_table()) == 2


@pytest.mark.parametrize("kind", range(len(TABLES)), ids=[name for name, _, _ in TABLES])
def test_an_entry_that_is_hit_is_not_told_of(lab: Lab, program: Program, kind: int) -> None:
    """However long it is there."""
    lab.client.write(insert(row(program, B, SHORT, kind)))
    for _ in range(20):  # a busy machine may hit it too seldom
        while not lab.stream.nothing_comes(0):
            pass
        last, longest = time.monotonic(), 0.0
        end = last + 3 * SHORT / 1e9
        while last < end:
            hit(lab, B)
            now = time.monotonic()
            last, longest = now, max(longest, now - last)
        if longest < SHORT / 2e9:
            assert lab.stream.nothing_comes(0)
            return
    pytest.fail(f"this machine cannot send a frame in {SHORT / 2e9} s")


def test_a_timeout_is_changed_and_taken_away(lab: Lab, program: Program) -> None:
    """MODIFY begins anew with what it says, 0 is never, and DELETE ends it."""
    lab.client.write(insert(row(program, A, LONG)))
    lab.client.write(insert(row(program, B, SHORT)))
    lab.client.write(modify(row(program, A, SHORT)))
    lab.client.write(modify(row(program, B)))
    (told,) = silent(lab.stream)
    assert told.match == row(program, A).match
    lab.client.write(modify(row(program, B, SHORT)))
    lab.client.write(delete(row(program, B)))
    assert lab.stream.nothing_comes(3 * SHORT / 1e9)
    lab.client.write(insert(row(program, B)))  # the cell of the one that was deleted
    assert lab.stream.nothing_comes(2 * SHORT / 1e9)


def test_reads_tell_timeouts_and_silences(lab: Lab, program: Program) -> None:
    """`time_since_last_hit` is there if it is asked for, of tables that know it."""
    lab.client.write(insert(row(program, A, LONG)))
    lab.client.write(insert(program.row("MyIngress.forever", {"dst": A}, "MyIngress.reflect")))
    time.sleep(0.2)
    request = p4r.TableEntry(time_since_last_hit=p4r.TableEntry.IdleTimeout())
    found = {
        entity.table_entry.table_id: entity.table_entry
        for entity in lab.client.read(p4r.Entity(table_entry=request))
    }
    one = found[program.id("tables", "MyIngress.one")]
    assert one.idle_timeout_ns == LONG
    assert 0.15e9 < one.time_since_last_hit.elapsed_ns < 5e9
    assert not found[program.id("tables", "MyIngress.forever")].HasField("time_since_last_hit")
    hit(lab, A)
    request.table_id = one.table_id
    (entity,) = lab.client.read(p4r.Entity(table_entry=request))
    assert entity.table_entry.time_since_last_hit.elapsed_ns < one.time_since_last_hit.elapsed_ns
    assert not lab.client.read_table(one.table_id)[0].HasField("time_since_last_hit")


def test_what_no_timeout_is_for(lab: Lab, program: Program) -> None:
    """A table without support, a default entry, a negative one; a time since the last hit is nothing to write."""
    forever = program.row("MyIngress.forever", {"dst": A}, "MyIngress.reflect", idle_timeout_ns=SHORT)
    default = program.row("MyIngress.one", {}, "NoAction", is_default_action=True, idle_timeout_ns=SHORT)
    hit_before = row(program, A, SHORT)
    hit_before.time_since_last_hit.elapsed_ns = 1
    for update in (insert(forever), modify(default), insert(row(program, A, -1)), insert(hit_before)):
        assert codes(failure(partial(lab.client.write, update))) == [INVALID]


def test_a_new_primary_is_told_and_a_new_pipeline_goes_on(lab: Lab, program: Program) -> None:
    """Silences that nobody could be told of wait; entries that are taken over keep their time-outs."""
    lab.client.write(insert(row(program, A, SHORT)))
    lab.stream.close()
    time.sleep(2 * SHORT / 1e9)
    lab.stream = lab.client.stream()
    lab.stream.become_primary(2)
    assert [entry.match for entry in silent(lab.stream)] == [row(program, A).match]
    changed = Program(program.info, program.device_config.replace(b'"max_size": 16384', b'"max_size": 16000'))
    lab.client.set_config(Set.RECONCILE_AND_COMMIT, changed.info, changed.device_config, election=2)
    assert [entry.match for entry in silent(lab.stream)] == [row(program, A).match]


def test_many_fall_silent_together(lab: Lab, program: Program) -> None:
    """All of ten thousand are told of, in few messages, and each once."""
    count = 10_000
    for start in range(0, count, 1000):
        lab.client.write(*(insert(row(program, A + n, SHORT)) for n in range(start, start + 1000)))
    told: list[bytes] = []
    messages = 0
    while len(told) < count:
        told += [entry.match[0].exact.value for entry in silent(lab.stream)]
        messages += 1
    assert len(set(told)) == count
    assert messages <= 60
    assert lab.stream.nothing_comes(2 * SHORT / 1e9)
