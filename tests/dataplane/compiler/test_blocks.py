"""Parsers, tables, externs, checksums and deparsers: what they become in BMv2 JSON."""

from __future__ import annotations

from typing import Any

import pytest

from dataplane.compiler.midend.parsers import range_to_masks

from .skeleton import FIELDS, METADATA, Workbench, hidden_steps, primitives, state, table

Json = dict[str, Any]


def transitions(document: Json, name: str) -> list[tuple[str | None, str | None, str | None]]:
    """Return value, mask and next state of all ways out of a state."""
    return [(t["value"], t["mask"], t["next_state"]) for t in state(document, name)["transitions"]]


# ---- parsers


def test_extract_and_select(bench: Workbench) -> None:
    """Keys are padded to bytes and put one behind the other."""
    document = bench.json(
        parser="state start { packet.extract(hdr.ipv4);"
        " transition select(hdr.ipv4.ihl, hdr.ipv4.frag, hdr.ipv4.protocol) {"
        " (5, 0, 6): tcp; (_, 0x10 &&& 0x1f0, 17): accept; default: accept; } } state tcp { transition accept; }"
    )
    assert state(document, "start")["parser_ops"] == [
        {"op": "extract", "parameters": [{"type": "regular", "value": "ipv4"}]}
    ]
    assert [k["value"] for k in state(document, "start")["transition_key"]] == [
        ["ipv4", "ihl"], ["ipv4", "frag"], ["ipv4", "protocol"],
    ]  # fmt: skip
    assert transitions(document, "start") == [
        ("0x05000006", None, "tcp"),
        ("0x00001011", "0x0001f0ff", None),
        (None, None, None),
    ]


def test_stack_loop(bench: Workbench) -> None:
    """`next` extracts into a stack, `last` looks at what was extracted."""
    document = bench.json(
        top="header seg_t { bit<1> last; bit<15> port; }",
        fields=FIELDS + " seg_t[3] segs;",
        parser="state start { packet.extract(hdr.segs.next);"
        " transition select(hdr.segs.last.last) { 1: accept; default: start; } }",
    )
    first = state(document, "start")
    assert first["parser_ops"][0]["parameters"] == [{"type": "stack", "value": "segs"}]
    assert first["transition_key"] == [{"type": "stack_field", "value": ["segs", "last"]}]


def test_union_stack_loop(bench: Workbench) -> None:
    """The same for stacks of unions."""
    document = bench.json(
        top="header h1 { bit<8> x; } header h2 { bit<8> y; } header_union u_t { h1 a; h2 b; }",
        fields=FIELDS + " u_t[3] us;",
        parser="state start { packet.extract(hdr.us.next.a);"
        " transition select(hdr.us.last.a.x) { 1: accept; default: start; } }",
    )
    first = state(document, "start")
    assert first["parser_ops"][0]["parameters"] == [{"type": "union_stack", "value": ["us", "a"]}]
    assert first["transition_key"] == [{"type": "union_stack_field", "value": ["us", "a", "x"]}]


def test_ranges_become_masks(bench: Workbench) -> None:
    """BMv2's parser has no ranges."""
    document = bench.json(
        parser="state start { packet.extract(hdr.ethernet);"
        " transition select(hdr.ethernet.type) { 1..6: accept; default: accept; } }"
    )
    assert [t[:2] for t in transitions(document, "start")] == [
        ("0x0001", None), ("0x0002", "0xfffe"), ("0x0004", "0xfffe"), ("0x0006", None), (None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0, 255), (1, 254), (7, 7), (0, 0), (128, 255), (3, 200)])
def test_range_masks_cover_exactly(low: int, high: int) -> None:
    """Every number of the range is matched once, and no other."""
    masks = range_to_masks(low, high, 8)
    for number in range(256):
        assert sum(number & mask == value for value, mask in masks) == int(low <= number <= high)


def test_verify_advance_lookahead_varbit(bench: Workbench) -> None:
    """The parser's other operations."""
    document = bench.json(
        top="header opt_t { varbit<320> data; }",
        fields=FIELDS + " opt_t opt;",
        parser="state start { packet.extract(hdr.ipv4); verify(hdr.ipv4.ihl >= 5, error.HeaderTooShort);"
        " packet.extract(hdr.opt, (bit<32>)hdr.ipv4.ihl); packet.advance(16);"
        " transition select(packet.lookahead<bit<8>>()) { 3: accept; default: accept; } }",
    )
    operations = state(document, "start")["parser_ops"]
    assert [o["op"] for o in operations] == ["extract", "verify", "extract_VL", "advance", "set"]
    assert operations[1]["parameters"][1] == {"type": "hexstr", "value": "0x4"}
    assert operations[2]["parameters"][1]["type"] == "expression"
    assert operations[4]["parameters"][1] == {"type": "lookahead", "value": [0, 8]}
    opt = next(h for h in document["header_types"] if h["name"] == "opt_t")
    assert opt["fields"] == [["data", "*"]] and opt["max_length"] == 40


def test_sub_parser(bench: Workbench) -> None:
    """A parser that is applied becomes states between two."""
    document = bench.json(
        top="parser Sub(packet_in p, out ipv4_t h) {"
        " state start { p.extract(h); transition select(h.ihl) { 5: accept; default: more; } }"
        " state more { transition accept; } }",
        parser="Sub() sub; state start { packet.extract(hdr.ethernet); sub.apply(packet, hdr.ipv4); meta.a = 1;"
        " transition accept; }",
    )
    inner = state(document, "start")["transitions"][0]["next_state"]
    after = transitions(document, inner)[0][2]
    assert after is not None
    assert state(document, after)["parser_ops"][0]["op"] == "set"
    assert state(document, inner)["parser_ops"][0]["parameters"][0]["value"] == "ipv4"


def test_conditions_in_states(bench: Workbench) -> None:
    """`if` in a state splits it."""
    document = bench.json(
        parser="state start { packet.extract(hdr.ethernet); if (hdr.ethernet.type == 1) { meta.a = 1; } meta.b = 2;"
        " transition accept; }"
    )
    assert len(document["parsers"][0]["parse_states"]) == 4


def test_value_sets(bench: Workbench) -> None:
    """Value sets are filled by the control plane."""
    document = bench.json(
        parser="valueset<bit<16>>(4) vs; state start { packet.extract(hdr.ethernet);"
        " transition select(hdr.ethernet.type) { vs: accept; default: accept; } }"
    )
    assert document["parse_vsets"] == [{"name": "P.vs", "id": 0, "compressed_bitwidth": 16, "max_size": 4}]
    assert state(document, "start")["transitions"][0]["type"] == "parse_vset"


# ---- tables

ACTIONS = "action fwd(bit<9> p) { std.egress_spec = p; } action drop() { mark_to_drop(std); }"


def test_table(bench: Workbench) -> None:
    """Keys, sizes, default action and the flow after a table."""
    document = bench.json(
        local=ACTIONS
        + 'table t { key = { hdr.ipv4.dst: lpm; hdr.ipv4.isValid(): exact; meta.a: exact @name("x"); }'
        " actions = { fwd; drop; } const default_action = fwd(5); size = 77; }",
        apply="t.apply();",
    )
    made = table(document, "C.t")
    assert [(k["match_type"], k["name"], k["target"]) for k in made["key"]] == [
        ("lpm", "hdr.ipv4.dst", ["ipv4", "dst"]),
        ("exact", "hdr.ipv4.$valid$", ["ipv4", "$valid$"]),
        ("exact", "x", ["scalars", "userMetadata.a"]),
    ]
    assert (made["match_type"], made["type"], made["max_size"]) == ("lpm", "simple", 77)
    assert made["actions"] == ["C.fwd", "C.drop"]
    assert made["next_tables"] == {"C.fwd": None, "C.drop": None}
    assert made["default_entry"] == {
        "action_id": made["action_ids"][0], "action_const": True, "action_data": ["0x5"], "action_entry_const": True,
    }  # fmt: skip
    assert document["actions"][made["action_ids"][0]]["runtime_data"] == [{"name": "p", "bitwidth": 9}]


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ("meta.a: exact;", "exact"),
        ("meta.a: exact; meta.b: lpm;", "lpm"),
        ("meta.a: lpm; meta.b: ternary;", "ternary"),
        ("meta.a: optional;", "ternary"),
        ("meta.a: range; meta.b: ternary;", "range"),
    ],
)
def test_match_type(bench: Workbench, keys: str, kind: str) -> None:
    """The strongest key decides."""
    document = bench.json(
        local=f"table t {{ key = {{ {keys} }} actions = {{ NoAction; }} }}", apply="t.apply();"
    )
    assert table(document, "C.t")["match_type"] == kind


def test_no_default_action_means_no_action(bench: Workbench) -> None:
    """A table without default_action gets NoAction, as a default only."""
    document = bench.json(
        local=ACTIONS + "table t { key = { meta.a: exact; } actions = { drop; } }", apply="t.apply();"
    )
    made = table(document, "C.t")
    assert made["actions"] == ["C.drop", "NoAction"]
    assert made["default_entry"]["action_id"] == made["action_ids"][1]


def test_entries(bench: Workbench) -> None:
    """Rows that the program declares, of every match kind."""
    document = bench.json(
        local=ACTIONS
        + "table t { key = { hdr.ipv4.dst: lpm; hdr.ipv4.ttl: ternary; meta.wide: range; meta.a: optional;"
        " meta.flag: exact; } actions = { fwd; drop; } const entries = {"
        " (0x0a000000 &&& 0xff000000, 5, 1..10, _, true): fwd(1);"
        " (_, 5 &&& 7, _, 8w3, false): drop(); } }",
        apply="t.apply();",
    )
    first, second = table(document, "C.t")["entries"]
    assert first["match_key"] == [
        {"match_type": "lpm", "key": "0x0a000000", "prefix_length": 8},
        {"match_type": "ternary", "key": "0x05", "mask": "0xff"},
        {"match_type": "range", "start": "0x0001", "end": "0x000a"},
        {"match_type": "ternary", "key": "0x00", "mask": "0x00"},
        {"match_type": "exact", "key": "0x01"},
    ]
    assert first["action_entry"]["action_data"] == ["0x1"]
    assert second["match_key"][:3] == [
        {"match_type": "lpm", "key": "0x00000000", "prefix_length": 0},
        {"match_type": "ternary", "key": "0x05", "mask": "0x07"},
        {"match_type": "range", "start": "0x0000", "end": "0xffff"},
    ]
    assert (first["priority"], second["priority"]) == (1, 2)
    assert table(document, "C.t")["max_size"] == 2


@pytest.mark.parametrize("condition", ["t.apply().hit", "!t.apply().miss"])
def test_hit_and_miss(bench: Workbench, condition: str) -> None:
    """if (t.apply().hit) has two ways out of the table."""
    document = bench.json(
        local="table t { key = { meta.a: exact; } actions = { NoAction; } }",
        apply=f"if ({condition}) {{\n meta.a = 1;\n}} else {{\n meta.b = 2;\n}}",
    )
    made = table(document, "C.t")
    assert made["base_default_next"] is None
    hit = table(document, made["next_tables"]["__HIT__"])
    written = document["actions"][hit["action_ids"][0]]["primitives"][0]["parameters"][0]["value"]
    assert written == ["scalars", "userMetadata.a"]


def test_hit_in_an_expression_keeps_short_circuit(bench: Workbench) -> None:
    """The table is applied only if what stands before && holds."""
    document = bench.json(
        local="table t { key = { meta.a: exact; } actions = { NoAction; } }",
        apply="if (meta.b == 1 && t.apply().hit) { meta.a = 1; }",
    )
    conditionals = document["pipelines"][0]["conditionals"]
    assert conditionals[0]["true_next"] == "C.t"
    assert conditionals[0]["false_next"] == conditionals[1]["name"]


def test_switch_on_action_run(bench: Workbench) -> None:
    """switch (t.apply().action_run) goes by action; labels without a block fall through."""
    document = bench.json(
        local=ACTIONS
        + "action nop() { } table t { key = { meta.a: exact; } actions = { fwd; drop; nop; NoAction; } }",
        apply="switch (t.apply().action_run) { fwd: {\n meta.a = 1; } drop: nop: {\n meta.a = 2; } default:"
        " {\n meta.a = 3; } }"
        "\nmeta.b = 1;",
    )
    ways = table(document, "C.t")["next_tables"]
    assert ways["C.drop"] == ways["C.nop"]
    assert len({ways["C.fwd"], ways["C.drop"], ways["NoAction"]}) == 3


def test_complex_keys_are_computed_before(bench: Workbench) -> None:
    """A key that is no field is put into a variable right before the table."""
    document = bench.json(
        local='table t { key = { meta.wide[3:0]: exact; meta.a + 1: exact @name("sum"); } actions = { NoAction; } }',
        apply="t.apply();",
    )
    assert [k["name"] for k in table(document, "C.t")["key"]] == ["meta.wide[3:0]", "sum"]
    assert document["pipelines"][0]["init_table"].startswith("tbl_prog")


def test_action_profiles_and_selectors(bench: Workbench) -> None:
    """Tables whose actions live in a profile."""
    document = bench.json(
        local="action_selector(HashAlgorithm.crc16, 32w16, 32w14) sel; action_profile(32w4) ap;"
        "table s { key = { meta.a: exact; hdr.ipv4.src: selector; } actions = { NoAction; } implementation = sel; }"
        "table p { key = { meta.a: exact; } actions = { NoAction; } implementation = ap; support_timeout = true; }",
        apply="s.apply(); p.apply();",
    )
    assert (table(document, "C.s")["type"], table(document, "C.p")["type"]) == ("indirect_ws", "indirect")
    assert len(table(document, "C.s")["key"]) == 1
    profiles = document["pipelines"][0]["action_profiles"]
    assert profiles[0]["selector"] == {
        "algo": "crc16",
        "input": [{"type": "field", "value": ["ipv4", "src"]}],
    }
    assert profiles[1]["max_size"] == 4
    assert table(document, "C.p")["support_timeout"] is True


def test_directed_action_parameters_in_a_list(bench: Workbench) -> None:
    """actions = { a(meta.b); } binds what has a direction; the rest is data."""
    document = bench.json(
        local="action a(in bit<8> x, bit<9> p) { meta.a = x; std.egress_spec = p; }"
        "table t { key = { meta.wide: exact; } actions = { a(meta.b); } default_action = a(meta.b, 4); }",
        apply="t.apply();",
    )
    made = next(a for a in document["actions"] if a["name"] == "C.a")
    assert made["runtime_data"] == [{"name": "p", "bitwidth": 9}]
    assert table(document, "C.t")["default_entry"]["action_data"] == ["0x4"]


# ---- externs


def test_counters_meters_registers(bench: Workbench) -> None:
    """Arrays and the primitives that use them."""
    document = bench.json(
        local="counter(8, CounterType.packets) c; direct_counter(CounterType.bytes) dc; meter(4, MeterType.bytes) m;"
        "direct_meter<bit<8>>(MeterType.packets) dm; register<bit<16>>(32) r;"
        "action a() { dm.read(meta.a); dc.count(); }"
        "table t { key = { meta.b: exact; } actions = { a; } counters = dc; meters = dm; }",
        apply="c.count(meta.big); m.execute_meter(meta.big, meta.a); r.read(meta.wide, 3); r.write(3,"
        " meta.wide); t.apply();",
    )
    assert [
        (c["name"], c["is_direct"], c.get("binding"), c.get("size")) for c in document["counter_arrays"]
    ] == [
        ("C.c", False, None, 8),
        ("C.dc", True, "C.t", None),
    ]
    plain, direct = document["meter_arrays"]
    assert (plain["name"], plain["type"], plain["size"], plain["rate_count"]) == ("C.m", "bytes", 4, 2)
    assert (direct["binding"], direct["result_target"]) == ("C.t", ["scalars", "userMetadata.a"])
    assert (document["register_arrays"][0]["bitwidth"], document["register_arrays"][0]["size"]) == (16, 32)
    assert [s["op"] for s in hidden_steps(document)] == [
        "count",
        "execute_meter",
        "register_read",
        "register_write",
    ]
    assert table(document, "C.t")["with_counters"] and table(document, "C.t")["direct_meters"] == "C.dm"


def test_hash(bench: Workbench) -> None:
    """hash is a calculation over fields and numbers."""
    document = bench.json(
        apply="hash(meta.wide, HashAlgorithm.crc32, 16w2, { hdr.ipv4.src, 8w1, meta.a + 1 }, 16w100);"
    )
    steps = hidden_steps(document)
    assert steps[-1]["parameters"] == [
        {"type": "field", "value": ["scalars", "userMetadata.wide"]},
        {"type": "hexstr", "value": "0x0002"},
        {"type": "calculation", "value": "calc"},
        {"type": "hexstr", "value": "0x0064"},
    ]
    assert document["calculations"][0]["algo"] == "crc32"
    assert document["calculations"][0]["input"] == [
        {"type": "field", "value": ["ipv4", "src"]},
        {"type": "hexstr", "value": "0x01", "bitwidth": 8},
        {"type": "field", "value": ["scalars", "tmp_0"]},
    ]


def test_digest_keeps_its_values(bench: Workbench) -> None:
    """BMv2 reads a digest's fields when ingress is over, so they are kept; one list serves all calls."""
    document = bench.json(
        top="struct note_t { bit<32> addr; bit<8> why; }",
        apply="digest<note_t>(1, { hdr.ipv4.src, 1 }); hdr.ipv4.src = 0; digest<note_t>(1, { hdr.ipv4.dst, 2 });",
    )
    (learn,) = document["learn_lists"]
    assert (learn["id"], learn["name"]) == (1, "note_t")
    assert [e["value"] for e in learn["elements"]] == [
        ["scalars", "note_t.addr_0"],
        ["scalars", "note_t.why_0"],
    ]
    assert [s["op"] for s in hidden_steps(document)] == [
        "assign", "assign", "generate_digest", "assign", "assign", "assign", "generate_digest",
    ]  # fmt: skip


def test_copies_of_packets(bench: Workbench) -> None:
    """clone, resubmit and recirculate with their field lists, which count from 1."""
    document = bench.json(
        metadata=METADATA + " @field_list(1, 2) bit<8> keep;",
        apply="clone(CloneType.I2E, 5); clone_preserving_field_list(CloneType.I2E, 5, 2);"
        " resubmit_preserving_field_list(1);"
        "truncate(64);",
        egress="apply { recirculate_preserving_field_list(1); }",
    )
    lists = {fl["name"]: fl["id"] for fl in document["field_lists"]}
    steps = [(s["op"], s["parameters"][-1]["value"]) for s in hidden_steps(document)]
    assert steps == [
        ("clone_ingress_pkt_to_egress", hex(lists["fl"])),
        ("clone_ingress_pkt_to_egress", hex(lists["field_list2"])),
        ("resubmit", hex(lists["field_list1"])),
        ("truncate", "0x00000040"),
        ("recirculate", hex(lists["field_list1"])),
    ]


def test_random_log_assert(bench: Workbench) -> None:
    """The remaining extern functions."""
    document = bench.json(
        apply='random(meta.a, 8w0, 8w10); log_msg("a {} {}", { meta.a, meta.flag }); assert(meta.a == 2);'
        " assume(true);"
        'log_msg("b"); static_assert(8w1 == 1, "never");',
        local="action unused() { }",
    )
    assert [s["op"] for s in hidden_steps(document)] == [
        "modify_field_rng_uniform", "log_msg", "assert", "assume", "log_msg",
    ]  # fmt: skip


# ---- checksums, deparser


def test_checksums(bench: Workbench) -> None:
    """update and verify, with and without payload."""
    document = bench.json(
        verify="verify_checksum(true, { hdr.ipv4.src, 16w5 }, hdr.ipv4.checksum, HashAlgorithm.csum16);",
        compute="update_checksum_with_payload(hdr.ipv4.isValid(), { hdr.ipv4.src }, hdr.ipv4.checksum,"
        " HashAlgorithm.csum16);",
    )
    update, verify = document["checksums"]
    assert (update["update"], update["verify"], update["type"]) == (True, False, "generic")
    assert update["target"] == ["ipv4", "checksum"]
    assert update["if_cond"]["value"]["op"] == "d2b"
    assert verify["if_cond"] == {"type": "bool", "value": True}
    calculations = {c["name"]: c for c in document["calculations"]}
    assert calculations[update["calculation"]]["input"][-1] == {"type": "payload", "value": None}
    assert calculations[verify["calculation"]]["input"][-1] == {
        "type": "hexstr",
        "value": "0x0005",
        "bitwidth": 16,
    }


def test_shape_of_the_document(bench: Workbench) -> None:
    """The sections that BMv2 looks for are there."""
    document = bench.json()
    assert document["__meta__"]["version"] == [2, 23]
    assert document["field_aliases"][0] == [
        "queueing_metadata.enq_timestamp",
        ["standard_metadata", "enq_timestamp"],
    ]
    assert document["errors"][0] == ["NoError", 0]
    assert [p["name"] for p in document["pipelines"]] == ["ingress", "egress"]
    assert document["headers"][:2] == [
        {"name": "scalars", "id": 0, "header_type": "scalars_0", "metadata": True, "pi_omit": True},
        {
            "name": "standard_metadata",
            "id": 1,
            "header_type": "standard_metadata",
            "metadata": True,
            "pi_omit": True,
        },
    ]
    for kind in document["header_types"]:
        assert sum(f[1] for f in kind["fields"]) % 8 == 0
    assert primitives(document, "NoAction") == [] if document["actions"] else True
