"""P4Info: p4c's ids, names and layout.

The ids are those that p4c has given to published programs (fabric.p4 and flowlet_switching in its test suite).
"""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.compiler import CompileError
from dataplane.compiler.p4ids import Prefix, Symbols, hash_name

from .skeleton import FIELDS, METADATA, Workbench


@pytest.mark.parametrize(
    ("prefix", "name", "number"),
    [
        (Prefix.ACTION, "NoAction", 21257015),
        (Prefix.ACTION, "nop", 28485346),
        (Prefix.ACTION, "MyIngress.drop", 25652968),
        (Prefix.ACTION, "MyIngress.forward", 29683729),
        (Prefix.ACTION, "ingress._drop", 19344232),
        (Prefix.ACTION, "egress._drop", 25850727),
        (Prefix.ACTION, "FabricIngress.filtering.deny", 17164167),
        (Prefix.ACTION, "FabricIngress.next.mpls_routing_hashed", 27920375),
        (Prefix.TABLE, "ingress.ecmp_group", 38446407),
        (Prefix.TABLE, "FabricIngress.filtering.ingress_port_vlan", 43310977),
        (Prefix.TABLE, "FabricIngress.next.hashed", 47960972),
        (Prefix.CONTROLLER_HEADER, "packet_in_header_t", 81826293),
        (Prefix.CONTROLLER_HEADER, "packet_out_header_t", 76689799),
        (Prefix.ACTION_PROFILE, "FabricIngress.next.hashed_selector", 291115404),
        (Prefix.COUNTER, "FabricIngress.port_counters_control.egress_port_counter", 314528581),
        (Prefix.DIRECT_COUNTER, "FabricIngress.acl.acl_counter", 319194241),
        (Prefix.REGISTER, "ingress.flowlet_id", 384519412),
        (Prefix.REGISTER, "ingress.flowlet_lasttime", 375147533),
        (Prefix.DIGEST, "ddn_digest_t", 396224266),
    ],
)
def test_known_ids(prefix: Prefix, name: str, number: int) -> None:
    """The hash is p4c's."""
    symbols = Symbols()
    symbols.add(prefix, name)
    symbols.assign()
    assert symbols.id(prefix, name) == number


def test_collisions_are_probed_in_the_order_of_names() -> None:
    """A taken number is skipped."""
    free = Prefix.TABLE << 24 | (hash_name("b") & 0xFFFFFF)
    symbols = Symbols()
    symbols.add(Prefix.TABLE, "b")
    assert symbols.add(Prefix.TABLE, "a", free & 0xFFFFFF)
    assert not symbols.add(Prefix.TABLE, "c", free)
    symbols.assign()
    assert symbols.id(Prefix.TABLE, "a") == free
    assert symbols.id(Prefix.TABLE, "b") == free + 1


def test_aliases() -> None:
    """An alias is the shortest suffix that is unique among all kinds of objects."""
    symbols = Symbols()
    for prefix, name in [
        (Prefix.ACTION, "ingress._drop"), (Prefix.ACTION, "egress._drop"), (Prefix.TABLE, "ingress.t"),
        (Prefix.ACTION, "a.b.c"), (Prefix.TABLE, "x.b.c"), (Prefix.COUNTER, "c"),
    ]:  # fmt: skip
        symbols.add(prefix, name)
    aliases = {n: symbols.alias(n) for n in ("ingress._drop", "ingress.t", "a.b.c", "x.b.c", "c")}
    assert aliases == {
        "ingress._drop": "ingress._drop", "ingress.t": "t", "a.b.c": "a.b.c", "x.b.c": "x.b.c", "c": "c",
    }  # fmt: skip


LOCAL = """
    counter(64, CounterType.packets) hits;
    direct_counter(CounterType.packets_and_bytes) per_row;
    direct_meter<bit<8>>(MeterType.bytes) color;
    meter(7, MeterType.packets) rate;
    register<bit<48>>(9) last_seen;
    action drop() { mark_to_drop(std); }
    @brief("To a port") action forward(bit<9> port, @id(7) bit<48> mac) {
        std.egress_spec = port; hdr.ethernet.dst = mac; color.read(meta.a);
    }
    @id(0x02000005) @my_note("x", 3) table route {
        key = { hdr.ipv4.dst: lpm @name("address"); meta.a: ternary; meta.b: exact;
                meta.wide: range; meta.flag: optional; }
        actions = { forward; @tableonly drop; @defaultonly NoAction; }
        const default_action = NoAction();
        counters = per_row; meters = color; size = 512; support_timeout = true;
    }
    table fixed { key = { meta.a: exact; } actions = { drop; } const entries = { 1: drop(); } }
    @hidden table secret { actions = { drop; } }
"""


@pytest.fixture
def info(bench: Workbench) -> Any:
    """Return the P4Info of a program with one of everything."""
    return bench.compile(
        top='@controller_header("packet_in") header packet_in_t { bit<9> port; @padding bit<7> _pad; }'
        "struct note_t { bit<32> addr; bool b; } type bit<9> Port_t;",
        fields=FIELDS + " packet_in_t pin;",
        metadata=METADATA + " Port_t p;",
        local=LOCAL,
        apply="hits.count(1); rate.execute_meter(1, meta.b); last_seen.write(1, 48w3); route.apply(); fixed.apply();"
        "secret.apply(); digest<note_t>(1, { hdr.ipv4.src, meta.flag });",
    ).p4info


def test_tables(info: Any) -> None:
    """Tables with match fields, actions and attached resources."""
    route, fixed = info.tables
    assert (route.preamble.id, route.preamble.name, route.preamble.alias) == (0x02000005, "C.route", "route")
    assert list(route.preamble.annotations) == ['@my_note("x", 3)']
    assert [(f.id, f.name, f.bitwidth, f.match_type) for f in route.match_fields] == [
        (1, "address", 32, 3), (2, "meta.a", 8, 4), (3, "meta.b", 8, 2),
        (4, "meta.wide", 16, 5), (5, "meta.flag", 1, 6),
    ]  # fmt: skip
    actions = {a.preamble.id: a.preamble.name for a in info.actions}
    assert [(actions[r.id], list(r.annotations), r.scope) for r in route.action_refs] == [
        ("C.forward", [], 0), ("C.drop", ["@tableonly"], 1), ("NoAction", ["@defaultonly"], 2),
    ]  # fmt: skip
    assert actions[route.const_default_action_id] == "NoAction"
    assert list(route.direct_resource_ids) == [
        info.direct_counters[0].preamble.id, info.direct_meters[0].preamble.id,
    ]  # fmt: skip
    assert (route.size, route.idle_timeout_behavior, route.is_const_table) == (512, 1, False)
    assert (fixed.is_const_table, fixed.size) == (True, 1)


def test_actions(info: Any) -> None:
    """NoAction comes first; parameters have ids, names and widths."""
    names = [a.preamble.name for a in info.actions]
    assert names == ["NoAction", "C.drop", "C.forward"]
    assert list(info.actions[0].preamble.annotations) == ['@noWarn("unused")']
    forward = info.actions[2]
    assert [(p.id, p.name, p.bitwidth) for p in forward.params] == [(1, "port", 9), (7, "mac", 48)]
    assert forward.preamble.doc.brief == "To a port"


def test_externs(info: Any) -> None:
    """Counters, meters and registers."""
    assert (info.counters[0].preamble.name, info.counters[0].size, info.counters[0].spec.unit) == (
        "C.hits",
        64,
        2,
    )
    assert (info.direct_counters[0].spec.unit, info.direct_counters[0].direct_table_id) == (3, 0x02000005)
    assert (info.meters[0].size, info.meters[0].spec.unit) == (7, 2)
    assert info.direct_meters[0].spec.unit == 1
    assert info.registers[0].type_spec.bitstring.bit.bitwidth == 48
    assert info.registers[0].size == 9


def test_packet_io_and_digests(info: Any) -> None:
    """Controller headers and digests, and the package."""
    (header,) = info.controller_packet_metadata
    assert (header.preamble.name, header.preamble.alias) == ("packet_in", "packet_in")
    assert list(header.preamble.annotations) == ['@controller_header("packet_in")']
    assert [(m.id, m.name, m.bitwidth, list(m.annotations)) for m in header.metadata] == [
        (1, "port", 9, []), (2, "_pad", 7, ["@padding"]),
    ]  # fmt: skip
    (digest,) = info.digests
    assert (digest.preamble.id >> 24, digest.preamble.name, digest.type_spec.struct.name) == (
        0x17,
        "note_t",
        "note_t",
    )
    members = info.type_info.structs["note_t"].members
    assert [m.name for m in members] == ["addr", "b"]
    assert members[0].type_spec.bitstring.bit.bitwidth == 32 and members[1].type_spec.HasField("bool")
    assert info.pkg_info.arch == "v1model"


def test_profiles_and_value_sets(bench: Workbench) -> None:
    """Action profiles name their tables; value sets their matches."""
    info = bench.compile(
        parser="valueset<bit<16>>(4) vs; state start { packet.extract(hdr.ethernet);"
        " transition select(hdr.ethernet.type) { vs: accept; default: accept; } }",
        local="@max_group_size(8) action_selector(HashAlgorithm.crc16, 32w16, 32w14) sel;"
        "table s { key = { meta.a: exact; hdr.ipv4.src: selector; } actions = { NoAction; } implementation = sel; }",
        apply="s.apply();",
    ).p4info
    (profile,) = info.action_profiles
    assert (profile.with_selector, profile.size, profile.max_group_size) == (True, 16, 8)
    assert list(profile.table_ids) == [info.tables[0].preamble.id]
    assert info.tables[0].implementation_id == profile.preamble.id
    assert len(info.tables[0].match_fields) == 1
    assert (
        info.value_sets[0].preamble.name,
        info.value_sets[0].size,
        info.value_sets[0].match[0].bitwidth,
    ) == ("P.vs", 4, 16)


def test_translated_types(bench: Workbench) -> None:
    """@p4runtime_translation changes what the control plane sees."""
    info = bench.compile(
        top='@p4runtime_translation("x/port", 32) type bit<9> Port_t; @p4runtime_translation("x/name",'
        " string) type bit<8> Name_t;",
        metadata=METADATA + " Port_t port; Name_t name;",
        local="action set(Port_t p) { meta.port = p; } table t { key = { meta.port: exact; meta.name: exact;"
        " } actions = { set; } }",
        apply="t.apply();",
    ).p4info
    assert [(f.bitwidth, f.type_name.name) for f in info.tables[0].match_fields] == [
        (32, "Port_t"),
        (0, "Name_t"),
    ]
    assert info.actions[1].params[0].bitwidth == 32
    assert info.type_info.new_types["Port_t"].translated_type.sdn_bitwidth == 32


def test_package_information(bench: Workbench) -> None:
    """@pkginfo fills in the package."""
    from .skeleton import source

    text = source().replace("V1Switch(", '@pkginfo(name="demo", version="1.2")\n@brief("About")\nV1Switch(')
    info = bench.compile_text(text).p4info
    assert (info.pkg_info.name, info.pkg_info.version, info.pkg_info.doc.brief) == ("demo", "1.2", "About")


@pytest.mark.parametrize(
    ("local", "message"),
    [
        ("@id(0x01000001) table t { actions = { NoAction; } }", "wrong prefix"),
        ("@id(5) table t { actions = { NoAction; } } @id(5) table u { actions = { NoAction; } }", "is taken"),
    ],
)
def test_contradicting_ids(bench: Workbench, local: str, message: str) -> None:
    """@id must fit its kind and be unique."""
    compiled = bench.compile(local=local, apply="t.apply();")
    with pytest.raises(CompileError, match=message):
        _ = compiled.p4info


def test_name_of_a_control(bench: Workbench) -> None:
    """@name on a control is the prefix of all its names, as in p4c."""
    from .skeleton import source

    text = source(local="table t { actions = { NoAction; } }", apply="t.apply();")
    text = text.replace("control C(", '@name("Ingress") control C(')
    compiled = bench.compile_text(text)
    assert compiled.p4info.tables[0].preamble.name == "Ingress.t"
    assert compiled.bmv2_json["pipelines"][0]["tables"][0]["name"] == "Ingress.t"


def test_directed_parameters_are_not_the_control_planes(bench: Workbench) -> None:
    """Only parameters without a direction are in P4Info."""
    info = bench.compile(
        local="action a(in bit<8> x, bit<9> p) { meta.a = x; std.egress_spec = p; }"
        " table t { key = { meta.wide: exact; } actions = { a(meta.b); } }",
        apply="t.apply();",
    ).p4info
    action = next(a for a in info.actions if a.preamble.name == "C.a")
    assert [p.name for p in action.params] == ["p"]
