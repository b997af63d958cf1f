"""The whole switch: compiled programs in the kernel, P4Runtime in front, real packets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from finsy.proto import p4r
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from dataplane.compiler import compile_program
from tests.dataplane.engine.network import Cable, wait_for
from tests.dataplane.p4runtime import process
from tests.dataplane.p4runtime.client import (
    Client,
    Stream,
    codes,
    delete,
    explanation,
    failure,
    insert,
    modify,
)
from tests.dataplane.p4runtime.named import Program, Value, metadata

pytestmark = pytest.mark.net

DEVICE_ID = 7
SWITCH_MAC, H1, H2 = 0x0800000000FE, 0x0A000101, 0x0A000202  # 10.0.1.1, 10.0.2.2
VIP, SERVICE, BACKEND = 0x0A000064, 3, 9
TCP_PROTOCOL = 6
Set = p4r.SetForwardingPipelineConfigRequest


def compiled(path: Path) -> Program:
    result = compile_program(path)
    return Program(result.p4info, json.dumps(result.bmv2_json).encode())


@pytest.fixture(scope="module")
def balancer() -> Program:
    return compiled(process.CHECKOUT / "p4src" / "load_balancer.p4")


@pytest.fixture(scope="module")
def forwarder() -> Program:
    return compiled(process.CHECKOUT / "p4src" / "forward.p4")


@pytest.fixture(scope="module")
def everything() -> Program:
    return compiled(Path(__file__).with_name("everything.p4"))


class Lab:
    """A switch process, a primary client, and cables."""

    def __init__(self, client: Client, stream: Stream, cables: dict[int, Cable], pid: int) -> None:
        self.client, self.stream, self.cables, self.pid = client, stream, cables, pid

    def use(self, program: Program, action: int = Set.VERIFY_AND_COMMIT) -> None:
        self.client.set_config(action, program.info, program.device_config)

    def exchange(
        self, packet: Packet, port: int = 1, back: int | None = None, timeout: float = 2.0
    ) -> Packet | None:
        """Send a packet into a port; return what comes out of `back` (default: the same port)."""
        self.cables[port].send(bytes(packet))
        frame = self.cables[back or port].receive(timeout)
        return Ether(frame) if frame is not None else None


@pytest.fixture
def lab() -> Iterator[Lab]:
    with process.running("--no-p4", "--device-id", str(DEVICE_ID)) as (switch, cables):
        client = Client(switch.address, DEVICE_ID)
        stream = client.stream()
        stream.become_primary()
        yield Lab(client, stream, cables, switch.process.pid)
        stream.close()
        client.close()


def arp_request(address: str) -> Packet:
    return Ether(dst="ff:ff:ff:ff:ff:ff", src="08:00:00:00:01:01") / ARP(
        pdst=address, psrc="10.0.1.1", hwsrc="08:00:00:00:01:01"
    )


def tcp(flags: str = "S", payload: bytes = b"", port: int = 1234, dst: str = "10.0.0.100") -> Packet:
    ip = IP(src="10.0.1.1", dst=dst) / TCP(sport=port, dport=80, flags=flags) / Raw(payload)
    return Ether(bytes(Ether(dst="08:00:00:00:00:fe", src="08:00:00:00:01:01") / ip))


def test_rows_change_what_packets_do(lab: Lab, balancer: Program) -> None:
    """INSERT, MODIFY, DELETE and the default action of table `arp`, each seen on the wire."""
    lab.use(balancer)
    row = balancer.row("Ingress.arp", {"address": VIP}, "Ingress.arp_reply", SWITCH_MAC)
    assert lab.exchange(arp_request("10.0.0.100"), timeout=0.2) is None
    lab.client.write(insert(row))
    reply = lab.exchange(arp_request("10.0.0.100"))
    assert reply is not None
    assert (reply[ARP].hwsrc, reply[ARP].psrc, reply[ARP].op) == ("08:00:00:00:00:fe", "10.0.0.100", 2)
    lab.client.write(
        modify(balancer.row("Ingress.arp", {"address": VIP}, "Ingress.arp_reply", 0x020000000001))
    )
    reply = lab.exchange(arp_request("10.0.0.100"))
    assert reply is not None
    assert reply[ARP].hwsrc == "02:00:00:00:00:01"
    lab.client.write(delete(row))
    assert lab.exchange(arp_request("10.0.0.100"), timeout=0.2) is None
    assert lab.client.read_table() == []


def test_packet_out_and_packet_in(lab: Lab, balancer: Program) -> None:
    """OP_SEND leaves on its port; OP_BARRIER comes back with its id."""
    lab.use(balancer)
    frame = bytes(Ether(dst="08:00:00:00:02:02", src="08:00:00:00:00:fe", type=0x88B5) / Raw(b"x" * 50))
    lab.stream.send(packet=balancer.packet_out(frame, 2, 0, 0))
    assert lab.cables[2].receive() == frame
    lab.stream.send(packet=balancer.packet_out(frame, 2, 2, 0xCAFE))
    received = lab.stream.expect("packet")
    assert metadata(received)[1:] == [1, 0xCAFE]
    lab.stream.send(packet=p4r.PacketOut(payload=frame))
    assert lab.stream.expect("error").canonical_code == 3


def serve(lab: Lab, program: Program) -> None:
    """Install one service with one backend behind port 2."""
    rows = [
        program.row(
            "Ingress.destination", {"protocol": 6, "address": VIP, "port": 80}, "Ingress.serve", SERVICE
        ),
        program.row("Ingress.backend", {"backend": BACKEND}, "Ingress.send_to", H2, 8080),
        program.row(
            "Ingress.route", {"address": (0x0A000200, 24)}, "Ingress.forward", 2, SWITCH_MAC, 0x080000000202
        ),
    ]
    slots = [
        program.row("Ingress.maglev", {"service": SERVICE, "slot": slot}, "Ingress.choose", BACKEND)
        for slot in range(1021)
    ]
    lab.client.write(*map(insert, rows + slots))


def counts(lab: Lab, program: Program, name: str, index: int) -> tuple[int, int]:
    cell = p4r.CounterEntry(counter_id=program.id("counters", name), index=p4r.Index(index=index))
    (entity,) = lab.client.read(p4r.Entity(counter_entry=cell))
    return entity.counter_entry.data.packet_count, entity.counter_entry.data.byte_count


def test_digest_pin_and_counters(lab: Lab, balancer: Program) -> None:
    """A connection is reported once, pinned through P4Runtime, and counted."""
    lab.use(balancer)
    serve(lab, balancer)
    digest = p4r.DigestEntry(digest_id=balancer.id("digests", "connection_event_t"))
    digest.config.ack_timeout_ns = 10**10
    lab.client.write(p4r.Update(type=p4r.Update.INSERT, entity=p4r.Entity(digest_entry=digest)))

    packet = tcp()
    forwarded = lab.exchange(packet, back=2)
    assert forwarded is not None
    assert (forwarded[IP].dst, forwarded[TCP].dport, forwarded[IP].ttl) == ("10.0.2.2", 8080, 63)
    received = lab.stream.expect("digest")
    (data,) = received.data
    values = [int.from_bytes(member.bitstring, "big") for member in data.struct.members]
    assert values == [1, 6, H1, 1234, VIP, 80, SERVICE, BACKEND, 0]
    assert lab.exchange(tcp("A"), back=2) is not None
    assert lab.stream.nothing_comes(0.1), "the same report is not repeated before its acknowledgement"
    lab.stream.send(digest_ack=p4r.DigestListAck(digest_id=received.digest_id, list_id=received.list_id))

    match = {"protocol": 6, "src_addr": H1, "src_port": 1234, "dst_addr": VIP, "dst_port": 80}
    pinned = balancer.row("Ingress.connection", match, "Ingress.pin_to_backend", SERVICE, BACKEND)
    lab.client.write(insert(pinned))
    assert lab.exchange(tcp("A", b"x" * 100), back=2) is not None
    wait_for(
        lambda: counts(lab, balancer, "Ingress.service_counter", SERVICE)[0] == 3, "three packets counted"
    )
    packets, octets = counts(lab, balancer, "Ingress.backend_counter", BACKEND)
    assert (packets, octets >= 3 * 54 + 100) == (3, True)
    (row,) = lab.client.read_table(pinned.table_id, match=pinned.match, counter_data=p4r.CounterData())
    assert row.counter_data.packet_count == 1
    assert row.counter_data.byte_count >= 154


def test_hold_and_resume(lab: Lab, balancer: Program) -> None:
    """Packets for a held endpoint come to the controller unchanged, and pass when it sends them again."""
    lab.use(balancer)
    serve(lab, balancer)
    hold = balancer.row("Ingress.hold", {"protocol": 6, "address": H2, "port": 8080}, "Ingress.hold_for", 77)
    lab.client.write(insert(hold), insert(balancer.row("Ingress.holding", {"id": 77}, "Ingress.keep", 2)))
    packets = [tcp("PA", bytes([number]) * 200) for number in range(20)]
    for packet in packets:
        lab.cables[1].send(bytes(packet))
    held = [lab.stream.expect("packet") for _ in packets]
    assert [message.payload for message in held] == [bytes(packet) for packet in packets]
    assert metadata(held[0]) == [1, 2, 77]
    assert lab.cables[2].receive(0.05) is None
    for message in held:
        lab.stream.send(packet=balancer.packet_out(message.payload, 1, 1, 77))
    for packet in packets:
        frame = lab.cables[2].receive()
        assert frame is not None
        assert Ether(frame)[Raw].load == packet[Raw].load


def test_replacing_the_pipeline(lab: Lab, balancer: Program, forwarder: Program) -> None:
    """A refused program changes nothing; saved state is there at the moment of COMMIT."""
    lab.use(forwarder)
    gateway = {"address": VIP}
    lab.client.write(insert(forwarder.row("Ingress.arp", gateway, "Ingress.arp_reply", 0x020000000001)))
    for info, config in (
        (forwarder.info, b"{}"),
        (forwarder.info, balancer.device_config),
        (
            forwarder.info,
            forwarder.device_config.replace(b'"crc16"', b'"md5"').replace(b'"extract"', b'"levitate"'),
        ),
    ):
        error = failure(partial(lab.client.set_config, p4info=info, device_config=config))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert explanation(error)
    reply = lab.exchange(arp_request("10.0.0.100"))
    assert reply is not None
    assert reply[ARP].hwsrc == "02:00:00:00:00:01"

    lab.use(balancer, Set.VERIFY_AND_SAVE)
    lab.client.write(insert(balancer.row("Ingress.arp", gateway, "Ingress.arp_reply", SWITCH_MAC)))
    reply = lab.exchange(arp_request("10.0.0.100"))
    assert reply is not None
    assert reply[ARP].hwsrc == "02:00:00:00:00:01"
    lab.client.set_config(Set.COMMIT, with_config=False)
    reply = lab.exchange(arp_request("10.0.0.100"))
    assert reply is not None
    assert reply[ARP].hwsrc == "08:00:00:00:00:fe"


def test_no_packet_is_lost_while_replacing(lab: Lab, forwarder: Program) -> None:
    """RECONCILE_AND_COMMIT with rows: echo requests sent throughout are all answered."""
    lab.use(forwarder)
    lab.client.write(insert(forwarder.row("Ingress.echo", {"address": VIP}, "Ingress.echo_reply")))
    other = Program(forwarder.info, forwarder.device_config.replace(b"forward.p4", b"another.p4"))
    answered = 0
    for number in range(50):
        request = Ether(dst="08:00:00:00:00:fe") / IP(src="10.0.1.1", dst="10.0.0.100") / ICMP(seq=number)
        lab.cables[1].send(bytes(request))
        if number % 10 == 5:
            lab.use(other if number % 20 == 5 else forwarder, Set.RECONCILE_AND_COMMIT)
        answered += lab.cables[1].receive() is not None
    assert answered == 50


def test_every_match_kind_in_the_kernel(lab: Lab, everything: Program) -> None:
    """What is written is what packets meet and what is read back."""
    lab.use(everything)

    def acl(mark: int, priority: int, **match: Value) -> p4r.TableEntry:
        action = ("MyIngress.answer", mark) if mark else ("MyIngress.drop",)
        return everything.row("MyIngress.acl", {"protocol": 17, **match}, *action, priority=priority)

    rows = [
        acl(1, 1),
        acl(2, 5, src=(0x0A000000, 0xFF0000FF)),
        acl(3, 9, port=(1000, 2000)),
        acl(4, 10, port=(1500, 1500), tos=2),
        acl(0, 12, port=(1600, 1700)),
    ]
    lab.client.write(*map(insert, rows))
    table_id = rows[0].table_id
    assert lab.client.read_table(table_id) == rows

    def mark(src: str, port: int, tos: int = 0) -> tuple[int, int] | None:
        packet = (
            Ether(dst="02:00:00:00:00:00") / IP(src=src, dst="10.9.9.9", tos=tos, ttl=99) / UDP(dport=port)
        )
        answer = lab.exchange(packet, timeout=0.5 if 1600 <= port <= 1700 else 2.0)
        return None if answer is None else (int(answer.dst[-2:], 16), answer[IP].ttl)

    assert mark("192.168.0.1", 80) == (1, 99)
    assert mark("10.7.7.0", 80) == (2, 99)
    assert mark("10.7.7.0", 1000) == (3, 99)
    assert mark("10.7.7.0", 2000, tos=1) == (3, 11)
    assert mark("10.7.7.0", 1500, tos=2) == (4, 22)
    assert mark("10.7.7.0", 1650) is None
    assert mark("10.7.7.0", 2001) == (2, 99)
    cells = {cell.index.index: cell.data for cell in (e.counter_entry for e in lab.client.read(
        p4r.Entity(counter_entry=p4r.CounterEntry())))}  # fmt: skip
    assert {index: data.packet_count for index, data in cells.items() if data.packet_count} == {
        1: 1,
        2: 2,
        3: 2,
        4: 1,
    }
    assert all(data.byte_count == 0 for data in cells.values()), "the counter counts packets only"
    last = p4r.RegisterEntry(
        register_id=everything.id("registers", "MyIngress.last"), index=p4r.Index(index=0)
    )
    (cell,) = lab.client.read(p4r.Entity(register_entry=last))
    assert cell.register_entry.data.bitstring == bytes([10, 7, 7, 0])
    hits = lab.client.read_table(table_id, counter_data=p4r.CounterData())
    assert [row.counter_data.packet_count for row in hits][:4] == [1, 2, 2, 1]
    const = lab.client.read_table(everything.id("tables", "MyIngress.classes"))
    assert [(row.is_const, row.match[0].exact.value, row.action.action.params[0].value) for row in const] == [
        (True, b"\x01", b"\x0b"), (True, b"\x02", b"\x16"),
    ]  # fmt: skip
    assert codes(failure(lambda: lab.client.write(delete(const[0])))) == [3]
    default = everything.row("MyIngress.acl", {}, "MyIngress.answer", 15, is_default_action=True)
    lab.client.write(*map(delete, rows), modify(default))
    assert mark("10.7.7.0", 80) == (15, 99)


def test_many_rows(lab: Lab, balancer: Program) -> None:
    """Batches of 1000 and single rows into the kernel's maps; all are there."""
    lab.use(balancer)

    def pins(first: int, count: int) -> list[p4r.Update]:
        match = {"protocol": 6, "src_port": 1, "dst_addr": VIP, "dst_port": 80}
        return [
            insert(
                balancer.row("Ingress.connection", {**match, "src_addr": n}, "Ingress.pin_to_backend", 1, 2)
            )
            for n in range(first, first + count)
        ]

    for number in range(20):
        lab.client.write(*pins(number * 1000, 1000))
    for update in pins(1 << 20, 200):
        lab.client.write(update)
    assert len(lab.client.read_table(balancer.id("tables", "Ingress.connection"))) == 20_200


def test_nothing_leaks(lab: Lab, forwarder: Program) -> None:
    """Replaced pipelines and closed streams leave no descriptor and no thread behind."""

    def held() -> tuple[int, int]:
        process_folder = Path(f"/proc/{lab.pid}")
        return len(list((process_folder / "fd").iterdir())), len(list((process_folder / "task").iterdir()))

    def churn() -> None:
        for _ in range(10):
            lab.use(forwarder)
            for action in (Set.VERIFY, Set.VERIFY_AND_SAVE):
                lab.use(forwarder, action)
            stream = lab.client.stream()
            stream.bid(None)
            stream.expect("arbitration")
            stream.close()

    churn()
    before = held()
    churn()
    # The pool of gRPC's threads may still grow by one or two; a leak would be ten of each kind.
    slack = 3
    wait_for(
        lambda: all(now <= then + slack for now, then in zip(held(), before, strict=True)),
        f"not many more than {before} descriptors and threads",
    )
