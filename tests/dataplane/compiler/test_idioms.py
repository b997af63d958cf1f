"""What programs of courses and tutorials commonly do, in one place each."""

from __future__ import annotations

import pytest

from .skeleton import FIELDS, METADATA, Workbench, hidden_steps, source, state, table

IN_BAND = {
    "top": """
        #define MAX_HOPS 9
        typedef bit<32> switchID_t;
        const bit<5> OPTION_MRI = 31;
        header option_t { bit<1> copy; bit<2> class; bit<5> option; bit<8> length; }
        header mri_t { bit<16> count; }
        header switch_t { switchID_t swid; bit<32> qdepth; }
        struct ingress_metadata_t { bit<16> count; }
        struct parser_metadata_t { bit<16> remaining; }
        error { IPHeaderTooShort }
    """,
    "fields": FIELDS + " option_t ipv4_option; mri_t mri; switch_t[MAX_HOPS] swtraces;",
    "metadata": "ingress_metadata_t ingress_metadata; parser_metadata_t parser_metadata;",
    "parser": """
        state start { packet.extract(hdr.ethernet);
            transition select(hdr.ethernet.type) { 16w0x800: parse_ipv4; default: accept; } }
        state parse_ipv4 { packet.extract(hdr.ipv4); verify(hdr.ipv4.ihl >= 5, error.IPHeaderTooShort);
            transition select(hdr.ipv4.ihl) { 5: accept; default: parse_option; } }
        state parse_option { packet.extract(hdr.ipv4_option);
            transition select(hdr.ipv4_option.option) { OPTION_MRI: parse_mri; default: accept; } }
        state parse_mri { packet.extract(hdr.mri); meta.parser_metadata.remaining = hdr.mri.count;
            transition select(meta.parser_metadata.remaining) { 0: accept; default: parse_trace; } }
        state parse_trace { packet.extract(hdr.swtraces.next);
            meta.parser_metadata.remaining = meta.parser_metadata.remaining - 1;
            transition select(meta.parser_metadata.remaining) { 0: accept; default: parse_trace; } }
    """,
    "egress": """
        action add(switchID_t swid) {
            hdr.mri.count = hdr.mri.count + 1;
            hdr.swtraces.push_front(1);
            hdr.swtraces[0].setValid();
            hdr.swtraces[0].swid = swid;
            hdr.swtraces[0].qdepth = (bit<32>)std.deq_qdepth;
            hdr.ipv4.ihl = hdr.ipv4.ihl + 2;
            hdr.ipv4_option.length = hdr.ipv4_option.length + 8;
            hdr.ipv4.len = hdr.ipv4.len + 8;
        }
        table swtrace { actions = { add; NoAction; } default_action = NoAction(); }
        apply { if (hdr.mri.isValid()) { swtrace.apply(); } }
    """,
    "deparser": "packet.emit(hdr.ethernet); packet.emit(hdr.ipv4); packet.emit(hdr.ipv4_option); packet.emit(hdr.mri);"
    " packet.emit(hdr.swtraces);",
}


def test_in_band_telemetry(bench: Workbench) -> None:
    """Nested metadata, a parser loop that counts, pushing onto a stack."""
    document = bench.json(**IN_BAND)
    names = [f[0] for f in document["header_types"][0]["fields"]]
    assert names == ["userMetadata._ingress_metadata_count0", "userMetadata._parser_metadata_remaining1"]
    assert [o["op"] for o in state(document, "parse_trace")["parser_ops"]] == ["extract", "set"]
    assert table(document, "E.swtrace")["key"] == []
    assert len(document["deparsers"][0]["order"]) == 4 + 9


def test_calculator(bench: Workbench) -> None:
    """lookahead of a header, const entries on a one-byte key, swapping addresses."""
    document = bench.json(
        top="header calc_t { bit<8> p; bit<8> four; bit<8> op; bit<32> x; bit<32> y; bit<32> res; }",
        fields="ethernet_t ethernet; calc_t calc;",
        parser="state start { packet.extract(hdr.ethernet);"
        " transition select(packet.lookahead<calc_t>().p, packet.lookahead<calc_t>().four) {"
        " (0x50, 0x34): calc; default: accept; } }"
        " state calc { packet.extract(hdr.calc); transition accept; }",
        local="""
            action send_back(bit<32> result) {
                bit<48> tmp; hdr.calc.res = result; tmp = hdr.ethernet.dst;
                hdr.ethernet.dst = hdr.ethernet.src; hdr.ethernet.src = tmp; std.egress_spec = std.ingress_port; }
            action add() { send_back(hdr.calc.x + hdr.calc.y); }
            action drop() { mark_to_drop(std); }
            table calculate { key = { hdr.calc.op: exact; } actions = { add; drop; }
                const default_action = drop(); const entries = { 0x2b: add(); } }
        """,
        apply="if (hdr.calc.isValid()) { calculate.apply(); } else { drop(); }",
        deparser="packet.emit(hdr.ethernet); packet.emit(hdr.calc);",
    )
    made = table(document, "C.calculate")
    assert made["entries"][0]["match_key"] == [{"match_type": "exact", "key": "0x2b"}]
    assert len(state(document, "start")["transition_key"]) == 2


def test_firewall_with_bloom_filter(bench: Workbench) -> None:
    """Registers indexed by hashes, through actions with parameters."""
    document = bench.json(
        local="""
            register<bit<1>>(4096) bloom_1; register<bit<1>>(4096) bloom_2;
            bit<32> pos_one; bit<32> pos_two; bit<1> val_one; bit<1> val_two; bit<1> direction = 0;
            action compute_hashes(bit<32> a1, bit<32> a2, bit<16> p1) {
                hash(pos_one, HashAlgorithm.crc16, (bit<32>)0, { a1, a2, p1, hdr.ipv4.protocol }, (bit<32>)4096);
                hash(pos_two, HashAlgorithm.crc32, (bit<32>)0, { a1, a2, p1, hdr.ipv4.protocol }, (bit<32>)4096);
            }
        """,
        apply="""
            if (hdr.ipv4.isValid()) {
                if (direction == 0) { compute_hashes(hdr.ipv4.src, hdr.ipv4.dst, 80); }
                else { compute_hashes(hdr.ipv4.dst, hdr.ipv4.src, 80); }
                bloom_1.write(pos_one, 1);
                bloom_1.read(val_one, pos_one);
                bloom_2.read(val_two, pos_two);
                if (val_one != 1 || val_two != 1) { mark_to_drop(std); }
            }
        """,
    )
    assert len(document["calculations"]) == 4
    assert [r["name"] for r in document["register_arrays"]] == ["C.bloom_1", "C.bloom_2"]
    assert "register_write" in [s["op"] for s in hidden_steps(document)]


def test_source_routing(bench: Workbench) -> None:
    """Popping a stack, in a parser loop of its own."""
    document = bench.json(
        top="header srcRoute_t { bit<1> bos; bit<15> port; }",
        fields="ethernet_t ethernet; srcRoute_t[9] srcRoutes; ipv4_t ipv4;",
        parser="""
            state start { packet.extract(hdr.ethernet);
                transition select(hdr.ethernet.type) { 0x1234: routes; default: accept; } }
            state routes { packet.extract(hdr.srcRoutes.next);
                transition select(hdr.srcRoutes.last.bos) { 1: ipv4; default: routes; } }
            state ipv4 { packet.extract(hdr.ipv4); transition accept; }
        """,
        local="action nhop() { std.egress_spec = (bit<9>)hdr.srcRoutes[0].port; hdr.srcRoutes.pop_front(1); }"
        " action finish() { hdr.ethernet.type = 0x800; } action drop() { mark_to_drop(std); }",
        apply="if (hdr.srcRoutes[0].isValid()) { if (hdr.srcRoutes[0].bos == 1) { finish(); } nhop();"
        " if (hdr.ipv4.isValid()) { hdr.ipv4.ttl = hdr.ipv4.ttl - 1; } } else { drop(); }",
    )
    assert [t["name"] for t in document["pipelines"][0]["tables"]][:2] == ["tbl_finish", "tbl_nhop"]


def test_ecn_multicast_and_priorities(bench: Workbench) -> None:
    """standard_metadata's fields, thresholds as constants, conditions on slices."""
    document = bench.json(
        top="const bit<19> ECN_THRESHOLD = 10;",
        apply="std.mcast_grp = 1; std.priority = 3w2; if (hdr.ipv4.tos[1:0] == 1 || hdr.ipv4.tos[1:0] == 2) {"
        " if (std.enq_qdepth >= ECN_THRESHOLD) { hdr.ipv4.tos[1:0] = 3; } }",
        egress="apply { if (std.egress_port == std.ingress_port) { mark_to_drop(std); } }",
    )
    assert len(document["pipelines"][0]["conditionals"]) == 2
    assert document["pipelines"][1]["conditionals"][0]["true_next"].startswith("tbl_prog")


def test_learning_switch_with_cloning(bench: Workbench) -> None:
    """Digest of a struct variable, clone with preserved fields, instance types."""
    document = bench.json(
        top="struct learn_t { bit<48> mac; bit<16> port; } const bit<32> INGRESS_CLONE = 1;",
        metadata="@field_list(1) bit<16> port; learn_t learn;",
        local="action mac_learn() { meta.learn.mac = hdr.ethernet.src; meta.learn.port = (bit<16>)std.ingress_port;"
        " digest<learn_t>(1, meta.learn); clone_preserving_field_list(CloneType.I2E, 100, 1); }"
        " table smac { key = { hdr.ethernet.src: exact; } actions = { mac_learn; NoAction; } size = 256;"
        " default_action = mac_learn; }",
        apply="smac.apply();",
        egress="apply { if (std.instance_type == INGRESS_CLONE) { truncate(14); } }",
    )
    assert document["learn_lists"][0]["name"] == "learn_t"
    assert document["field_lists"][0]["name"] == "field_list1"


@pytest.mark.parametrize(
    "apply",
    [
        "bit<8> x = 1; { bit<8> x = 2; meta.a = x; } meta.b = x;",
        "meta.a = (bit<8>)(hdr.ipv4.ihl ++ 4w0) >> 1;",
        "hdr.ipv4.dst = hdr.ipv4.dst & ~(32w0xff << 8);",
        "meta.big = (bit<32>)std.ingress_global_timestamp;",
        "if (!(meta.a == 1 && meta.flag) || hdr.ipv4.isValid() == false) { meta.b = 1; }",
        "bool ok = meta.a > 3 && !meta.flag; if (ok) { meta.b = 1; } else if (meta.flag) ; else { meta.b = 2; }",
        "meta.s = (int<8>)meta.a; if (meta.s < 0) { meta.b = 1; }",
        "@atomic { meta.a = 1; }",
        "tuple<bit<8>, bool> t = { meta.a, true }; meta.flag = t[1];",
        "hdr.ethernet = { type = 1, dst = 2, src = 3 };",
        "meta.a = hdr.ethernet == hdr.ethernet ? 8w1 : 0;",
    ],
)
def test_accepted(bench: Workbench, apply: str) -> None:
    """Smaller things that must not be refused."""
    assert hidden_steps(bench.json(metadata=METADATA, apply=apply))


def test_newer_architecture(bench: Workbench) -> None:
    """V1MODEL_VERSION 20200408 gives counters and registers an index type."""
    text = source(
        top="type bit<8> Slot_t;",
        metadata=METADATA + " Slot_t slot;",
        local="counter<Slot_t>(256, CounterType.packets) c; register<bit<32>, bit<8>>(256) r;",
        apply="c.count(meta.slot); r.read(meta.big, meta.a); r.write(8w3, 5);",
    )
    info = bench.compile_text("#define V1MODEL_VERSION 20200408\n" + text).p4info
    assert info.counters[0].index_type_name.name == "Slot_t"
    assert info.registers[0].size == 256
