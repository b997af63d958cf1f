"""The project's own load balancer, compiled by the project's own compiler, packet by packet."""

from __future__ import annotations

import binascii
import json
import struct
from functools import cache as once
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from dataplane.compiler import compile_program
from dataplane.switch.engine import EbpfPipeline
from dataplane.switch.pipeline import ActionCall, CounterValue, Exact, Lpm, Operation, TableEntry, Update
from tests.dataplane.engine.conftest import Lab, insert
from tests.dataplane.engine.test_packets import ip, valid_checksums

pytestmark = pytest.mark.net

PROGRAM = Path(__file__).parents[3] / "p4src" / "load_balancer.p4"
CLIENT, SERVER, VIP, GATEWAY = "10.0.1.1", "10.0.2.2", "10.0.0.100", "10.0.1.254"
CLIENT_MAC, SERVER_MAC, GATEWAY_MAC = "08:00:00:00:01:01", "08:00:00:00:02:02", "08:00:00:00:00:fe"
TCP_, SERVICE, BACKEND, SLOTS = 6, 1, 9, 1021
OP_SEND, OP_RESUME, OP_BARRIER = 0, 1, 2
REASON_BARRIER, REASON_HELD, REASON_GUARDED = 1, 2, 3


@once
def program() -> bytes:
    return json.dumps(compile_program(PROGRAM).bmv2_json).encode()


def mac(text: str) -> int:
    return int(text.replace(":", ""), 16)


@pytest.fixture
def pipeline(lab: Lab) -> EbpfPipeline:
    """Run the load balancer with one service of one backend."""
    running = lab.run(program())
    add(running, "arp", (ip(GATEWAY),), "arp_reply", mac(GATEWAY_MAC))
    add(running, "echo", (ip(GATEWAY),), "echo_reply")
    for prefix, port, target in (("10.0.1.0", 1, CLIENT_MAC), ("10.0.2.0", 2, SERVER_MAC)):
        insert(
            running,
            "Ingress.route",
            [Lpm(ip(prefix), 24)],
            "Ingress.forward",
            port,
            mac(GATEWAY_MAC),
            mac(target),
        )
    add(running, "destination", (TCP_, ip(VIP), 80), "serve", SERVICE)
    add(running, "backend", (BACKEND,), "send_to", ip(SERVER), 8080)
    add(running, "endpoint_source", (TCP_, ip(SERVER), 8080), "speak_as", ip(VIP), 80)
    return running


def add(running: EbpfPipeline, table: str, key: tuple[int, ...], action: str, *params: int) -> None:
    insert(running, f"Ingress.{table}", [Exact(value) for value in key], f"Ingress.{action}", *params)


def slot(source: str, sport: int) -> int:
    """Return the Maglev slot of a connection to the service, as the program hashes it."""
    key = struct.pack("!BIHIH", TCP_, ip(source), sport, ip(VIP), 80)
    return binascii.crc32(key) % SLOTS


def choose(running: EbpfPipeline, sport: int = 4000) -> None:
    add(running, "maglev", (SERVICE, slot(CLIENT, sport)), "choose", BACKEND)


def request(flags: str = "S", sport: int = 4000, payload: bytes = b"") -> bytes:
    link = Ether(dst=GATEWAY_MAC, src=CLIENT_MAC)
    return bytes(link / IP(src=CLIENT, dst=VIP) / TCP(sport=sport, dport=80, flags=flags) / Raw(payload))


def connection_event(lab: Lab) -> tuple[int, ...]:
    """Return the next digest without the TCP flags at its end."""
    name, values = lab.event()
    assert name == "connection_event_t"
    assert isinstance(values, tuple)
    return values[:8]


def received(lab: Lab, port: int) -> Packet:
    frame = lab.cables[port].receive()
    assert frame is not None
    return Ether(frame)


def test_arp_is_answered(lab: Lab, pipeline: EbpfPipeline) -> None:
    ask = Ether(dst="ff:ff:ff:ff:ff:ff", src=CLIENT_MAC) / ARP(
        op=1, hwsrc=CLIENT_MAC, psrc=CLIENT, pdst=GATEWAY
    )
    lab.cables[1].send(bytes(ask))
    answer = received(lab, 1)
    assert (answer.dst, answer.src, answer[ARP].op) == (CLIENT_MAC, GATEWAY_MAC, 2)
    assert (answer[ARP].hwsrc, answer[ARP].psrc) == (GATEWAY_MAC, GATEWAY)
    assert (answer[ARP].hwdst, answer[ARP].pdst) == (CLIENT_MAC, CLIENT)


def test_ping_is_answered(lab: Lab, pipeline: EbpfPipeline) -> None:
    ping = (
        Ether(dst=GATEWAY_MAC, src=CLIENT_MAC) / IP(src=CLIENT, dst=GATEWAY) / ICMP(id=7, seq=3) / b"abcdefg"
    )
    lab.cables[1].send(bytes(ping))
    pong = received(lab, 1)
    assert (pong[IP].src, pong[IP].dst, pong[ICMP].type, pong[ICMP].seq) == (GATEWAY, CLIENT, 0, 3)
    assert pong[Raw].load == b"abcdefg"
    again = Ether(bytes(pong))
    del again[IP].chksum, again[ICMP].chksum
    assert bytes(again) == bytes(pong)


def test_service_and_reply(lab: Lab, pipeline: EbpfPipeline) -> None:
    """A request goes to the backend of its slot, is reported and counted; the reply comes from the VIP."""
    choose(pipeline)
    lab.cables[1].send(request(payload=b"GET"))
    arrived = received(lab, 2)
    assert (arrived[IP].src, arrived[IP].dst, arrived[TCP].dport, arrived[IP].ttl) == (
        CLIENT,
        SERVER,
        8080,
        63,
    )
    assert (arrived.src, arrived.dst) == (GATEWAY_MAC, SERVER_MAC)
    assert valid_checksums(bytes(arrived))
    assert connection_event(lab) == (1, TCP_, ip(CLIENT), 4000, ip(VIP), 80, SERVICE, BACKEND)
    assert pipeline.read_counters("Ingress.backend_counter")[BACKEND] == CounterValue(1, 57)
    reply = IP(src=SERVER, dst=CLIENT) / TCP(sport=8080, dport=4000, flags="SA")
    lab.cables[2].send(bytes(Ether(dst=GATEWAY_MAC, src=SERVER_MAC) / reply))
    back = received(lab, 1)
    assert (back[IP].src, back[TCP].sport, back[IP].dst) == (VIP, 80, CLIENT)
    assert valid_checksums(bytes(back))


def test_no_backend_drops(lab: Lab, pipeline: EbpfPipeline) -> None:
    lab.cables[1].send(request())
    assert lab.cables[2].receive(0.05) is None


def pin(running: EbpfPipeline) -> TableEntry:
    key = (TCP_, ip(CLIENT), 4000, ip(VIP), 80)
    add(running, "connection", key, "pin_to_backend", SERVICE, BACKEND)
    return TableEntry(tuple(map(Exact, key)), ActionCall("Ingress.pin_to_backend", (SERVICE, BACKEND)))


def test_pinned_connection_needs_no_slot(lab: Lab, pipeline: EbpfPipeline) -> None:
    entry = pin(pipeline)
    lab.cables[1].send(request("A"))
    assert received(lab, 2)[IP].dst == SERVER
    assert pipeline.read_direct_counter("Ingress.connection", entry).packets == 1
    assert lab.events.empty()
    lab.cables[1].send(request("FA"))
    received(lab, 2)
    assert connection_event(lab) == (2, TCP_, ip(CLIENT), 4000, ip(VIP), 80, SERVICE, BACKEND)


def test_hold_resume_and_barrier(lab: Lab, pipeline: EbpfPipeline) -> None:
    """A held packet comes up untouched; resumed it passes its own hold; the barrier answers behind it."""
    pin(pipeline)
    add(pipeline, "hold", (TCP_, ip(SERVER), 8080), "hold_for", 55)
    add(pipeline, "holding", (55,), "keep", REASON_HELD)
    frame = request("PA", payload=b"precious")
    lab.cables[1].send(frame)
    assert lab.packet_in() == struct.pack("!HBI", 1, REASON_HELD, 55) + frame
    pipeline.packet_out(struct.pack("!HBI", 0, OP_BARRIER, 1234))
    assert lab.packet_in() == struct.pack("!HBI", 0, REASON_BARRIER, 1234)
    assert lab.cables[2].receive(0.02) is None
    pipeline.packet_out(struct.pack("!HBI", 1, OP_RESUME, 55) + frame)
    arrived = received(lab, 2)
    assert (arrived[IP].dst, arrived[Raw].load) == (SERVER, b"precious")
    assert valid_checksums(bytes(arrived))
    pipeline.packet_out(struct.pack("!HBI", 2, OP_SEND, 0) + frame)
    assert lab.cables[2].receive() == frame


def test_guarded_service_asks_for_openings(lab: Lab, pipeline: EbpfPipeline) -> None:
    choose(pipeline)
    entry = TableEntry(
        (Exact(TCP_), Exact(ip(VIP)), Exact(80)), ActionCall("Ingress.serve_guarded", (SERVICE,))
    )
    assert pipeline.apply([Update(Operation.MODIFY, "Ingress.destination", entry)]) == [None]
    lab.cables[1].send(request("S"))
    assert lab.packet_in()[:7] == struct.pack("!HBI", 1, REASON_GUARDED, SERVICE)
    lab.cables[1].send(request("A"))
    assert received(lab, 2)[IP].dst == SERVER


def test_odd_packets_are_dropped(lab: Lab, pipeline: EbpfPipeline) -> None:
    """No TTL left, IP options, IPv6, garbage: none leaves."""
    link = Ether(dst=GATEWAY_MAC, src=CLIENT_MAC)
    for frame in (
        bytes(link / IP(src=CLIENT, dst=SERVER, ttl=1) / UDP()),
        bytes(link / IP(src=CLIENT, dst=SERVER, options=[b"\x01"] * 4) / UDP()),
        bytes(link / IP(src=CLIENT, dst="192.168.9.9") / UDP()),
        bytes(Ether(dst=GATEWAY_MAC, src=CLIENT_MAC, type=0x86DD) / Raw(bytes(40))),
        bytes(14),
    ):
        lab.cables[1].send(frame)
    assert lab.cables[2].receive(0.05) is None
    assert lab.cables[1].receive(0.01) is None
    assert lab.events.empty()


def test_verifier_effort(pipeline: EbpfPipeline) -> None:
    """Kernels give up at a million instructions; older ones prune less, so stay far away."""
    assert pipeline.verified_insns < 60_000
