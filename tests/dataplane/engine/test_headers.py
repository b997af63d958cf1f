"""Headers that come and go, wide fields, lookahead, verification, registers, egress: the rest of the language."""

from __future__ import annotations

import socket
import struct

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from dataplane.switch.pipeline import ActionCall, CounterValue, Exact, Lpm, TableEntry
from tests.dataplane.engine import build
from tests.dataplane.engine.build import (
    EGRESS_SPEC,
    INGRESS_PORT,
    Builder,
    assign,
    expr,
    header_primitive,
    primitive,
    valid,
)
from tests.dataplane.engine.conftest import Lab, insert

pytestmark = pytest.mark.net

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
SHIM = [("protocol", 16), ("id", 16)]
OUTER_LIST = [item.replace("ipv4.", "outer.") for item in build.IPV4_LIST]


def ip(text: str) -> int:
    return int.from_bytes(socket.inet_aton(text), "big")


def tunnel() -> bytes:
    """Return a program: port 1 puts a shim (to 2) or an IPv4 header (UDP, to 3) on; ports 2 and 3 take them off."""
    b = Builder()
    b.header("ethernet", build.ETHERNET)
    b.header("shim", SHIM)
    b.header("outer", build.IPV4)
    b.header("ipv4", build.IPV4)
    b.state(
        "start",
        "ethernet",
        select=["ethernet.ethertype"],
        cases=[("0x1234", "parse_shim"), ("0x0800", "choose")],
    )
    b.state("parse_shim", "shim", select=["shim.protocol"], cases=[("0x0800", "parse_ipv4")])
    ahead = {"type": "lookahead", "value": [72, 8]}  # the protocol of what follows
    b.state("choose", select=[ahead], cases=[("0x04", "parse_outer")], default="parse_ipv4")
    b.state("parse_outer", "outer", default="parse_ipv4")
    b.state("parse_ipv4", "ipv4")
    b.checksum("outer.checksum", OUTER_LIST, valid("outer"))
    shim_on = b.action(
        "shim_on",
        (),
        header_primitive("add_header", "shim"),
        assign("shim.protocol", "ethernet.ethertype"),
        assign("shim.id", 0xBEEF),
        assign("ethernet.ethertype", 0x1234),
        assign(EGRESS_SPEC, 2),
    )
    shim_off = b.action(
        "shim_off",
        (),
        assign("ethernet.ethertype", "shim.protocol"),
        header_primitive("remove_header", "shim"),
        assign(EGRESS_SPEC, 1),
    )
    outer_on = b.action(
        "outer_on",
        (),
        header_primitive("assign_header", "outer", "ipv4"),
        assign("outer.protocol", 4),
        assign("outer.total_length", ("&", ("+", "ipv4.total_length", 20), 0xFFFF)),
        assign("outer.src", ip("1.1.1.1")),
        assign("outer.dst", ip("2.2.2.2")),
        assign(EGRESS_SPEC, 3),
    )
    outer_off = b.action("outer_off", (), header_primitive("remove_header", "outer"), assign(EGRESS_SPEC, 1))
    off = b.condition(valid("shim"), b.call(shim_off), b.call(outer_off))
    on = b.condition(("==", "ipv4.protocol", 17), b.call(outer_on), b.call(shim_on))
    b.start(b.condition(("==", INGRESS_PORT, 1), on, off))
    return b.json()


def datagram(size: int, protocol: int) -> bytes:
    packet = (
        Ether(dst=B, src=A)
        / IP(src="10.0.0.1", dst="10.0.0.2", proto=protocol)
        / Raw(bytes(i % 251 for i in range(size)))
    )
    return bytes(packet)


@pytest.mark.parametrize("size", [0, 1, 46, 999, 1450])
def test_shim_on_and_off(lab: Lab, size: int) -> None:
    """A header between Ethernet and IP, with an EtherType of its own."""
    lab.run(tunnel())
    frame = datagram(size, 99)
    lab.cables[1].send(frame)
    tagged = lab.cables[2].receive()
    assert tagged == frame[:12] + bytes.fromhex("12340800beef") + frame[14:]
    lab.cables[2].send(tagged)
    assert lab.cables[1].receive() == frame


@pytest.mark.parametrize("size", [0, 1, 46, 999, 1450])
def test_ip_in_ip(lab: Lab, size: int) -> None:
    """A new IPv4 header gets a whole checksum, and goes again."""
    lab.run(tunnel())
    frame = datagram(size, 17)
    lab.cables[1].send(frame)
    wrapped = lab.cables[3].receive()
    assert wrapped is not None
    assert wrapped[34:] == frame[14:]
    outer = Ether(wrapped)[IP]
    assert (outer.src, outer.dst, outer.proto, outer.len) == ("1.1.1.1", "2.2.2.2", 4, size + 40)
    checksum = outer.chksum
    del outer.chksum
    assert IP(bytes(outer)).chksum == checksum
    lab.cables[3].send(wrapped)
    assert lab.cables[1].receive() == frame


def router6() -> bytes:
    """Return an IPv6 router: 128 bit lpm, exact and copies."""
    b = Builder([("saved", 128)])
    b.header("ethernet", build.ETHERNET)
    b.header(
        "ipv6",
        [
            ("version", 4), ("traffic", 8), ("flow", 20), ("length", 16), ("next", 8), ("hops", 8),
            ("src", 128), ("dst", 128),
        ],
    )  # fmt: skip
    b.state("start", "ethernet", select=["ethernet.ethertype"], cases=[("0x86dd", "parse_ipv6")])
    b.state("parse_ipv6", "ipv6")
    drop = b.action("drop", (), build.drop())
    swap = b.action(
        "swap",
        (),
        assign("scalars.saved", "ipv6.src"),
        assign("ipv6.src", "ipv6.dst"),
        assign("ipv6.dst", "scalars.saved"),
        assign(EGRESS_SPEC, INGRESS_PORT),
    )
    forward = b.action(
        "forward", [("port", 9), ("source", 128)], assign(EGRESS_SPEC, "$0"), assign("ipv6.src", "$1")
    )
    routes = b.table("routes", [("ipv6.dst", "lpm")], [forward, drop], drop)
    one = b.condition(("==", "ipv6.dst", int("20010db8" + "0" * 23 + "1", 16)), b.call(swap), routes)
    b.start(one)
    return b.json()


def test_wide_fields(lab: Lab) -> None:
    pipeline = lab.run(router6())
    prefix = int("20010db8" + "0" * 24, 16)
    insert(pipeline, "routes", [Lpm(prefix, 32)], "forward", 2, prefix | 0x42)
    insert(pipeline, "routes", [Lpm(prefix | 5, 128)], "forward", 3, prefix | 0x43)
    for target, port, source in (("2001:db8::9", 2, "2001:db8::42"), ("2001:db8::5", 3, "2001:db8::43")):
        lab.cables[1].send(
            bytes(Ether(dst=B, src=A, type=0x86DD) / IPv6(src="fe80::1", dst=target) / Raw(b"data"))
        )
        frame = lab.cables[port].receive()
        assert frame is not None
        assert (Ether(frame)[IPv6].src, Ether(frame)[IPv6].dst) == (source, target)
    lab.cables[1].send(
        bytes(Ether(dst=B, src=A, type=0x86DD) / IPv6(src="fe80::1", dst="2001:db8::1") / Raw(b"data"))
    )
    frame = lab.cables[1].receive()
    assert frame is not None
    assert (Ether(frame)[IPv6].src, Ether(frame)[IPv6].dst) == ("2001:db8::1", "fe80::1")


def machine() -> bytes:
    """Return a program with registers, counters, egress, exit, verification and declared entries.

    Port 1 sends bytes {operation, index, value}; the program answers on port 2 with the value it has by then.
    """
    b = Builder([("old", 32)])
    b.header("m", [("operation", 8), ("index", 8), ("value", 32), ("checksum", 16)])
    b.state("start", "m")
    b.checksum("m.checksum", ["m.operation", "m.index", "m.value"], ("==", "m.operation", 9), verify=True)
    cells = {"type": "register_array", "value": "cells"}
    hits = {"type": "counter_array", "value": "hits"}
    b.root["register_arrays"].append({"name": "cells", "id": 0, "size": 8, "bitwidth": 32})
    b.root["counter_arrays"].append({"name": "hits", "id": 0, "size": 8, "is_direct": False})
    drop = b.action("drop", (), build.drop())
    add = b.action(
        "add",
        (),
        primitive("register_read", expr("scalars.old"), cells, expr("m.index")),
        assign("m.value", ("&", ("+", "scalars.old", "m.value"), 0xFFFFFFFF)),
        primitive("register_write", cells, expr("m.index"), expr("m.value")),
        primitive("count", hits, expr("m.index")),
        assign(EGRESS_SPEC, 2),
    )
    leave = b.action(
        "leave",
        (),
        assign("m.value", 0xE817),
        assign(EGRESS_SPEC, 2),
        primitive("exit"),
        assign("m.value", 1),
    )
    verdict = b.action(
        "verdict", (), assign("m.value", "standard_metadata.checksum_error"), assign(EGRESS_SPEC, 2)
    )
    jump = b.action(
        "jump",
        (),
        assign(EGRESS_SPEC, 2),
        primitive("_jump_if_zero", expr(("b2d", ("==", "m.index", 5))), expr(4)),
        assign("m.value", 0x55),
        primitive("_jump", expr(5)),
        assign("m.value", 0xAA),
    )
    bounds = [expr("scalars.old"), expr(10), expr(13)]
    dice = b.action(
        "dice",
        (),
        primitive("modify_field_rng_uniform", *bounds),
        assign("m.value", "scalars.old"),
        assign(EGRESS_SPEC, 2),
    )
    after = b.action("after", (), assign("m.value", ("&", ("+", "m.value", 1), 0xFFFFFFFF)))

    def row(key: int, action: int) -> dict[str, object]:
        return {
            "match_key": [{"match_type": "exact", "key": hex(key)}],
            "action_entry": {"action_id": action, "action_data": []},
            "priority": 1,
        }

    rows = [row(1, add), row(2, leave), row(3, jump), row(4, dice), row(9, verdict)]
    table = b.table(
        "what",
        [("m.operation", "exact")],
        [add, leave, verdict, jump, dice, drop],
        drop,
        b.call(after),
        entries=rows,
    )
    b.start(table)
    out = b.action("out", (), assign("m.operation", ("&", "standard_metadata.egress_port", 0xFF)))
    b.start(
        b.condition(
            ("==", "m.index", 7),
            b.call(drop, control="egress"),
            b.call(out, control="egress"),
            control="egress",
        ),
        control="egress",
    )
    return b.json()


def ask(lab: Lab, operation: int, index: int, value: int, checksum: int = 0) -> tuple[int, ...] | None:
    lab.cables[1].send(struct.pack("!BBIH", operation, index, value, checksum) + bytes(10))
    frame = lab.cables[2].receive(0.2)
    return None if frame is None else struct.unpack_from("!BBIH", frame)


def test_registers_counters_and_egress(lab: Lab) -> None:
    pipeline = lab.run(machine())
    assert ask(lab, 1, 3, 10) == (2, 3, 11, 0)
    assert ask(lab, 1, 3, 5) == (2, 3, 16, 0)
    assert pipeline.read_register("cells") == [0, 0, 0, 15, 0, 0, 0, 0]
    pipeline.write_register("cells", 3, 0xFFFFFFFF)
    assert ask(lab, 1, 3, 2) == (2, 3, 2, 0)
    assert pipeline.read_counters("hits")[3] == CounterValue(3, 54)
    pipeline.write_counter("hits", 3, CounterValue(1, 2))
    assert pipeline.read_counters("hits")[3] == CounterValue(1, 2)
    assert ask(lab, 1, 200, 5) == (2, 200, 6, 0), "beyond the array: reads 0, writes nothing"
    assert ask(lab, 1, 7, 5) is None, "dropped in egress"


def test_exit_leaves_the_control(lab: Lab) -> None:
    """The rest of the action and of ingress is skipped, egress is not."""
    lab.run(machine())
    assert ask(lab, 2, 1, 1) == (2, 1, 0xE817, 0)


def test_jumps(lab: Lab) -> None:
    lab.run(machine())
    assert ask(lab, 3, 5, 0) == (2, 5, 0x56, 0)
    assert ask(lab, 3, 4, 0) == (2, 4, 0xAB, 0)


def test_random_numbers_are_within_bounds(lab: Lab) -> None:
    lab.run(machine())
    answers = [ask(lab, 4, 0, 0) for _ in range(60)]
    assert {answer[2] - 1 for answer in answers if answer} == {10, 11, 12, 13}


def test_verification(lab: Lab) -> None:
    """A wrong checksum sets checksum_error, which is what verify_checksum does."""
    lab.run(machine())
    right = ~sum(struct.unpack("!3H", struct.pack("!BBI", 9, 2, 0x01020304))) & 0xFFFF
    assert ask(lab, 9, 2, 0x01020304, right) == (2, 2, 1, right)
    assert ask(lab, 9, 2, 0x01020304, right ^ 1) == (2, 2, 2, right ^ 1)


def test_declared_entries(lab: Lab) -> None:
    pipeline = lab.run(machine())
    assert pipeline.const_entries()["what"][0] == TableEntry((Exact(1),), ActionCall("add", ()), 0)
    assert len(pipeline.const_entries()["what"]) == 5


def test_checksums_after_a_changed_length(lab: Lab) -> None:
    """Odd sizes and UDP: the payload's share of a checksum is not read, and stays right."""
    pipeline = lab.run(build.forwarder())
    insert(pipeline, "Ingress.nat", [Exact(ip("10.0.0.2")), Exact(1)], "Ingress.rewrite", 2, 0xFFFFFFFF, 0, 5)
    for size in (0, 1, 2, 3, 1000, 1001):
        lab.cables[1].send(
            bytes(Ether(dst=B, src=A) / IP(src="0.0.0.1", dst="10.0.0.2") / UDP() / Raw(b"\xff" * size))
        )
        frame = lab.cables[2].receive()
        assert frame is not None
        fresh = Ether(frame)
        checksum = fresh[UDP].chksum
        del fresh[UDP].chksum
        assert Ether(bytes(fresh))[UDP].chksum == checksum
