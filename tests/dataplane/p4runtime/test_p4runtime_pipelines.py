"""SetForwardingPipelineConfig and GetForwardingPipelineConfig over real gRPC."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from finsy.proto import p4i, p4r

from dataplane.switch.p4runtime.device import NO_PIPELINE
from tests.dataplane.p4runtime import programs
from tests.dataplane.p4runtime.client import (
    Client,
    Stream,
    action,
    entry,
    exact_entry,
    explanation,
    failure,
    insert,
    modify,
)
from tests.dataplane.p4runtime.conftest import ModelSwitch
from tests.dataplane.p4runtime.programs import COUNTER_ID, DIGEST_ID, EXACT_ID, LPM_ID, REGISTER_ID, SEND_ID

Set = p4r.SetForwardingPipelineConfigRequest
Get = p4r.GetForwardingPipelineConfigRequest


def other_config(**changes: Any) -> bytes:
    """Return the test program's JSON with something else in it."""
    return json.dumps(programs.bmv2_json() | changes).encode()


def test_nothing_works_without_a_pipeline(client: Client, primary: Stream) -> None:
    """Reads and writes: FAILED_PRECONDITION; the configuration is unset."""
    for call in (lambda: client.write(insert(exact_entry(1))), client.read_table):
        error = failure(call)
        assert (error.code(), explanation(error)) == (grpc.StatusCode.FAILED_PRECONDITION, NO_PIPELINE)
    assert not client.get_config().HasField("config")


def test_only_the_primary_sets_a_pipeline(client: Client, primary: Stream, switch: ModelSwitch) -> None:
    """PERMISSION_DENIED before anything is compiled."""
    assert failure(lambda: client.set_config(election=4)).code() is grpc.StatusCode.PERMISSION_DENIED
    assert switch.engine.loaded == []


def test_the_configuration_is_returned(client: Client, primary: Stream) -> None:
    """All of it, or the parts asked for."""
    client.set_config(cookie=77)
    full = client.get_config().config
    assert full.p4info == programs.p4info()
    assert full.p4_device_config == programs.device_config()
    assert full.cookie.cookie == 77
    for kind, fields in (
        (Get.COOKIE_ONLY, {"cookie"}),
        (Get.P4INFO_AND_COOKIE, {"p4info", "cookie"}),
        (Get.DEVICE_CONFIG_AND_COOKIE, {"p4_device_config", "cookie"}),
    ):
        assert {field.name for field, _ in client.get_config(kind).config.ListFields()} == fields
    client.set_config()
    assert not client.get_config().config.HasField("cookie")


def test_verify_changes_nothing(ready: Client, switch: ModelSwitch) -> None:
    """The program is really loaded, and freed."""
    ready.write(insert(exact_entry(1)))
    ready.set_config(Set.VERIFY)
    assert [(p.active, p.closed) for p in switch.engine.loaded] == [(True, False), (False, True)]
    assert len(ready.read_table()) == 1


def test_commit_clears_the_state(ready: Client, switch: ModelSwitch) -> None:
    """VERIFY_AND_COMMIT starts afresh, and the old pipeline is freed after the new one is attached."""
    ready.write(insert(exact_entry(1)))
    ready.set_config()
    assert ready.read_table() == []
    assert [(p.active, p.closed) for p in switch.engine.loaded] == [(False, True), (True, False)]


def test_save_then_commit(ready: Client, switch: ModelSwitch) -> None:
    """Writes after VERIFY_AND_SAVE are for the saved pipeline, which COMMIT attaches with them."""
    ready.write(insert(exact_entry(1)))
    ready.set_config(Set.VERIFY_AND_SAVE, cookie=2)
    assert [(p.active, p.closed) for p in switch.engine.loaded] == [(True, False), (False, False)]
    assert ready.read_table() == []
    ready.write(insert(exact_entry(2)))
    assert ready.get_config().config.cookie.cookie == 2
    assert failure(lambda: ready.set_config(Set.COMMIT)).code() is grpc.StatusCode.INVALID_ARGUMENT
    ready.set_config(Set.COMMIT, with_config=False)
    assert ready.read_table() == [exact_entry(2)]
    assert [(p.active, p.closed) for p in switch.engine.loaded] == [(False, True), (True, False)]
    assert (
        failure(lambda: ready.set_config(Set.COMMIT, with_config=False)).code() is grpc.StatusCode.NOT_FOUND
    )


def test_reconcile_keeps_the_state(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """Rows, default entries, counters, registers and digests are in the new pipeline before it is attached."""
    counted = exact_entry(1, metadata=b"m", counter_data=p4r.CounterData(packet_count=4))
    default = entry(LPM_ID, [], action(SEND_ID, b"\1", b"\1"), is_default_action=True)
    cell = p4r.CounterEntry(
        counter_id=COUNTER_ID, index=p4r.Index(index=2), data=p4r.CounterData(byte_count=9)
    )
    last = p4r.RegisterEntry(register_id=REGISTER_ID, index=p4r.Index(index=1))
    last.data.bitstring = b"\x07"
    digest = p4r.DigestEntry(digest_id=DIGEST_ID, config=p4r.DigestEntry.Config(max_list_size=3))
    ready.write(
        insert(counted),
        modify(default),
        p4r.Update(type=p4r.Update.MODIFY, entity=p4r.Entity(counter_entry=cell)),
        p4r.Update(type=p4r.Update.MODIFY, entity=p4r.Entity(register_entry=last)),
        p4r.Update(type=p4r.Update.INSERT, entity=p4r.Entity(digest_entry=digest)),
    )
    ready.set_config(Set.RECONCILE_AND_COMMIT, cookie=5)
    assert len(switch.engine.loaded) == 1, "an equal configuration needs no new pipeline"
    assert ready.get_config().config.cookie.cookie == 5
    ready.set_config(Set.RECONCILE_AND_COMMIT, device_config=other_config(program="new.p4"))
    assert [(p.active, p.closed) for p in switch.engine.loaded] == [(False, True), (True, False)]
    assert ready.read_table(EXACT_ID, counter_data=p4r.CounterData()) == [counted]
    assert ready.read_table(LPM_ID, is_default_action=True) == [default]
    assert ready.read(p4r.Entity(counter_entry=cell))[0].counter_entry == cell
    assert ready.read(p4r.Entity(register_entry=last))[0].register_entry == last
    assert ready.read(p4r.Entity(digest_entry=digest))[0].digest_entry == digest


def test_reconcile_refuses_what_does_not_fit(ready: Client, switch: ModelSwitch) -> None:
    """INVALID_ARGUMENT, and the old pipeline runs on with its state."""
    ready.write(insert(exact_entry(1)))
    program = programs.bmv2_json()
    info = programs.p4info()
    for actions in (program["actions"][0]["runtime_data"], info.actions[0].params):
        del actions[1]
    error = failure(lambda: ready.set_config(Set.RECONCILE_AND_COMMIT, info, json.dumps(program).encode()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "does not fit the new pipeline" in explanation(error)
    assert [(p.active, p.closed) for p in switch.engine.loaded] == [(True, False), (False, True)]
    assert ready.read_table() == [exact_entry(1)]


def without(field: str) -> p4i.P4Info:
    info = programs.p4info()
    info.ClearField(field)
    return info


def changed(change: str) -> bytes:
    program = programs.bmv2_json()
    table = program["pipelines"][0]["tables"][0]
    match change:
        case "table":
            table["name"] = "Ingress.other"
        case "key":
            del table["key"][1]
        case "kind":
            table["key"][1]["match_type"] = "lpm"
        case "action":
            del table["action_ids"][0]
        case "width":
            program["actions"][0]["runtime_data"][0]["bitwidth"] = 8
        case "counter":
            program["counter_arrays"][1]["size"] = 4
        case "direct":
            del program["counter_arrays"][0]
        case "register":
            del program["register_arrays"][0]
        case "digest":
            del program["learn_lists"][0]
    return json.dumps(program).encode()


@pytest.mark.parametrize(
    ("device_config", "words"),
    [
        (b"", "p4_device_config is empty"),
        (b"\x08\x01not json", "not BMv2 JSON"),
        (b"[1]", "no pipelines"),
        (
            other_config(reject="load_balancer.p4:12:3: a loop cannot be unrolled"),
            "load_balancer.p4:12:3: a loop",
        ),
        (changed("table"), "table Ingress.exact is missing in the JSON"),
        (changed("key"), "table Ingress.exact has 2 keys in P4Info, 1 in the JSON"),
        (changed("kind"), "key address (exact) is address (lpm) in the JSON"),
        (changed("action"), "action Ingress.send of table Ingress.exact is missing"),
        (changed("width"), "action Ingress.send takes bits [9, 48] in P4Info, [8, 48] in the JSON"),
        (changed("counter"), "counter Ingress.flows with 8 cells is missing"),
        (changed("direct"), "direct counter Ingress.hits is missing"),
        (changed("register"), "register Ingress.last with 4 cells is missing"),
        (changed("digest"), "digest seen_t is missing"),
    ],
)
def test_bad_configurations_leave_the_old_one(
    ready: Client, switch: ModelSwitch, device_config: bytes, words: str
) -> None:
    """INVALID_ARGUMENT with the reason; the running pipeline keeps its state."""
    ready.write(insert(exact_entry(1)))
    error = failure(lambda: ready.set_config(device_config=device_config))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in explanation(error)
    assert switch.engine.loaded[0].active
    assert ready.read_table() == [exact_entry(1)]


def test_configurations_that_say_too_little(client: Client, primary: Stream) -> None:
    """No action, no config, no P4Info."""
    for call in (
        lambda: client.set_config(Set.UNSPECIFIED),
        lambda: client.set_config(Set.VERIFY, with_config=False),
    ):
        assert failure(call).code() is grpc.StatusCode.INVALID_ARGUMENT
    request = Set(device_id=client.device_id, action=Set.VERIFY)
    request.election_id.low = 1
    request.config.p4_device_config = programs.device_config()
    error = failure(lambda: client.stub.SetForwardingPipelineConfig(request))
    assert "no P4Info" in explanation(error)


def test_program_from_the_command_line(client: Client, primary: Stream, switch: ModelSwitch) -> None:
    """It runs, P4Runtime still waits for a configuration, which then replaces it."""
    switch.device.start_program(programs.device_config())
    assert switch.engine.running.active
    assert failure(client.read_table).code() is grpc.StatusCode.FAILED_PRECONDITION
    client.set_config()
    assert [(p.active, p.closed) for p in switch.engine.loaded] == [(False, True), (True, False)]
