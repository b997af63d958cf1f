"""StreamChannel over real gRPC: arbitration, packets, digests, stream errors."""

from __future__ import annotations

import grpc
import pytest
from finsy.proto import p4r

from tests.dataplane.p4runtime.client import Client, Stream, codes, exact_entry, explanation, failure, insert
from tests.dataplane.p4runtime.conftest import ModelSwitch
from tests.dataplane.p4runtime.programs import DIGEST_ID

OK, INVALID, NOT_FOUND, EXISTS, DENIED, FAILED_PRECONDITION = 0, 3, 5, 6, 7, 9


def test_primary_backup_and_takeover(client: Client) -> None:
    """Everybody hears of each change; the higher id wins, and comes back only by bidding again."""
    first, second = client.stream(), client.stream()
    first.become_primary(5)
    second.bid(3)
    note = second.expect("arbitration")
    assert (note.status.code, note.election_id.low) == (EXISTS, 5)
    second.bid(8)
    assert second.expect("arbitration").status.code == OK
    note = first.expect("arbitration")
    assert (note.status.code, note.election_id.low) == (EXISTS, 8)
    second.close()
    note = first.expect("arbitration")
    assert (note.status.code, note.election_id.low) == (NOT_FOUND, 8)
    first.bid(7)
    assert first.expect("arbitration").status.code == NOT_FOUND
    first.bid(8)
    assert first.expect("arbitration").status.code == OK
    first.close()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"election": 1, "device_id": 9}, grpc.StatusCode.NOT_FOUND),
        ({"election": 1, "role": p4r.Role(name="reader")}, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_bids_that_end_the_stream(client: Client, fields: dict[str, int], code: grpc.StatusCode) -> None:
    """A wrong device or a named role."""
    stream = client.stream()
    stream.bid(**fields)
    assert stream.failure().code() is code


def test_used_election_id_ends_the_stream(client: Client, primary: Stream) -> None:
    """The other controller stays primary."""
    stream = client.stream()
    stream.bid(1)
    error = stream.failure()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "election id" in explanation(error).lower()
    client.set_config()


def test_writes_need_the_primary(client: Client, primary: Stream) -> None:
    """Another id, no id, no stream any more: PERMISSION_DENIED. A wrong device comes first: NOT_FOUND."""
    client.set_config()
    error = failure(lambda: client.write(insert(exact_entry(1)), election=2))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    request = p4r.WriteRequest(device_id=client.device_id)
    assert failure(lambda: client.stub.Write(request)).code() is grpc.StatusCode.PERMISSION_DENIED
    request.device_id = 1
    assert failure(lambda: client.stub.Write(request)).code() is grpc.StatusCode.NOT_FOUND
    error = failure(lambda: client.write(role="reader"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    witness = client.stream()
    witness.bid(None)
    assert witness.expect("arbitration").status.code == EXISTS
    primary.close()
    assert witness.expect("arbitration").status.code == NOT_FOUND
    error = failure(lambda: client.write(insert(exact_entry(1))))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    witness.close()


def test_too_many_controllers(client: Client) -> None:
    """The seventeenth stream is turned away, the others still work."""
    streams = [client.stream() for _ in range(17)]
    for number, stream in enumerate(streams[:16], 1):
        stream.bid(number)
        while stream.expect("arbitration").status.code != OK:
            pass
    streams[16].bid(99)
    assert streams[16].failure().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.stub.Capabilities(p4r.CapabilitiesRequest()).p4runtime_api_version == "1.4.0"
    for stream in streams:
        stream.close()


def packet_out(port: int, reason: int, number: int, payload: bytes) -> p4r.PacketOut:
    values = (port, reason, number)
    metadata = [
        p4r.PacketMetadata(metadata_id=i, value=v.to_bytes((v.bit_length() + 7) // 8 or 1, "big"))
        for i, v in enumerate(values, 1)
    ]
    return p4r.PacketOut(payload=payload, metadata=metadata)


def test_packets_both_ways(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """9 + 3 + 12 bits make three bytes of header; only the primary gets packets."""
    backup = ready.stream()
    backup.bid(None)
    backup.expect("arbitration")
    message = packet_out(0x155, 5, 0xABC, b"frame")
    header = (0x155 << 15 | 5 << 12 | 0xABC).to_bytes(3, "big")
    switch.engine.on_packet_in(header + b"frame")
    received = primary.expect("packet")
    assert (received.payload, list(received.metadata)) == (message.payload, list(message.metadata))
    assert backup.nothing_comes()
    primary.send(packet=message)
    switch.engine.on_packet_in(header + b"later")  # a round trip after the packet-out
    primary.expect("packet")
    primary.send(packet=p4r.PacketOut())
    assert primary.expect("error").canonical_code == INVALID
    assert switch.engine.running.sent == [header + b"frame"]
    backup.send(packet=message)
    error = backup.expect("error")
    assert error.canonical_code == DENIED
    assert error.packet_out.packet_out == message
    backup.close()


def test_packet_out_without_pipeline(primary: Stream) -> None:
    """Nothing could send it."""
    primary.send(packet=p4r.PacketOut(payload=b"x"))
    assert primary.expect("error").canonical_code == FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ([(1, b"\1"), (2, b"\1")], "id (id 3) is missing"),
        ([(1, b"\1"), (2, b"\1"), (3, b"\1"), (4, b"\1")], "no metadata field with id 4"),
        ([(1, b"\1"), (1, b"\1"), (2, b"\1")], "twice"),
        ([(1, b"\2\0"), (2, b"\1"), (3, b"\1")], "does not fit bit<9>"),
    ],
)
def test_malformed_packet_out(
    ready: Client, primary: Stream, metadata: list[tuple[int, bytes]], words: str
) -> None:
    """The stream goes on, with an error message."""
    fields = [p4r.PacketMetadata(metadata_id=i, value=value) for i, value in metadata]
    primary.send(packet=p4r.PacketOut(payload=b"x", metadata=fields))
    assert words in primary.expect("error").message
    primary.send(other={})
    assert primary.expect("error").WhichOneof("details") == "other"


def digest_update(kind: int, **config: int) -> p4r.Update:
    message = p4r.DigestEntry(digest_id=DIGEST_ID, config=p4r.DigestEntry.Config(**config))
    return p4r.Update(type=kind, entity=p4r.Entity(digest_entry=message))


def test_digest_lists(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """Off until enabled, then bundled; repeated only after an acknowledgement."""
    report = switch.engine.on_digest
    report("seen_t", (1, 1))
    ready.write(
        digest_update(p4r.Update.INSERT, max_timeout_ns=10**10, max_list_size=2, ack_timeout_ns=10**10)
    )
    for values in ((0x0A000001, 3), (0x0A000001, 3), (5, 0)):
        report("seen_t", values)
    received = primary.expect("digest")
    assert (received.digest_id, received.list_id, received.timestamp > 0) == (DIGEST_ID, 1, True)
    assert [[m.bitstring for m in data.struct.members] for data in received.data] == [
        [b"\x0a\x00\x00\x01", b"\x03"],
        [b"\x05", b"\x00"],
    ]
    report("seen_t", (5, 0))
    report("seen_t", (6, 0))
    assert primary.nothing_comes()
    primary.send(digest_ack=p4r.DigestListAck(digest_id=DIGEST_ID, list_id=1))
    primary.send(digest_ack=p4r.DigestListAck(digest_id=1))  # also tells that the one before was taken
    assert primary.expect("error").canonical_code == INVALID
    report("seen_t", (5, 0))
    assert [d.struct.members[0].bitstring for d in primary.expect("digest").data] == [b"\x06", b"\x05"]


def test_waiting_digests_go_out_in_time(ready: Client, primary: Stream, switch: ModelSwitch) -> None:
    """A list that does not fill is sent after max_timeout_ns."""
    ready.write(digest_update(p4r.Update.INSERT, max_timeout_ns=20_000_000, max_list_size=100))
    for number in range(3):
        switch.engine.on_digest("seen_t", (number, 0))
    assert len(primary.expect("digest").data) == 3
    switch.engine.on_digest("seen_t", (0, 0))
    assert len(primary.expect("digest").data) == 1


def test_digest_configuration(ready: Client) -> None:
    """INSERT once, MODIFY and DELETE what is there, read one or all."""
    one = p4r.Entity(digest_entry=p4r.DigestEntry(digest_id=DIGEST_ID))
    assert codes(failure(lambda: ready.write(digest_update(p4r.Update.MODIFY)))) == [NOT_FOUND]
    ready.write(digest_update(p4r.Update.INSERT, max_list_size=5))
    assert codes(failure(lambda: ready.write(digest_update(p4r.Update.INSERT)))) == [EXISTS]
    assert codes(failure(lambda: ready.write(digest_update(p4r.Update.MODIFY, max_list_size=-1)))) == [
        INVALID
    ]
    ready.write(digest_update(p4r.Update.MODIFY, ack_timeout_ns=7))
    for request in (one, p4r.Entity(digest_entry=p4r.DigestEntry())):
        assert [e.digest_entry.config.ack_timeout_ns for e in ready.read(request)] == [7]
    ready.write(digest_update(p4r.Update.DELETE))
    assert ready.read(one) == []
