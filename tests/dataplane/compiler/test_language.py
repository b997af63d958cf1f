"""Statements and expressions: what they become in BMv2 JSON."""

from __future__ import annotations

from typing import Any

import pytest

from .skeleton import FIELDS, METADATA, Workbench, hidden_steps, primitives, table

Json = dict[str, Any]


def field(*name: str) -> Json:
    """Return a field as JSON."""
    return {"type": "field", "value": list(name)}


def meta(name: str) -> Json:
    """Return a field of the user's metadata as JSON."""
    return field("scalars", f"userMetadata.{name}")


def number(text: str) -> Json:
    """Return a constant as JSON."""
    return {"type": "hexstr", "value": text}


def op(operator: str, left: Json | None, right: Json) -> Json:
    """Return an operation as JSON."""
    return {"type": "expression", "value": {"op": operator, "left": left, "right": right}}


def wrap(value: Json) -> Json:
    """Return an operation as a primitive's parameter."""
    return {"type": "expression", "value": value}


A, B, WIDE, BIG = meta("a"), meta("b"), meta("wide"), meta("big")
FLAG = op("d2b", None, meta("flag"))
MASK8, MASK16 = number("0xff"), number("0xffff")


@pytest.mark.parametrize(
    ("statement", "target", "value"),
    [
        ("meta.a = 3;", A, number("0x03")),
        ("hdr.ipv4.ttl = hdr.ipv4.ttl - 1;", field("ipv4", "ttl"),
         wrap(op("&", op("+", field("ipv4", "ttl"), number("0xff")), MASK8))),
        ("meta.a = meta.a + meta.b;", A, wrap(op("&", op("+", A, B), MASK8))),
        ("meta.a = meta.a - meta.b;", A, wrap(op("&", op("-", A, B), MASK8))),
        ("meta.a = meta.a * meta.b;", A, wrap(op("&", op("*", A, B), MASK8))),
        ("meta.a = meta.a | 1;", A, wrap(op("|", A, number("0x01")))),
        ("meta.a |= 1;", A, wrap(op("|", A, number("0x01")))),
        ("meta.a = ~meta.b;", A, wrap(op("&", op("~", None, B), MASK8))),
        ("meta.a = -meta.b;", A, wrap(op("&", op("-", number("0x00"), B), MASK8))),
        ("meta.wide = (bit<16>)meta.a;", WIDE, wrap(op("&", A, MASK16))),
        ("meta.a = (bit<8>)meta.wide;", A, wrap(op("&", WIDE, MASK8))),
        ("meta.a = meta.wide[11:4];", A, wrap(op("&", op(">>", WIDE, number("0x4")), MASK8))),
        ("meta.a = meta.wide[7:0];", A, wrap(op("&", WIDE, MASK8))),
        ("meta.wide = meta.a ++ meta.b;", WIDE,
         wrap(op("|", op("&", op("<<", op("&", A, MASK16), number("0x8")), MASK16),
                 op("&", op("&", B, MASK16), number("0x00ff"))))),
        ("meta.a = meta.a |+| meta.b;", A, wrap(op("usat_cast", op("+", A, B), number("0x8")))),
        ("meta.a = meta.a << 2;", A, wrap(op("&", op("<<", A, number("0x2")), MASK8))),
        ("meta.s = meta.s + 1;", meta("s"),
         wrap(op("two_comp_mod", op("+", meta("s"), number("0x01")), number("0x8")))),
        ("meta.flag = meta.a == meta.b;", meta("flag"), wrap(op("b2d", None, op("==", A, B)))),
        ("meta.flag = !meta.flag;", meta("flag"), wrap(op("b2d", None, op("not", None, FLAG)))),
        ("meta.flag = hdr.ipv4.isValid();", meta("flag"),
         wrap(op("b2d", None, op("d2b", None, field("ipv4", "$valid$"))))),
        ("meta.a = meta.flag ? meta.b : 8w2;", A,
         wrap({"type": "expression", "value": {"op": "?", "left": B, "right": number("0x02"), "cond": FLAG}})),
        ("meta.wide[7:4] = 4w5;", WIDE,
         wrap(op("|", op("&", WIDE, number("0xff0f")),
                 op("&", op("<<", number("0x0005"), number("0x4")), number("0x00f0"))))),
        ("hdr.ipv4.src = hdr.ipv4.dst;", field("ipv4", "src"), field("ipv4", "dst")),
    ],
)  # fmt: skip
def test_assignments(bench: Workbench, statement: str, target: Json, value: Json) -> None:
    """Arithmetic is clamped to the width, because BMv2 computes without bounds."""
    assert hidden_steps(bench.json(apply=statement)) == [{"op": "assign", "parameters": [target, value]}]


def test_local_variables_and_structs(bench: Workbench) -> None:
    """Variables become scalars; structs dissolve into their fields."""
    document = bench.json(
        top="struct pair_t { bit<8> x; bit<16> y; }",
        metadata="pair_t p; bit<8> z;",
        apply="pair_t v = { 1, 2 }; meta.p = v; meta.p = { y = 7, x = 5 };",
    )
    names = [name for name, *_ in document["header_types"][0]["fields"]]
    assert names[:5] == ["userMetadata._p_x0", "userMetadata._p_y1", "userMetadata._z2", "v.x_0", "v.y_0"]
    targets = [(p["parameters"][0]["value"][1], p["parameters"][1]["value"]) for p in hidden_steps(document)]
    assert targets == [
        ("v.x_0", "0x01"),
        ("v.y_0", "0x0002"),
        ("userMetadata._p_x0", ["scalars", "v.x_0"]),
        ("userMetadata._p_y1", ["scalars", "v.y_0"]),
        ("userMetadata._p_x0", "0x05"),
        ("userMetadata._p_y1", "0x0007"),
    ]


def test_swapping_through_a_list(bench: Workbench) -> None:
    """{ a, b } is read before anything is written."""
    document = bench.json(
        top="struct pair_t { bit<8> x; bit<8> y; }",
        metadata="pair_t p;",
        apply="meta.p = { meta.p.y, meta.p.x };",
    )
    moves = [(p["parameters"][1]["value"][1], p["parameters"][0]["value"][1]) for p in hidden_steps(document)]
    assert moves == [
        ("userMetadata._p_y1", "tmp_0"),
        ("userMetadata._p_x0", "tmp_1"),
        ("tmp_0", "userMetadata._p_x0"),
        ("tmp_1", "userMetadata._p_y1"),
    ]


def test_headers(bench: Workbench) -> None:
    """Headers are copied, made valid and invalid, and filled from lists."""
    document = bench.json(
        apply="ethernet_t e = hdr.ethernet; hdr.ethernet = e; hdr.ipv4.setValid(); hdr.ipv4.setInvalid();"
        "hdr.ethernet = { 1, 2, 3 };"
    )
    steps = hidden_steps(document)
    assert [s["op"] for s in steps] == [
        "assign_header", "assign_header", "add_header", "remove_header", "add_header", "assign", "assign", "assign",
    ]  # fmt: skip
    assert steps[1]["parameters"] == [
        {"type": "header", "value": "ethernet"},
        {"type": "header", "value": "e_0"},
    ]


def test_enums_errors_and_new_types(bench: Workbench) -> None:
    """Enums are numbers, those with values their values; errors have BMv2's numbers."""
    document = bench.json(
        top="enum bit<8> Proto { TCP = 6, UDP = 17 } enum Color { red, green } error { Mine } type bit<9> Port_t;",
        metadata=METADATA + " Color c; Port_t port; Proto pr; error e;",
        apply="meta.c = Color.green; meta.pr = Proto.UDP; meta.a = Proto.TCP; meta.port = (Port_t)std.ingress_port;"
        "meta.e = error.Mine; if (std.parser_error != error.NoError) { meta.a = 1; }",
    )
    values = [p["parameters"][1]["value"] for p in hidden_steps(document)]
    assert values[:5] == ["0x00000001", "0x11", "0x06", ["standard_metadata", "ingress_port"], "0x7"]
    assert ["Mine", 7] in document["errors"]
    assert {"name": "Color", "entries": [["red", 0], ["green", 1]]} in document["enums"]


def test_conditions_and_the_flow(bench: Workbench) -> None:
    """Conditionals are nodes; statements between them are put into hidden tables."""
    document = bench.json(apply="if (meta.a == 1) {\n meta.a = 2;\n} else {\n meta.a = 3;\n}\nmeta.b = 4;")
    pipeline = document["pipelines"][0]
    assert pipeline["init_table"] == "node_2"
    node = pipeline["conditionals"][0]
    assert node["expression"] == op("==", A, number("0x01"))
    assert node["source_info"]["source_fragment"] == "meta.a == 1"
    yes, no = node["true_next"], node["false_next"]
    assert table(document, yes)["base_default_next"] == table(document, no)["base_default_next"]
    last = table(document, table(document, yes)["base_default_next"])
    assert last["base_default_next"] is None
    assert last["default_entry"]["action_const"] is True


def test_return_and_exit_leave_the_pipeline(bench: Workbench) -> None:
    """return in apply ends the pipeline; what follows it is no table."""
    document = bench.json(apply="if (meta.a == 1) { meta.b = 1; return; } meta.b = 2; exit; meta.b = 3;")
    assert len(hidden_steps(document)) == 3
    first = document["pipelines"][0]["conditionals"][0]["true_next"]
    assert table(document, first)["base_default_next"] is None
    assert hidden_steps(document)[2]["op"] == "exit"


def test_both_sides_return(bench: Workbench) -> None:
    """What nothing reaches is left out."""
    document = bench.json(apply="if (meta.a == 1) { return; } else { return; } meta.b = 2;")
    assert hidden_steps(document) == []


def test_functions(bench: Workbench) -> None:
    """Functions are inlined, with their returns, in controls, actions and parsers."""
    document = bench.json(
        top="bit<8> most(in bit<8> a, in bit<8> b) { if (a > b) { return a; } return b; }",
        local="action act(bit<8> v) { meta.a = most(v, meta.b); } table t { actions = { act; } }",
        apply="t.apply(); meta.b = most(3, meta.a);",
        parser="state start { meta.a = most(meta.b, 3); transition accept; }",
    )
    assert [p["op"] for p in primitives(document, "C.act")].count("assign") >= 5
    assert len(document["parsers"][0]["parse_states"]) > 1
    assert len(document["pipelines"][0]["conditionals"]) == 1


def test_constant_arguments_decide_at_compile_time(bench: Workbench) -> None:
    """A condition on constants leaves no trace."""
    document = bench.json(
        local="action a(bit<8> x) { if (x == 3) { mark_to_drop(std); } }", apply="a(3); a(4);"
    )
    assert [len(a["primitives"]) for a in document["actions"]] == [1, 0]


def test_conditions_in_actions(bench: Workbench) -> None:
    """BMv2's actions have no branches: assignments become conditional values."""
    document = bench.json(
        local="action a(bit<8> x) { if (x == 1) { meta.a = 2; return; } meta.b = 3; } table t { actions = { a; } }",
        apply="t.apply();",
    )
    steps = primitives(document, "C.a")
    assert [s["op"] for s in steps] == ["assign"] * len(steps)
    assert steps[-1]["parameters"][1]["value"]["value"]["op"] == "?"


def test_actions_called_with_arguments(bench: Workbench) -> None:
    """An action called in apply is a hidden table with that action."""
    document = bench.json(local="action a(in bit<8> x, out bit<8> y) { y = x + 1; }", apply="a(5, meta.b);")
    assert document["pipelines"][0]["tables"][0]["name"] == "tbl_a"
    assert primitives(document, "C.a") == [{"op": "assign", "parameters": [B, number("0x06")]}]


def test_controls_are_inlined(bench: Workbench) -> None:
    """A control's tables, counters and actions get the instance's name; its return ends only itself."""
    document = bench.json(
        top="control Sub(inout ethernet_t h, in bit<8> x)(bit<8> k) {"
        " counter(4, CounterType.bytes) c; action set(bit<8> z) { h.type = (bit<16>)(x + k + z); }"
        " table t { key = { h.dst: exact; } actions = { set; } }"
        " apply { if (x == 0) { return; } t.apply(); c.count(1); } }",
        local="Sub(3) one; Sub(4) two;",
        apply="one.apply(hdr.ethernet, meta.a); two.apply(hdr.ethernet, meta.b); meta.a = 9;",
    )
    names = [t["name"] for t in document["pipelines"][0]["tables"]]
    assert "C.one.t" in names and "C.two.t" in names
    assert [c["name"] for c in document["counter_arrays"]] == ["C.one.c", "C.two.c"]
    # A return in `one` goes on with `two`, not to the end.
    assert document["pipelines"][0]["conditionals"][0]["true_next"] is not None
    assert table(document, "C.one.t")["key"][0]["target"] == ["ethernet", "dst"]


def test_stacks(bench: Workbench) -> None:
    """Header stacks: elements, push, pop, indexes known when it runs."""
    document = bench.json(
        top="header seg_t { bit<1> last; bit<15> port; }",
        fields=FIELDS + " seg_t[3] segs;",
        apply="hdr.segs.pop_front(1); hdr.segs[1].port = 3; hdr.segs[meta.big].port = 5;"
        "meta.big = hdr.segs.lastIndex; if (hdr.segs[0].isValid()) { meta.a = 1; }",
        deparser="packet.emit(hdr);",
    )
    assert document["header_stacks"] == [
        {"name": "segs", "id": 0, "header_type": "seg_t", "size": 3, "header_ids": [4, 5, 6]}
    ]
    steps = hidden_steps(document)
    assert steps[0] == {"op": "pop", "parameters": [{"type": "header_stack", "value": "segs"}, number("0x1")]}
    assert steps[1]["parameters"][0] == field("segs[1]", "port")
    element = op("dereference_header_stack", {"type": "header_stack", "value": "segs"}, BIG)
    access = {"type": "expression", "value": {"op": "access_field", "left": element, "right": 1}}
    assert steps[2]["parameters"][0] == wrap(access)
    assert document["deparsers"][0]["order"] == ["ethernet", "ipv4", "segs[0]", "segs[1]", "segs[2]"]


def test_unions(bench: Workbench) -> None:
    """Header unions have an instance for each member."""
    document = bench.json(
        top="header h1 { bit<8> x; } header h2 { bit<16> y; } header_union u_t { h1 a; h2 b; }",
        fields=FIELDS + " u_t u; u_t[2] us;",
        apply="hdr.u.b.setValid(); hdr.us[1].a.x = 3; if (hdr.u.isValid()) { meta.a = 1; }",
        deparser="packet.emit(hdr.u); packet.emit(hdr.us);",
    )
    assert document["header_union_types"][0]["headers"] == [["a", "h1"], ["b", "h2"]]
    assert [u["name"] for u in document["header_unions"]] == ["u", "us[0]", "us[1]"]
    assert document["header_union_stacks"][0]["header_union_ids"] == [1, 2]
    assert document["deparsers"][0]["order"] == ["u.a", "u.b", "us[0].a", "us[0].b", "us[1].a", "us[1].b"]
    assert hidden_steps(document)[0]["parameters"] == [{"type": "header", "value": "u.b"}]


def test_switch_on_a_value(bench: Workbench) -> None:
    """A switch over a value becomes conditions."""
    document = bench.json(
        apply="switch (meta.a) { 1: { meta.b = 1; } 2: 3: { meta.b = 2; } default: { meta.b = 3; } }"
    )
    expressions = [c["expression"] for c in document["pipelines"][0]["conditionals"]]
    assert expressions == [
        op("==", A, number("0x01")),
        op("or", op("==", A, number("0x02")), op("==", A, number("0x03"))),
    ]


def test_source_info(bench: Workbench) -> None:
    """Positions are p4c's: columns from 0, the first line of what is longer."""
    document = bench.json(
        local="table t {\n actions = { NoAction; }\n}", apply="  meta.a =\n 1;\n t.apply();"
    )
    info = document["actions"][1]["primitives"][0]["source_info"]
    assert info["column"] == 2
    assert info["source_fragment"] == "meta.a = ..."
    assert table(document, "C.t")["source_info"]["source_fragment"] == "t"
