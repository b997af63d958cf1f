"""Messages: one clear sentence, at the right place, with a caret."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.compiler import CompileError, compile_program

from .skeleton import Workbench, source
from .test_p4info import LOCAL


def messages(bench: Workbench, **parts: str) -> list[str]:
    """Return the errors of a program without their positions."""
    with pytest.raises(CompileError) as caught:
        bench.compile(**parts)
    return [line.partition(": error: ")[2] for line in str(caught.value).splitlines() if ": error: " in line]


def test_position_line_and_caret(bench: Workbench) -> None:
    """A message has file, line, column, the line and a caret below the culprit."""
    text = source(apply="\tmeta.a = meta.wide + 1;")
    line = text[: text.index("meta.wide")].count("\n") + 1
    with pytest.raises(CompileError) as caught:
        bench.compile_text(text)
    path = bench.folder / "prog.p4"
    assert str(caught.value) == (
        f"{path}:{line}:11: error: the value has type bit<16>, but bit<8> is needed; "
        "write a cast, (bit<8>)…, if that is meant\n"
        "\tmeta.a = meta.wide + 1;\n"
        "\t         ^^^^^^^^^^^^^"
    )


def test_position_in_an_included_file(bench: Workbench) -> None:
    """Positions survive #include."""
    (bench.folder / "inc.p4").write_text("\n  const bit<8> X = y;\n")
    with pytest.raises(CompileError) as caught:
        bench.compile(top='#include "inc.p4"')
    assert f"{bench.folder / 'inc.p4'}:2:20: error: 'y' is not declared" in str(caught.value)


def test_position_of_a_macro_is_its_use(bench: Workbench) -> None:
    """What a macro brings in is wrong where the macro is used."""
    text = source(top="#define BAD nope + 1", apply="meta.a = BAD;")
    with pytest.raises(CompileError) as caught:
        bench.compile_text(text)
    assert ":10: error: 'nope' is not declared\nmeta.a = BAD;\n         ^^^" in str(caught.value)


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        ("meta.nope = 1;", "meta_t has no member 'nope'"),
        ("foo = 2;", "'foo' is not declared"),
        ("hdr.ipv4.ttl = hdr.ipv5.ttl;", "headers_t has no member 'ipv5'"),
        ("metta.a = 1;", "'metta' is not declared (did you mean 'meta'?)"),
        ("if (meta.a) { }", "the condition has type bit<8>, but bool is needed"),
        ("meta.a = meta.a + meta.wide;", "the operands of '+' have types bit<8> and bit<16>; cast one of them"),
        ("meta.flag = 3;", "the value has type int, but bool is needed"),
        ("meta.a = true;", "the value has type bool, but bit<8> is needed"),
        ("meta.a = meta.s;", "the value has type int<8>, but bit<8> is needed; write a cast, (bit<8>)…, if"
         " that is meant"),
        ("meta.a = (bit<8>)meta.flag;", "bool cannot be cast to bit<8>"),
        ("meta.a = 1 ++ meta.b;", "'++' cannot be applied to int (give the number a width, as in 8w1)"),
        ("meta.a = meta.wide[16:9];", "bit 16 is outside of bit<16>"),
        ("meta.a = meta.wide[3:9];", "[3:9] is not a slice: the higher bit comes first"),
        ("bit<8> x; bit<8> x;", "'x' is declared twice; the first time at "),
        ("meta.a = 8w1 << -1;", "shift by a negative amount"),
        ("mark_to_drop();", "'mark_to_drop' takes 1 argument(s), 0 given"),
        ("mark_to_drop(hdr.ipv4);", "argument 'standard_metadata' of 'mark_to_drop' has type ipv4_t, but"
         " standard_metadata_t is needed"),
        ("std.egress_spec = 9w512 + 1 + meta.a;", "the operands of '+' have types bit<9> and bit<8>; cast one"
         " of them"),
        ("hdr.ipv4.foo();", "ipv4_t has no member 'foo'"),
        ("5 = meta.a;", "the left side of '=' must be something that can be written to"),
        ("hdr.ethernet = {1, 2};", "the value has 2 element(s), but ethernet_t needs 3"),
        ("hdr.ethernet = {dst = 1, src = 2};", "ethernet_t: field 'type' is missing"),
        ("hdr.ethernet = {dst = 1, src = 2, kind = 3};", "ethernet_t has no field 'kind'"),
        ("return 3;", "'return' cannot have a value here"),
        ("meta.a = meta.a / 2;", "'/' on values that are only known when the packet comes (BMv2 has no"
         " division) is not supported"),
        ("for (bit<8> i = 0; i < 3; i = i + 1) { }", "'for' (loops) is not supported"),
        ("hash(meta.a, HashAlgorithm.crc16, 0, {meta.b}, 10);", "argument 'base' of 'hash' needs a width;"
         " write it as in 16w0"),
        ("hash(meta.a, HashAlgorithm.crc17, 8w0, {meta.b}, 8w1);", "the type HashAlgorithm has no member 'crc17'"),
        ("recirculate_preserving_field_list(0);", "'recirculate_preserving_field_list' can only be called in egress"),
        ("clone(CloneType.E2E, 3);", "CloneType.E2E can only be used in egress"),
        ("verify(true, error.NoError);", "'verify' can only be called in a parser"),
        ("meta.a = ;", "expected an expression, found ';'"),
        ("meta.a = 1 meta.b = 2;", "expected ';' after the assignment, found 'meta'"),
        ("meta.a;", "expected '=' or a call, found ';'"),
        ("t.apply();", "'t' is not declared"),
        ("unknown_t x;", "unknown type 'unknown_t'"),
        ("int x;", "a variable cannot have type int"),
        ("bit<0x100000> x;", "a width of 1048576 bits is too large"),
        ("ipv4_t[meta.a] x;", "the size of a header stack must be a number that is known at compile time"),
        ("log_msg(\"x\", meta.a, 3);", "'log_msg' takes 1 or 2 argument(s), 3 given"),
    ],
)  # fmt: skip
def test_statements(bench: Workbench, apply: str, message: str) -> None:
    """Mistakes in statements."""
    assert messages(bench, apply=apply)[0].startswith(message)


@pytest.mark.parametrize(
    ("local", "message"),
    [
        ("action a() { } action a() { }", "'a' is declared twice"),
        ("bit<8> z; table x { actions = { z; } }", "'z' is not an action"),
        ("table x { key = { meta.a: exact; } }", "table 'x' has no 'actions'"),
        ("table x { actions = { NoAction; NoAction; } }", "table 'x' lists action 'NoAction' twice"),
        ("table x { actions = { NoAction; } size = 1; size = 2; }", "table 'x' has 'size' twice"),
        ("table x { actions = { NoAction; } size = meta.a; }", "the size of a table must be a number"),
        ("table x { key = { meta.a: exat; } actions = { NoAction; } }", "there is no match kind 'exat'"),
        ("table x { key = { hdr.ipv4: exact; } actions = { NoAction; } }", "ipv4_t cannot be a table key"),
        ("table x { key = { 5: exact; } actions = { NoAction; } }", "int cannot be a table key (give it a width)"),
        ("table x { key = { meta.a + 1: exact; } actions = { NoAction; }"
         " }", "this key has no simple name; give it one"),
        ("action a() { } table x { actions = { NoAction; } default_action = a();"
         " }", "the default_action 'a' is not in"),
        ("action a(bit<8> v) { } table x { actions = { a; } default_action = a();"
         " }", "action 'a' takes 1 argument(s), 0"),
        ("action a(bit<8> v) { } table x { actions = { a; } default_action = a(meta.a); }",
         "argument 'v' of action 'a' must be known at compile time"),
        ("action a(in bit<8> v) { } table x { actions = { a; }"
         " }", "action 'a' needs an argument for 'v' in table 'x'"),
        ("action a(bit<8> v) { v = 1; }", "'v' is an action's parameter and cannot be written to"),
        ("action a(bit<8> v, in bit<8> w) { }", "parameter 'w' has a direction; those without one (action data)"),
        ("table x { key = { meta.a: exact; } actions = { NoAction; } const entries = { 1 &&& 2: NoAction(); } }",
         "'&&&' does not fit a key that is matched 'exact'"),
        ("table x { key = { meta.a: exact; } actions = { NoAction; } const entries = { (1, 2): NoAction(); } }",
         "2 key(s) given, but table 'x' has 1"),
        ("table x { key = { meta.a: exact; } actions = { NoAction; } const entries = { meta.b: NoAction(); } }",
         "a key must be known at compile time"),
        ("table x { key = { meta.a: exact; } actions = { @defaultonly NoAction; } const entries = { 1:"
         " NoAction(); } }",
         "action 'NoAction' is @defaultonly"),
        ("table x { key = { meta.a: lpm; } actions = { NoAction; } const entries = { 1 &&& 5: NoAction(); } }",
         "0x5 is not a prefix mask"),
        ("table x { key = { meta.a: exact; } actions = { NoAction; } entries = { 1: NoAction(); } }",
         "table 'x': 'entries' that can be changed are not supported"),
        ("counter(8) c;", "extern 'counter' takes 2 constructor argument(s), 1 given"),
        ("counter(meta.big, CounterType.bytes) c;", "argument 'size' of 'counter' must be known at compile time"),
        ("register<headers_t>(8) r;", "registers of headers_t are not supported"),
        ("register(8) r;", "'register' needs its type arguments <T>"),
        ("Checksum16() c;", "extern 'Checksum16' (use update_checksum and verify_checksum) is not supported"),
        ("action a() { exit; meta.a = b; }", "'b' is not declared"),
    ],
)  # fmt: skip
def test_declarations(bench: Workbench, local: str, message: str) -> None:
    """Mistakes in actions, tables and instances."""
    uses = "x.apply();" if "table x" in local else "a();" if local.startswith("action a()") else ""
    assert messages(bench, local=local, apply=uses)[0].startswith(message)


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ("const bit<8> X;", "expected '=' (a constant needs a value), found ';'"),
        ("const bit<8> X = Y;", "'Y' is not declared"),
        ("bit<8> x;", "variables are not allowed at top level"),
        ("struct s<T> { T x; }", "generic structs ('s<…>') are not supported"),
        ("header h { bit<8> x; bit<8> x; }", "'h' has field 'x' twice"),
        ("header h { varbit<8> x; varbit<8> y; }", "header 'h' has more than one varbit field"),
        ("header h { string x; }", "a header cannot have a field of type string"),
        ("header_union u { bit<8> x; }", "a header_union cannot have a field of type bit<8> (only headers)"),
        ("enum bit<8> e { A, B = 2 }", "'A' needs a value: enum 'e' has type bit<8>"),
        ("enum e { A, A }", "enum 'e' has 'A' twice"),
        ("error { NoError }", "error 'NoError' is declared twice"),
        ("type headers x;", "unknown type 'headers'"),
        ("bit<8> f(in bit<8> x) { return x + 16w1; }", "the operands of '+' have types bit<8> and bit<16>"),
        ("T f<T>(in T x) { return x; }", "generic functions ('f<…>') are not supported"),
        ("parser Q(packet_in p) { state begin { transition accept; } }", "parser 'Q' has no state 'start'"),
        ("parser Q(packet_in p) { state start { transition s; } }", "there is no state 's'"),
        ("parser Q(packet_in p) { state accept { } state start { } }", "state 'accept' is built in"),
        ("}", "expected a declaration, found '}'"),
    ],
)
def test_top_level(bench: Workbench, top: str, message: str) -> None:
    """Mistakes at top level."""
    assert messages(bench, top=top)[0].startswith(message)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"deparser": "hdr.ipv4.ttl = 1;"}, "'hdr' is an 'in' parameter and cannot be written to"),
        ({"deparser": "if (hdr.ipv4.isValid()) { packet.emit(hdr.ipv4);"
         " }"}, "conditions in a deparser are not supported"),
        ({"compute": "meta.a = 1;"}, "only update_checksum and update_checksum_with_payload are allowed here (BMv2)"),
        ({"compute": "update_checksum(true, {meta.a + 1}, hdr.ipv4.checksum, HashAlgorithm.csum16);"},
         "computing in the values of update_checksum is not supported"),
        ({"egress": "apply { digest(1, {meta.a}); }"}, "'digest' can only be called in ingress"),
        ({"fields": "ethernet_t ethernet; ipv4_t ipv4; odd_t odd;", "top": "header odd_t { bit<3> x; }"},
         "header 'odd_t' has 3 bits; BMv2 needs a multiple of 8"),
        ({"fields": "ethernet_t ethernet; ipv4_t ipv4; bit<8> x;"}, "the headers' struct can only have"
         " headers, stacks"),
        ({"local": "direct_counter(CounterType.bytes) dc;", "apply": "dc.count();"}, "'dc' belongs to no table"),
        ({"local": "table x { key = { meta.a: exact; } actions = { NoAction; } }",
          "apply": "if (meta.a == 1) { x.apply(); meta.a = 2; } else { x.apply(); meta.a = 3; }"},
         "table 'C.x' is applied in several places with different continuations"),
        ({"local": "action a(bit<8> x) { if (x == 3) { mark_to_drop(std); } } table t { actions = { a; } }",
          "apply": "t.apply();"},
         "only assignments can depend on a condition within an action"),
        ({"top": "bit<8> f(in bit<8> x) { return f(x); }", "apply": "meta.a = f(1);"}, "'f' is not declared"),
        ({"parser": "state start { packet.extract(hdr.ethernet, 8); transition accept; }"},
         "'extract' takes no length: header 'ethernet_t' has no varbit field"),
        ({"local": "action a() { t.apply(); }"}, "'t' is not declared"),
    ],
)  # fmt: skip
def test_blocks(bench: Workbench, parts: dict[str, str], message: str) -> None:
    """Mistakes that concern what a block may do."""
    found = messages(bench, **parts)[0]
    assert found.startswith(message) or "calls itself" in found


def test_several_errors_are_reported(bench: Workbench) -> None:
    """One mistake does not hide the next."""
    found = messages(bench, top="const bit<8> X = Y;", apply="foo = 1;\nmeta.a = true;\nmeta.b = ;")
    assert len(found) == 1  # a syntax error comes first, alone
    found = messages(bench, top="const bit<8> X = Y;", apply="foo = 1;\nmeta.a = true;\nmeta.b = X;")
    assert found == [
        "'Y' is not declared", "'foo' is not declared", "the value has type bool, but bit<8> is needed",
    ]  # fmt: skip


def test_wrong_block_in_the_package(bench: Workbench) -> None:
    """The package's arguments must have the architecture's shape."""
    text = source().replace("V1Switch(P(), V(), C()", "V1Switch(P(), V(), V()")
    with pytest.raises(CompileError, match="'V' has 2 parameter"):
        bench.compile_text(text)
    text = source().replace("control E(inout headers_t hdr", "control E(in headers_t hdr")
    with pytest.raises(CompileError, match="parameter 'hdr' of 'E' must be 'inout headers_t'"):
        bench.compile_text(text)


def test_program_without_main(bench: Workbench) -> None:
    """A program needs a package."""
    with pytest.raises(CompileError, match="the program has no 'main'"):
        bench.compile_text("#include <v1model.p4>\n")


def test_warnings(bench: Workbench) -> None:
    """What is allowed but suspicious is a warning with a caret."""
    compiled = bench.compile(apply="meta.a = 300;")
    assert "warning: 300 does not fit bit<8>; it becomes 44" in compiled.warnings
    assert compiled.warnings.splitlines()[2] == "         ^^^"


def test_missing_file(bench: Workbench) -> None:
    """A file that is not there is one sentence."""
    with pytest.raises(CompileError, match=r"cannot read '.*nothing\.p4': No such file or directory"):
        compile_program(bench.folder / "nothing.p4")


@pytest.mark.parametrize("cut", range(0, 2600, 97))
def test_cut_programs_never_crash(bench: Workbench, cut: int) -> None:
    """However a program ends, there is a message and no exception of another kind."""
    text = source(
        local="action a(bit<9> p) { std.egress_spec = p; } table t { key = { meta.a: exact; } actions = { a; } }"
    )
    try:
        bench.compile_text(text[: min(cut, len(text) - 3)])
    except CompileError as ex:
        assert ": error: " in str(ex)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mangled_programs_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A word taken out, doubled or replaced by another gives a program or a message, never another exception."""
    bench = Workbench(tmp_path_factory.mktemp("p4"))
    text = source(local=LOCAL, apply="hits.count(1); route.apply(); fixed.apply();")
    words = list(re.finditer(r"\w+|[^\w\s]", text))
    victim, other = data.draw(st.sampled_from(words)), data.draw(st.sampled_from(words))
    replacement = data.draw(st.sampled_from(["", other.group(), f"{victim.group()} {other.group()}"]))
    try:
        compiled = bench.compile_text(text[: victim.start()] + replacement + text[victim.end() :])
        assert compiled.p4info.pkg_info.arch == "v1model"
    except CompileError as ex:
        assert ": error: " in str(ex)
