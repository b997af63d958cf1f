"""What bounds.h promises, on the kernel at hand and with every clang at hand: each macro loads, and computes right.

The programs are as unkind as clang allows: it knows that the mask is not needed, it has tested the same value before,
it has more to remember than there are registers.
"""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.compiler import compile_program
from dataplane.switch.engine import check, libbpf
from dataplane.switch.engine.clang import FLAGS, INCLUDE, Compiler
from dataplane.switch.engine.libbpf import Object
from dataplane.switch.engine.names import global_identifier, identifier
from dataplane.switch.engine.source import Options, generate
from dataplane.switch.pipeline import PipelineRejected
from tests.dataplane.engine import build
from tests.dataplane.engine.build import Builder, assign, header_primitive
from tests.dataplane.engine.conftest import Lab, collect

ROOT = Path(__file__).parents[3]
CLANGS = [name for name in ("clang", *(f"clang-{n}" for n in range(14, 30))) if shutil.which(name)]
_TEST_RUN = 10


class _TestRun(ctypes.Structure):
    """What BPF_PROG_TEST_RUN takes, as far as it is needed."""

    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("data_in", ctypes.c_uint64),
        ("data_out", ctypes.c_uint64),
        ("repeat", ctypes.c_uint32),
        ("duration", ctypes.c_uint32),
    ]


def run(loaded: Object, *values: int) -> int:
    """Run a program on a frame with these numbers behind the Ethernet header; return its result."""
    frame = bytes(14) + struct.pack(f"={len(values)}Q", *values) + bytes(200)
    attr = _TestRun(prog_fd=loaded.program_fd, data_size_in=len(frame), repeat=1)
    attr.data_in = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p).value or 0
    libbpf._bpf(_TEST_RUN, attr)
    assert attr.retval == 0
    return int(struct.unpack("=Q", loaded.map("results").lookup(bytes(4), 8))[0])


TABLE = [(7 * n * n + 3) & 0xFFFF for n in range(256)]

PROGRAM = """
#include "p4ferry.h"

static const u16 table[256] = { %s };
struct three { u64 words[3]; };
struct room { struct three rows[100]; u8 bytes[100]; };
CELLS(results, u64, 1);
CELLS(rooms, struct room, 1);

/* test, bounds.p4:1:1 */
SEC("tc") int p4ferry(struct __sk_buff *skb)
{
	u64 *result = bpf_map_lookup_elem(&results, &(u32){ 0 });
	struct room *room = bpf_map_lookup_elem(&rooms, &(u32){ 0 });
	u64 in[2];

	if (!result || !room || bpf_skb_load_bytes(skb, 14, in, sizeof(in)))
		return 1;
	u64 x = in[0], y = in[1];
	*result = 0;
	%s
	return 0;
}

char LICENSE[] SEC("license") = "Apache-2.0";
""".replace("%s", ", ".join(map(str, TABLE)), 1)

MASKED = "u8 index = x ^ y; *result = table[masked(index, 0xff)] + table[masked(x ^ y >> 8, 0x7f)];"

BELOW = """
	if (x == 0)
		y = 5;
	if (below(&x, 100)) {
		room->rows[x].words[1] += y;
		*result = room->rows[x].words[1] + 1;
		room->rows[x].words[1] = 0;
	}
"""

SIZE = """
	u64 size = x;
	if (size > 100)
		return 0;
	if (!is_size(&size, 100))
		*result = 1000;
	else if (bpf_skb_load_bytes(skb, 0, room->bytes, size) == 0)
		*result = size;
"""

# More live values than registers, and helper calls between the test and the use.
SPILLED = """
	u64 size = x, index = y, sum = x ^ y, a = x * 3, b = y * 5, c = x + y, d = x - y, e = x / 7, f = y / 9;
	if (!is_size(&size, 100) || !below(&index, 100))
		return 0;
	hide(a); hide(b); hide(c); hide(d); hide(e); hide(f); hide(sum);
	for (int i = 0; i < 2; i++)
		if (bpf_map_lookup_elem(&rooms, &(u32){ 1 + i }))
			sum += bpf_get_prandom_u32();
	if (bpf_skb_load_bytes(skb, 0, room->bytes, size))
		return 0;
	room->rows[index].words[2] = a ^ b ^ c ^ d ^ e ^ f;
	*result = size + room->rows[index].words[2] + sum;
"""

CONTEXT = """
	skb->mark = 77;
	u32 number = (x & 1) ? context(skb, len) : context(skb, mark);
	if (y & 1)
		number += context(skb, gso_size);
	else
		number += context(skb, len);
	*result = number;
"""

ADD = "add_to(result, x); add_to(result, y); add_to(result, (u64)-1);"

# As in generated code, operands are in memory, and so are results.
SETTLE = (
    "u64 *a = &room->rows[98].words[0], *b = &room->rows[99].words[0]; *a = x; *b = y; settle();\n"
    + "".join(
        f"room->rows[{n}].words[0] = (*a >> {n} & 1) || *b == {n} ? *a : {n}; settle();\n" for n in range(40)
    )
    + "".join(f"*result += room->rows[{n}].words[0];\n" for n in range(40))
)

M64 = (1 << 64) - 1
LENGTH = 14 + 16 + 200


def spilled(x: int, y: int) -> int:
    if not (1 <= x <= 100 and y < 100):
        return 0
    mixed = x * 3 ^ y * 5 ^ x + y ^ (x - y) & M64 ^ x // 7 ^ y // 9
    return x + mixed + (x ^ y) & M64


def settled(x: int, y: int) -> int:
    return sum(x if x >> n & 1 or y == n else n for n in range(40)) & M64


CASES = {
    "masked": (MASKED, lambda x, y: TABLE[(x ^ y) & 0xFF] + TABLE[(x ^ y >> 8) & 0x7F]),
    "below": (BELOW, lambda x, y: ((y if x else 5) + 1 & M64) if x < 100 else 0),
    "is_size": (SIZE, lambda x, y: 0 if x > 100 else x or 1000),
    "spilled": (SPILLED, spilled),
    "context": (CONTEXT, lambda x, y: (LENGTH if x & 1 else 77) + (0 if y & 1 else LENGTH)),
    "add_to": (ADD, lambda x, y: (x + y - 1) & M64),
    "settle": (SETTLE, settled),
}
VALUES = (0, 1, 2, 3, 99, 100, 101, 255, 256, 0x1234, 1 << 31, 1 << 32, (1 << 32) + 5, 1 << 63, M64)


@pytest.fixture(params=CLANGS)
def compiler(request: pytest.FixtureRequest, cache: Path) -> Compiler:
    return Compiler(cache, request.param)


@pytest.mark.net
@pytest.mark.parametrize("name", CASES)
def test_macro_loads_and_computes(compiler: Compiler, name: str) -> None:
    body, model = CASES[name]
    text = PROGRAM.replace("%s", body)
    collect(text.encode(), ".c")
    loaded = Object(compiler.compile(text), statistics=True)
    try:
        for x in VALUES:
            for y in VALUES:
                assert run(loaded, x, y) == model(x, y), (name, x, y)
    finally:
        loaded.close()


@pytest.mark.net
@pytest.mark.parametrize("name", ["load_balancer", "forward"])
def test_project_programs_compile_without_warnings_and_load(compiler: Compiler, name: str) -> None:
    program = json.dumps(compile_program(ROOT / "p4src" / f"{name}.p4").bmv2_json).encode()
    strict = Compiler(compiler.cache, compiler.command, (*FLAGS, "-Werror"))
    Object(strict.compile(generate(program, Options()).text)).close()


def choices(number: int) -> bytes:
    """Return a program of one action that assigns that many values, each one of two or three."""
    b = Builder([(f"r{n}", 32) for n in range(number)])
    b.header("h", [("a", 32), ("b", 32), ("c", 16), ("d", 8)])
    b.state("start", "h")
    kinds = (
        lambda n: ("?", (">", "h.a", ("+", "h.b", n)), "h.a", n),
        lambda n: ("b2d", ("or", ("<=", "h.c", n), ("==", "h.d", n))),
        lambda n: ("usat_cast", ("-", "h.c", 30 * n), 8),
        lambda n: ("&", ("sat_cast", ("-", ("two_comp_mod", "h.d", 8), n), 8), 0xFF),
    )
    values = [assign(f"scalars.r{n}", kinds[n % len(kinds)](n)) for n in range(number)]
    sent = b.digest("results_t", [f"scalars.r{n}" for n in range(number)])
    b.start(b.call(b.action("choose", (), *values, sent, build.drop())))
    return b.json()


def decisions(number: int) -> bytes:
    """Return a program of that many conditionals, each of which may assign two values."""
    b = Builder([("r", 32), ("s", 32)])
    b.header("h", [("a", 32), ("b", 32)])
    b.state("start", "h")
    following = b.call(b.action("out", (), assign(build.EGRESS_SPEC, 2)))
    for n in range(number):
        act = b.action(
            f"act{n}", (), assign("scalars.r", n), assign("h.b", n + 1000), assign("scalars.s", "h.b")
        )
        following = b.condition(("<", "h.a", n * 77), b.call(act, following), following)
    b.start(following)
    return b.json()


def headers(number: int) -> bytes:
    """Return a program that may add or remove each of that many headers, and hashes over them all."""
    b = Builder([("r", 32)])
    b.header("h", [("a", 64), ("b", 32)])
    for n in range(number):
        b.header(f"o{n}", [("x", 16), ("y", 8)])
    b.state("start", "h", select=["h.a"], cases=[("0x01", "more")])
    b.state("more", *(f"o{n}" for n in range(0, number, 2)))
    hashed = b.hash("scalars.r", "crc32", [f"o{n}.x" for n in range(min(number, 6))], 0, 1021)
    following = b.call(b.action("out", (), hashed, assign(build.EGRESS_SPEC, ("&", "scalars.r", 1))))
    for n in range(number):
        add = b.action(f"add{n}", (), header_primitive("add_header", f"o{n}"), assign(f"o{n}.x", n))
        remove = b.action(f"remove{n}", (), header_primitive("remove_header", f"o{n}"))
        following = b.condition((">", "h.b", n), b.call(add, following), b.call(remove, following))
    b.start(following)
    return b.json()


@pytest.mark.net
@pytest.mark.parametrize(("make", "few", "many"), [(choices, 20, 60), (decisions, 20, 60), (headers, 10, 20)])
def test_effort_grows_with_the_program(lab: Lab, make: Callable[[int], bytes], few: int, many: int) -> None:
    """Old verifiers go through all that follows a choice twice, and so for each combination, unless it is stored."""
    short, long = (lab.engine.load(make(number)).object for number in (few, many))
    assert short.instructions() < long.instructions() < 20_000
    if long.verified_insns():  # Linux 5.16
        assert long.verified_insns() < 2 * many / few * short.verified_insns()


# ---- names


def test_no_p4_name_is_one_of_ours() -> None:
    """A P4 action may be called like any function or macro of the headers."""
    text = "".join(path.read_text() for path in INCLUDE.glob("*.h"))
    functions = set(re.findall(r"static __always_inline [\w *]*?\b(\w+)\(|#define (\w+)\(", text))
    names = {one or other for one, other in functions}
    assert {"masked", "is_size", "packet_in", "load16"} <= names
    assert [name for name in sorted(names) if global_identifier(name) == name] == []
    constants = set(re.findall(r"#define (\w+)[ \t]+[^ \t]", text))
    assert "HIT" in constants
    assert [name for name in sorted(constants) if identifier(name) == name] == []


# ---- the packet-out header lies at constant offsets


def test_packet_out_header_that_is_too_long_is_refused() -> None:
    b = Builder()
    b.header("out", [(f"f{n}", 64) for n in range(16)], emit=False)
    b.header("ethernet", build.ETHERNET)
    b.state("start", select=[build.INGRESS_PORT], cases=[("0x00ff", "out")], default="parse_ethernet")
    b.state("out", "out", default="parse_ethernet")
    b.state("parse_ethernet", "ethernet")
    b.start(b.call(b.action("nothing")))
    with pytest.raises(
        PipelineRejected, match=r"packet-out header of 128 bytes is not supported \(at most 120\)"
    ):
        generate(b.json(), Options())


# ---- the command


def test_check_needs_neither_packages_nor_clang(tmp_path: Path) -> None:
    """Objects compiled elsewhere are loaded with Python's own library and libbpf."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import dataplane.switch.engine.check, sys; print(*sys.modules)"],
        cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"pyroute2", "google.protobuf", "dataplane.switch.engine.engine"} & set(done.stdout.split())


BROKEN = """
#include "p4ferry.h"
CELLS(cells, u64, 4);
/* action Ingress.broken, test.p4:17:4 */
SEC("tc") int p4ferry(struct __sk_buff *skb)
{
	u64 *cell = bpf_map_lookup_elem(&cells, &(u32){ 0 });
	return cell ? cell[skb->len] : 0;
}
"""


@pytest.mark.net
def test_check_tells_what_came_of_each_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs, objects, report = tmp_path / "programs", tmp_path / "objects", tmp_path / "report.json"
    programs.mkdir()
    (programs / "good.json").write_bytes(build.forwarder())
    (programs / "broken.c").write_text(BROKEN)
    (programs / "refused.json").write_text("{}")
    (programs / "notes.txt").write_text("no program")
    assert check.main([str(programs), "--objects", str(objects)]) == 0
    assert sorted(path.name for path in objects.iterdir()) == [
        "broken.c", "broken.o", "good.c", "good.o", "refused.refused"
    ]  # fmt: skip
    capsys.readouterr()
    assert check.main([str(objects), "--json", str(report)]) == 1
    printed = capsys.readouterr().out
    assert "rejected  broken: " in printed
    assert "test.p4:17:4" in printed
    assert "1 loaded, 1 refused, 1 rejected" in printed
    broken, good, refused = json.loads(report.read_text())["programs"]
    assert broken["outcome"] == "rejected"
    assert good["outcome"] == "loaded"
    assert good["verified"] >= good["instructions"] // 2 > 100
    assert "no BMv2 JSON" in refused["reason"]
    assert check.main([str(programs / "good.json")]) == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.json"], "nowhere.json: there is no such file or folder"),
        (["pyproject.toml"], "pyproject.toml: is no P4 source, BMv2 JSON, C source or object"),
        (["docs"], "docs: there is no program in this folder"),
    ],
)
def test_check_says_what_is_wrong(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert check.main(arguments) == 2
    assert text in capsys.readouterr().err
