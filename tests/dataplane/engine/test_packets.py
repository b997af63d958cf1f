"""Packets through real programs: what goes in, what comes out."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from dataplane.switch.engine import offload
from dataplane.switch.pipeline import ActionCall, CounterValue, Exact, Operation, TableEntry, Ternary, Update
from tests.dataplane.engine import build
from tests.dataplane.engine.conftest import Lab, insert

pytestmark = pytest.mark.net

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def ip(text: str) -> int:
    return int.from_bytes(socket.inet_aton(text), "big")


def tcp(size: int = 20, **changes: object) -> Ether:
    return (
        Ether(dst=B, src=A)
        / IP(src="10.0.0.1", dst="10.0.0.2", **changes)
        / TCP(sport=1000, dport=80)
        / Raw(bytes(range(size % 256)) * (size // max(size % 256, 1)))
    )


def valid_checksums(frame: bytes) -> bool:
    """Tell whether IPv4, TCP and UDP checksums are those that scapy would write."""
    fresh = Ether(frame)
    del fresh[IP].chksum
    for layer in (TCP, UDP):
        if layer in fresh:
            del fresh[layer].chksum
    return bytes(fresh) == frame


def run_nat(lab: Lab) -> None:
    pipeline = lab.run(build.nat())
    insert(
        pipeline, "Ingress.nat", [Exact(ip("10.0.0.2")), Exact(1)],
        "Ingress.rewrite", 2, ip("192.168.7.1"), ip("172.16.3.4"), 4321, 8080, 0x020000000099,
    )  # fmt: skip


@pytest.mark.parametrize("layer", [TCP(sport=1000, dport=80), UDP(sport=1000, dport=80)], ids=["tcp", "udp"])
def test_rewrite_keeps_checksums_right(lab: Lab, layer: object) -> None:
    """Addresses, ports, TTL and MAC change; everything else is what came in, with right checksums."""
    run_nat(lab)
    lab.cables[1].send(
        bytes(
            Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / layer / Raw(b"hello, world".ljust(41))
        )
    )
    frame = lab.cables[2].receive()
    assert frame is not None
    assert valid_checksums(frame)
    got = Ether(frame)
    assert (got.dst, got.src, got[IP].src, got[IP].dst, got[IP].ttl) == (
        "02:00:00:00:00:99",
        A,
        "192.168.7.1",
        "172.16.3.4",
        63,
    )
    assert (got[IP].payload.sport, got[IP].payload.dport) == (4321, 8080)
    assert bytes(got[Raw]) == b"hello, world".ljust(41)


def test_corrupt_stays_corrupt(lab: Lab) -> None:
    """A wrong checksum is off by as much when it leaves."""
    run_nat(lab)
    packet = tcp()
    right = Ether(bytes(packet))
    packet[TCP].chksum = (right[TCP].chksum + 0x1234) & 0xFFFF
    packet[IP].chksum = (right[IP].chksum + 1) & 0xFFFF
    lab.cables[1].send(bytes(packet))
    frame = lab.cables[2].receive()
    assert frame is not None
    fresh = Ether(frame)
    del fresh[IP].chksum, fresh[TCP].chksum
    fresh = Ether(bytes(fresh))
    assert (Ether(frame)[TCP].chksum - fresh[TCP].chksum) % 0xFFFF == 0x1234
    assert (Ether(frame)[IP].chksum - fresh[IP].chksum) % 0xFFFF == 1


WORDS = st.one_of(st.sampled_from([0, 1, 0xFFFE, 0xFFFF]), st.integers(0, 0xFFFF))
ADDRESSES = st.one_of(st.sampled_from([0, 0xFFFF, 0xFFFF0000, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layer=st.sampled_from([TCP, UDP]),
    payload=st.binary(max_size=40),
    change=st.tuples(ADDRESSES, ADDRESSES, WORDS, WORDS),
    errors=st.tuples(st.integers(0, 0xFFFE), st.integers(0, 0xFFFE)),
)
def test_errors_of_checksums_are_kept(
    lab: Lab, layer: type[Packet], payload: bytes, change: tuple[int, int, int, int], errors: tuple[int, int]
) -> None:
    """Whatever is rewritten: each checksum is off by as much as it was, mostly nothing."""
    pipeline = lab.engine._active or lab.run(build.nat())
    match = (Exact(ip("10.0.0.2")), Exact(1))
    entry = TableEntry(match, ActionCall("Ingress.rewrite", (2, *change, 1)))
    known = bool(pipeline.read_direct_counters("Ingress.nat"))
    assert pipeline.apply(
        [Update(Operation.MODIFY if known else Operation.INSERT, "Ingress.nat", entry)]
    ) == [None]
    packet = Ether(
        bytes(Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / layer(sport=1, dport=2) / payload)
    )
    packet[IP].chksum = (packet[IP].chksum + errors[0]) % 0xFFFF or 0xFFFF
    packet[layer].chksum = (packet[layer].chksum + errors[1]) % 0xFFFF or 0xFFFF
    lab.cables[1].send(bytes(packet))
    frame = lab.cables[2].receive()
    assert frame is not None
    got, right = Ether(frame), Ether(frame)
    del right[IP].chksum, right[layer].chksum
    right = Ether(bytes(right))
    assert (got[IP].src, got[IP].dst) == tuple(
        map(socket.inet_ntoa, (change[0].to_bytes(4, "big"), change[1].to_bytes(4, "big")))
    )
    assert (got[IP].chksum - right[IP].chksum - errors[0]) % 0xFFFF == 0
    assert (got[layer].chksum - right[layer].chksum - errors[1]) % 0xFFFF == 0
    assert not (layer is UDP and got[UDP].chksum == 0), "that would say: no checksum"


def test_udp_without_checksum_stays_without(lab: Lab) -> None:
    run_nat(lab)
    lab.cables[1].send(
        bytes(
            Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2, chksum=0) / b"x"
        )
    )
    frame = lab.cables[2].receive()
    assert frame is not None
    assert Ether(frame)[UDP].chksum == 0


def test_miss_drops_and_counts_hits(lab: Lab) -> None:
    run_nat(lab)
    pipeline = lab.engine._active
    assert pipeline is not None
    lab.cables[1].send(bytes(Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.77") / TCP()))
    frame = bytes(tcp())
    lab.cables[1].send(frame)
    assert lab.cables[2].receive() is not None
    assert lab.cables[2].receive(0.05) is None
    assert list(pipeline.read_direct_counters("Ingress.nat").values()) == [CounterValue(1, len(frame))]


def test_short_packets_pass_the_parser(lab: Lab) -> None:
    """A truncated IPv4 header is not parsed; the packet meets the rest of the program without it."""
    run_nat(lab)
    lab.cables[1].send(bytes(tcp())[:30])
    assert lab.cables[2].receive(0.05) is None


def run_controller(lab: Lab) -> None:
    pipeline = lab.run(build.controller())
    insert(pipeline, "Ingress.where", [Ternary(0, 0), Exact(1)], "Ingress.punt", 7, priority=1)
    insert(
        pipeline,
        "Ingress.where",
        [Ternary(0, 0), Exact(3)],
        "Ingress.forward",
        2,
        ip("10.0.8.8"),
        ip("10.0.9.9"),
        priority=1,
    )


def test_packet_in_after_its_digest(lab: Lab) -> None:
    run_controller(lab)
    frame = bytes(tcp())
    lab.cables[1].send(frame)
    assert lab.event() == ("seen_t", (ip("10.0.0.1"), 0x02000000000A, 1))
    assert lab.event() == ("packet_in", struct.pack("!HB", 1, 7) + frame)


@pytest.mark.parametrize("size", [0, 1, 3, 13, 14, 20, 200, 256, 257, 1514, 2048])
def test_any_size_comes_up_whole(lab: Lab, size: int) -> None:
    """Frames of every class, from too short for Ethernet (by packet-out) to the MTU."""
    run_controller(lab)
    frame = bytes(index % 251 for index in range(size))
    pipeline = lab.engine._active
    assert pipeline is not None
    pipeline.packet_out(struct.pack("!HB", 1, build.OP_RESUME) + frame)
    lab.event()
    assert lab.packet_in() == struct.pack("!HB", 1, 7) + frame


def test_packet_out_leaves_untouched(lab: Lab) -> None:
    run_controller(lab)
    pipeline = lab.engine._active
    assert pipeline is not None
    frame = bytes(tcp())
    pipeline.packet_out(struct.pack("!HB", 2, build.OP_SEND) + frame)
    assert lab.cables[2].receive() == frame


def test_resume_meets_the_tables(lab: Lab) -> None:
    run_controller(lab)
    pipeline = lab.engine._active
    assert pipeline is not None
    pipeline.packet_out(struct.pack("!HB", 3, build.OP_RESUME) + bytes(tcp()))
    frame = lab.cables[2].receive()
    assert frame is not None
    assert valid_checksums(frame)
    assert (Ether(frame)[IP].src, Ether(frame)[IP].dst) == ("10.0.8.8", "10.0.9.9")


def test_order_of_packet_ins(lab: Lab) -> None:
    run_controller(lab)
    for number in range(300):
        lab.cables[1].send(
            bytes(Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2", id=number) / UDP() / b"x")
        )
    seen = []
    for _ in range(300):
        lab.event()
        seen.append(Ether(lab.packet_in()[3:])[IP].id)
    assert seen == list(range(300))


def test_close_leaves_nothing(lab: Lab) -> None:
    run_controller(lab)
    threads = threading.active_count()
    lab.engine.close()
    assert threading.active_count() < threads
    assert not [name for _, name in socket.if_nameindex() if name.startswith("p4cpu")]
    lab.cables[1].send(bytes(tcp()))
    assert lab.cables[2].receive(0.05) is None


def test_partial_checksum_is_completed() -> None:
    """The pseudo header's sum alone is completed; a wrong checksum is not."""
    frame = bytearray(bytes(tcp(100)))
    right = bytes(frame)
    found = offload.find_transport(frame)
    assert found is not None
    struct.pack_into("!H", frame, found.checksum, found.pseudo_sum)
    assert offload.complete_checksum(frame)
    assert bytes(frame) == right
