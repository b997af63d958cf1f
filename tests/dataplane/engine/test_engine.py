"""The engine's life: ports, refusals that leave everything running, and what a killed run left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from dataplane.switch.engine import EbpfEngine, libbpf
from dataplane.switch.engine.clang import Compiler
from dataplane.switch.engine.libbpf import Object, VerifierRejected
from dataplane.switch.engine.parser import front_headers, front_states
from dataplane.switch.engine.reader import parse_program
from dataplane.switch.engine.source import Options, Source
from dataplane.switch.engine.verifier import summary
from dataplane.switch.pipeline import Exact, PipelineError, PipelineRejected
from tests.dataplane.engine import build
from tests.dataplane.engine.build import Builder, assign, header_primitive, primitive, valid
from tests.dataplane.engine.conftest import DEVICE, Lab, collect, insert
from tests.dataplane.engine.network import Cable, own_namespace, wait_for
from tests.dataplane.engine.test_packets import A, B, ip, tcp

# ---- ports


@pytest.mark.net
def test_port_added_later_works_at_once(lab: Lab) -> None:
    lab.engine.remove_port(2)
    pipeline = lab.run(build.nat())
    insert(pipeline, "Ingress.nat", [Exact(ip("10.0.0.2")), Exact(1)], "Ingress.rewrite", 2, 1, 2, 3, 4, 5)
    lab.cables[1].send(bytes(tcp()))
    assert lab.cables[2].receive(0.05) is None
    lab.engine.add_port(2, lab.cables[2].port)
    lab.cables[1].send(bytes(tcp()))
    assert lab.cables[2].receive() is not None
    lab.engine.remove_port(1)
    lab.cables[1].send(bytes(tcp()))
    assert lab.cables[2].receive(0.05) is None


@pytest.mark.net
def test_wrong_ports_are_refused(lab: Lab) -> None:
    for port, interface, text in (
        (9, "nowhere0", "there is no interface nowhere0"),
        (1, "lo", "bound to sw1 already"),
        (9, "sw1", "sw1 is port 1 already"),
        (511, "lo", "port 511 is not 0 to 510"),
        (255, "lo", "bound to"),
    ):
        with pytest.raises(PipelineError, match=text):
            lab.engine.add_port(port, interface)
    with pytest.raises(PipelineError, match="port 8 is not bound"):
        lab.engine.remove_port(8)


@pytest.mark.net
def test_packet_out_needs_an_active_pipeline(lab: Lab) -> None:
    pipeline = lab.engine.load(build.controller())
    with pytest.raises(PipelineError, match="active pipeline"):
        pipeline.packet_out(bytes(60))
    pipeline.activate()
    with pytest.raises(PipelineError, match="header of 3 bytes"):
        pipeline.packet_out(b"x")


@pytest.mark.net
def test_a_device_id_belongs_to_one_switch(lab: Lab) -> None:
    with pytest.raises(PipelineError, match=f"device id {DEVICE} is in use"):
        EbpfEngine(DEVICE)
    assert f"p4cpu{DEVICE}" in {name for _, name in socket.if_nameindex()}
    with EbpfEngine((1 << 64) - 1) as engine:
        engine.add_port(1, "lo")


def attached(interface: str) -> int:
    """Return the id of the program on an interface."""
    command = ["tc", "-j", "filter", "show", "dev", interface, "ingress"]
    shown = json.loads(subprocess.run(command, capture_output=True, check=True).stdout or b"[]")
    return next(int(item["options"]["prog"]["id"]) for item in shown if "options" in item)


def gone(program: int) -> bool:
    """Tell whether the kernel has freed a program."""
    return libbpf.program_name(program) == ""


def clsact(interface: str) -> bool:
    with IPRoute() as ip_:
        index = ip_.link_lookup(ifname=interface)[0]
        return any(q.get_attr("TCA_KIND") == "clsact" for q in ip_.get_qdiscs() if q["index"] == index)


@pytest.mark.net
def test_close_removes_everything(cache: Path) -> None:
    """Programs, tc hooks, links and descriptors; a hook that was there before stays."""
    with own_namespace():
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        cables = [Cable(1), Cable(2)]
        subprocess.run(["tc", "qdisc", "add", "dev", "sw2", "clsact"], check=True)
        engine = EbpfEngine(
            DEVICE, cache=cache, on_packet_in=lambda frame: None, on_digest=lambda name, values: None
        )
        for number, cable in enumerate(cables, 1):
            engine.add_port(number, cable.port)
        programs = []
        for _ in range(3):
            pipeline = engine.load(build.forwarder())
            pipeline.activate()
            programs.append(pipeline.object.program_id())
        assert clsact("sw1")
        assert attached("sw1") == attached("sw2") == programs[-1]
        engine.close()
        for cable in cables:
            cable.close()
        wait_for(lambda: all(map(gone, programs)), "the end of the programs")
        assert not clsact("sw1")
        assert clsact("sw2")
        assert {name for _, name in socket.if_nameindex()} == {"lo", "sw1", "h1", "sw2", "h2"}
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


KILLED = """
import sys, os, signal
from dataplane.switch.engine import EbpfEngine
from dataplane.switch.pipeline import Exact
from tests.dataplane.engine import build
from tests.dataplane.engine.conftest import insert
from pathlib import Path
engine = EbpfEngine(%d, cache=Path(sys.argv[1]), on_packet_in=print, on_digest=print)
engine.add_port(1, "sw1")
engine.add_port(2, "sw2")
pipeline = engine.load(build.nat())
pipeline.activate()
insert(pipeline, "Ingress.nat", [Exact(0x0a000002), Exact(1)], "Ingress.rewrite", 2, 1, 2, 3, 4, 5)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.net
def test_after_a_kill(cache: Path) -> None:
    """A killed engine's program goes on forwarding; the next engine takes its place, and cleans up."""
    with own_namespace():
        cables = [Cable(1), Cable(2)]
        done = subprocess.run([sys.executable, "-c", KILLED % DEVICE, str(cache)], timeout=30, check=False)
        assert done.returncode == -signal.SIGKILL
        left = attached("sw1")
        cables[0].send(bytes(tcp()))
        assert cables[1].receive() is not None
        assert f"p4cpu{DEVICE}" in {name for _, name in socket.if_nameindex()}
        with EbpfEngine(DEVICE, cache=cache, on_packet_in=print, on_digest=print) as engine:
            engine.add_port(1, "sw1")
            engine.add_port(2, "sw2")
            engine.load(build.nat()).activate()
            cables[0].send(bytes(tcp()))
            assert cables[1].receive(0.05) is None, "the new pipeline has no entries"
        wait_for(lambda: gone(left), "the end of the killed engine's program")
        assert not clsact("sw1")
        for cable in cables:
            cable.close()


@pytest.mark.net
def test_activation_passes_over_a_port_that_is_gone(lab: Lab) -> None:
    with IPRoute() as ip_:
        ip_.link("del", index=ip_.link_lookup(ifname="sw3")[0])
    pipeline = lab.run(build.nat())
    insert(pipeline, "Ingress.nat", [Exact(ip("10.0.0.2")), Exact(1)], "Ingress.rewrite", 2, 1, 2, 3, 4, 5)
    lab.cables[1].send(bytes(tcp()))
    assert lab.cables[2].receive() is not None
    lab.engine.remove_port(3)


@pytest.mark.net
def test_failed_activation_leaves_the_old_pipeline(lab: Lab) -> None:
    """A program that cannot be attached (its descriptor is closed) changes nothing on any port."""
    pipeline = lab.run(build.nat())
    insert(pipeline, "Ingress.nat", [Exact(ip("10.0.0.2")), Exact(1)], "Ingress.rewrite", 2, 1, 2, 3, 4, 5)
    broken = lab.engine.load(build.forwarder())
    descriptor, broken.object.program_fd = broken.object.program_fd, -1
    with pytest.raises(PipelineError, match="cannot attach to"):
        broken.activate()
    broken.object.program_fd = descriptor
    lab.cables[1].send(bytes(tcp()))
    assert lab.cables[2].receive() is not None


def test_any_name_may_be_used(tmp_path: Path) -> None:
    """Names of C's and of our own functions are names like any other in P4."""
    b = Builder([("int", 8), ("default", 8), ("length", 8), ("valid", 8)])
    b.header("packet", [("raw", 8), ("key", 8), ("static", 8), ("u64", 8)])
    b.header("raw", [("while", 8)])
    b.state("start", "packet", select=["packet.key"], cases=[("0x01", "switch")])
    b.state("switch", "raw")
    b.root["register_arrays"].append({"name": "extract", "id": 0, "size": 1, "bitwidth": 8})
    cell = {"type": "register_array", "value": "extract"}
    names = ("count", "send_to", "int", "Ingress.a", "Ingress_a")
    actions = [
        b.action(name, [("register", 8)], primitive("register_write", cell, build.expr(0), build.expr("$0")))
        for name in names
    ]
    b.start(
        b.table(
            "parse", [("packet.u64", "exact"), ("scalars.default", "exact")], actions, actions[0], data=[1]
        )
    )
    assert Compiler(tmp_path).compile(generate(b.json()))


# ---- VLAN tags


def tagging() -> bytes:
    """Return a program that sees one VLAN tag: tag 5 loses it, others change to 77; untagged frames pass."""
    b = Builder()
    b.header("ethernet", build.ETHERNET)
    b.header("vlan", [("pcp", 3), ("dei", 1), ("vid", 12), ("ethertype", 16)])
    b.state(
        "start",
        "ethernet",
        select=["ethernet.ethertype"],
        cases=[("0x8100", "parse_vlan"), ("0x88a8", "parse_vlan")],
    )
    b.state("parse_vlan", "vlan")
    out = b.action("out", (), assign(build.EGRESS_SPEC, 2))
    change = b.action("change", (), assign("vlan.vid", 77))
    pop = b.action(
        "pop", (), assign("ethernet.ethertype", "vlan.ethertype"), header_primitive("remove_header", "vlan")
    )
    last = b.call(out)
    five = b.condition(("==", "vlan.vid", 5), b.call(pop, last), b.call(change, last))
    b.start(b.condition(valid("vlan"), five, last))
    return b.json()


@pytest.mark.net
def test_vlan_tags_are_where_they_were_on_the_wire(lab: Lab) -> None:
    """The kernel has taken tags out before tc sees a packet; the program finds them nevertheless."""
    lab.run(tagging())
    inner = IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / b"hello"
    cases = [
        (Ether(dst=B, src=A) / inner, Ether(dst=B, src=A) / inner),
        (
            Ether(dst=B, src=A) / Dot1Q(vlan=9, prio=3) / inner,
            Ether(dst=B, src=A) / Dot1Q(vlan=77, prio=3) / inner,
        ),
        (Ether(dst=B, src=A) / Dot1Q(vlan=5) / inner, Ether(dst=B, src=A) / inner),
        (
            Ether(dst=B, src=A) / Dot1Q(vlan=9) / Dot1Q(vlan=8) / inner,
            Ether(dst=B, src=A) / Dot1Q(vlan=77) / Dot1Q(vlan=8) / inner,
        ),
    ]
    # The far end's kernel takes the tag out of what a socket reads, too: auxiliary data has it.
    lab.cables[2].socket.setsockopt(263, 8, 1)  # PACKET_AUXDATA
    for sent, expected in cases:
        lab.cables[1].send(bytes(sent))
        assert receive_tagged(lab.cables[2]) == bytes(expected)


def receive_tagged(cable: Cable) -> bytes:
    cable.socket.settimeout(2)
    frame, ancillary, _, _ = cable.socket.recvmsg(2048, 256)
    [data] = [data for level, kind, data in ancillary if (level, kind) == (263, 8)]
    status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", data)
    if not status & 0x10:  # TP_STATUS_VLAN_VALID
        return frame
    return frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]


# ---- what is not supported is refused, with the place in the P4 source


def with_action(*primitives: dict[str, Any]) -> Builder:
    b = Builder([("x", 8), ("wide", 128), ("l4_length", 16)])
    build.nat_parser(b)
    b.start(b.call(b.action("act", (), *primitives)))
    return b


def with_root(key: str, value: dict[str, Any]) -> Builder:
    b = with_action()
    b.root[key].append({"source_info": build.source(42), "name": "thing", **value})
    return b


def looping() -> Builder:
    b = Builder()
    b.header("h", [("next", 8)])
    b.state("start", "h", select=["h.next"], cases=[("0x01", "again")])
    b.state("again", default="start")
    return b


def summed_header_added() -> Builder:
    return with_action(header_primitive("add_header", "tcp"))


def table_with(**changes: Any) -> Builder:
    b = with_action()
    action = b.action("other")
    b.start(b.table("t", [("ipv4.dst", "exact")], [action], action))
    b.controls["ingress"]["tables"][-1] |= changes
    return b


CLONE = "clone_ingress_pkt_to_egress"

REFUSED: list[tuple[str, Callable[[], Builder], str]] = [
    ("clone", lambda: with_action(primitive(CLONE, build.expr(1))), r"test.p4:1:8: clone \(I2E\) is not supported"),
    ("recirculate", lambda: with_action(primitive("recirculate", build.expr(1))), "recirculate is not supported"),
    ("resubmit", lambda: with_action(primitive("resubmit", build.expr(1))), "resubmit is not supported"),
    ("truncate", lambda: with_action(primitive("truncate", build.expr(1))), "truncate is not supported"),
    ("meter", lambda: with_root("meter_arrays", {}), r"test.p4:42:8: meters are not supported \(thing\)"),
    ("stack", lambda: with_root("header_stacks", {}), r"test.p4:42:8: header stacks are not supported \(thing\)"),
    ("union", lambda: with_root("header_unions", {}), "header unions are not supported"),
    ("value set", lambda: with_root("parse_vsets", {}), "parser value sets are not supported"),
    ("register", lambda: with_root("register_arrays", {"size": 1, "bitwidth": 65}), "65 bits wide"),
    ("multicast", lambda: with_action(assign("standard_metadata.mcast_grp", 1)), r"test.p4:1:8: multicast"),
    ("arithmetic", lambda: with_action(assign("scalars.wide", ("+", "scalars.wide", 1))), "arithmetic on 128 bits"),
    ("saturation", lambda: with_action(assign("scalars.x", ("usat_cast", "scalars.x", 64))), "saturating"),
    ("loop", looping, "part of a loop"),
    ("checksum", summed_header_added, r"test.p4:90:8: a checksum over header tcp"),
    ("profile", lambda: table_with(type="indirect"), r"test.p4:11:8: table t has an action profile"),
    ("direct meter", lambda: table_with(direct_meters="m"), "direct meter"),
    ("hash", lambda: with_action(_hash_with("random")), "hash algorithm random"),
]  # fmt: skip


def _hash_with(algorithm: str) -> dict[str, Any]:
    """Return a hash call; its calculation is not declared by this builder, which is an error of its own."""
    calculation = {"type": "calculation", "value": algorithm}
    return primitive(
        "modify_field_with_hash_based_offset",
        build.expr("scalars.x"),
        build.expr(0),
        calculation,
        build.expr(8),
    )


def generate(program: bytes) -> str:
    collect(program)
    return Source(parse_program(program), Options()).text


@pytest.mark.parametrize(("make", "text"), [item[1:] for item in REFUSED], ids=[item[0] for item in REFUSED])
def test_refused_with_position_and_reason(make: Callable[[], Builder], text: str) -> None:
    builder = make()
    if text == "hash algorithm random":
        builder.root["calculations"].append({"name": "random", "id": 0, "algo": "random", "input": []})
    with pytest.raises(PipelineRejected, match=text):
        generate(builder.json())


def test_varbit_is_refused() -> None:
    b = with_action()
    b.header("options", [("length", 8)])
    b.root["header_types"][-1]["fields"].append(["data", "*"])
    with pytest.raises(PipelineRejected, match=r"varbit fields are not supported \(options_t.data\)"):
        generate(b.json())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"not json", b'{"pipelines": [], "parsers": []}'])
def test_no_bmv2_json(data: bytes) -> None:
    with pytest.raises(PipelineRejected):
        parse_program(data)


@pytest.mark.net
@pytest.mark.parametrize("key", ["actions", "calculations", "headers", "deparsers"])
def test_malformed_json_is_rejected(lab: Lab, key: str) -> None:
    """Whatever is missing: one clear error."""
    root = json.loads(build.nat())
    del root[key]
    with pytest.raises(PipelineRejected, match="malformed"):
        lab.engine.load(json.dumps(root).encode())


# ---- the packet-out header


def test_packet_out_header_is_found_in_the_parser() -> None:
    program = parse_program(build.controller())
    assert front_states(program, 255) == ["parse_packet_out"]
    assert [header.name for header in front_headers(program, 255)] == ["packet_out"]
    assert front_headers(program, 254) == []
    assert front_headers(parse_program(build.nat()), 255) == []


# ---- the verifier


BAD = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
/* action Ingress.broken, test.p4:17:4 */
SEC("tc") int p4ferry(struct __sk_buff *skb)
{
	char *data = (void *)(long)skb->data;
	return data[100];
}
"""


@pytest.mark.net
def test_verifier_failure_names_the_p4_line(cache: Path) -> None:
    with pytest.raises(VerifierRejected) as caught:
        Object(Compiler(cache).compile(BAD))
    text = summary(caught.value.log, BAD)
    assert "invalid access to packet" in text
    assert "test.p4:17:4" in text
    assert "processed" not in text


GENERATED = """
/* action Ingress.hash, test.p4:8:4 */
static __always_inline void Ingress_hash(struct __sk_buff *skb, struct packet *p)
{
	crc32_add(&state, bytes >> 8);
}
/* test.p4:30:8 */
SEC("tc")
int p4ferry(struct __sk_buff *skb)
{
	return to_controller(skb, p);
	return to_controller(skb, p);  /* test.p4:99:1 */
}
"""

LOGS = {
    # Linux 6.1: the place is in our own code; what is quoted has no file and line.
    "6.1": (
        """\
; return to_controller(skb, p);
880: (79) r1 = *(u64 *)(r7 +360)      ; R1_w=scalar() R7=map_value(off=0,ks=4,vs=552,imm=0) refs=32
; PACKET_IN(256)
958: (bc) w4 = w8                     ; R4_w=scalar(umax=256,var_off=(0x0; 0x1ff)) refs=32
959: (85) call bpf_skb_load_bytes#26
invalid access to memory, mem_size=376 off=120 size=0
R3 min value is outside of the allowed memory range
processed 675 insns (limit 1000000) max_states_per_insn 0 total_states 36 peak_states 36 mark_read 13
""",
        "959: (85) call bpf_skb_load_bytes#26; invalid access to memory, mem_size=376 off=120 size=0; R3 min value is "
        "outside of the allowed memory range (P4: test.p4:30:8, then runtime.h)",
    ),
    # Linux 6.12: with file and line, the same line twice.
    "6.12": (
        """\
; return to_controller(skb, p); @ pipeline.c:12
880: (79) r1 = *(u64 *)(r7 +360)      ; R1_w=scalar()
; PACKET_IN(256) @ runtime.h:201
959: (85) call bpf_skb_load_bytes#26
R3 min value is outside of the allowed memory range
""",
        "R3 min value is outside of the allowed memory range (P4: test.p4:99:1, then runtime.h)",
    ),
    # Linux 5.15: register states and the search for exact values on lines of their own.
    "5.15": (
        """\
; crc32_add(&state, bytes >> 8);
429: (67) r1 <<= 2
430: (18) r2 = 0xffff8b9442384110
432: (0f) r2 += r1
last_idx 432 first_idx 424
regs=2 stack=0 before 430: (18) r2 = 0xffff8b9442384110
parent didn't have regs=2 stack=0 marks
 R0=inv(id=0) R1_w=inv(id=0) R6=ctx(id=0,off=0,imm=0)
math between map_value pointer and register with unbounded min value is not allowed
processed 473 insns (limit 1000000) max_states_per_insn 0 total_states 21 peak_states 21 mark_read 14
""",
        "432: (0f) r2 += r1; math between map_value pointer and register with unbounded min value is not allowed "
        "(P4: action Ingress.hash, test.p4:8:4)",
    ),
}


@pytest.mark.parametrize("kernel", LOGS)
def test_logs_of_other_kernels(kernel: str) -> None:
    log, expected = LOGS[kernel]
    assert summary(log, GENERATED).endswith(expected)


def test_clang_failure_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PipelineRejected, match="clang does not accept the generated program"):
        Compiler(tmp_path).compile("int broken(")


def test_objects_are_cached(tmp_path: Path) -> None:
    compiler = Compiler(tmp_path)
    first = compiler.compile(generate(build.nat()))
    [kept] = tmp_path.glob("*.o")
    kept.write_bytes(b"from the cache")
    assert compiler.compile(generate(build.nat())) == b"from the cache"
    assert first != b"from the cache"


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Everything works without a cache, only slower."""
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    assert Compiler(blocked / "cache").compile(generate(build.nat()))


def test_missing_clang_is_said(tmp_path: Path) -> None:
    with pytest.raises(PipelineRejected, match="no-clang is not installed"):
        Compiler(tmp_path, "no-clang").compile("")


@pytest.mark.net
def test_program_name_of_nothing() -> None:
    assert libbpf.program_name(0xFFFFFFF0) == ""
