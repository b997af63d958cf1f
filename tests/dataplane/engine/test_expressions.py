"""Arithmetic: what the generated program computes is what BMv2 computes with unlimited precision."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.switch.engine.bmv2 import Position
from dataplane.switch.engine.expressions import Translator, truncate
from dataplane.switch.engine.reader import parse_program
from dataplane.switch.engine.source import Options, Source
from tests.dataplane.engine import build
from tests.dataplane.engine.build import Builder, assign, expr
from tests.dataplane.engine.conftest import Lab

FIELDS = [("a", 8), ("b", 16), ("c", 32), ("d", 64), ("e", 5), ("f", 11), ("g", 48)]
M8, M16, M32, M64 = ((1 << bits) - 1 for bits in (8, 16, 32, 64))


def signed(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


Model = Callable[[int, int, int, int, int, int, int], int]

CASES: list[tuple[build.Node, int, Model]] = [
    (("&", ("+", "h.a", 0xFF), M8), 8, lambda a, b, c, d, e, f, g: a - 1 & M8),
    (("&", ("-", "h.a", "h.e"), M8), 8, lambda a, b, c, d, e, f, g: a - e & M8),
    (("&", ("+", "h.c", "h.c"), M32), 32, lambda a, b, c, d, e, f, g: 2 * c & M32),
    (("&", ("+", "h.c", "h.c"), (1 << 33) - 1), 33, lambda a, b, c, d, e, f, g: 2 * c),
    (("&", ("+", "h.d", "h.d"), M64), 64, lambda a, b, c, d, e, f, g: 2 * d & M64),
    (("&", ("-", "h.d", "h.g"), M64), 64, lambda a, b, c, d, e, f, g: d - g & M64),
    (("&", ("*", "h.b", "h.b"), M32), 32, lambda a, b, c, d, e, f, g: b * b),
    (("&", ("*", "h.c", "h.c"), M64), 64, lambda a, b, c, d, e, f, g: c * c),
    (("&", ("~", "h.f"), 0x7FF), 11, lambda a, b, c, d, e, f, g: ~f & 0x7FF),
    (("|", "h.a", ("&", ("<<", "h.b", 8), M32)), 32, lambda a, b, c, d, e, f, g: a | b << 8),
    (("^", "h.g", "h.c"), 48, lambda a, b, c, d, e, f, g: g ^ c),
    ((">>", "h.g", 40), 8, lambda a, b, c, d, e, f, g: g >> 40),
    ((">>", "h.d", "h.a"), 64, lambda a, b, c, d, e, f, g: d >> a),
    (("&", ("<<", "h.c", "h.e"), M64), 64, lambda a, b, c, d, e, f, g: c << e & M64),
    (("b2d", ("<", ("two_comp_mod", "h.a", 8), 0)), 1, lambda a, b, c, d, e, f, g: int(signed(a, 8) < 0)),
    (
        ("b2d", (">=", ("two_comp_mod", "h.b", 16), ("two_comp_mod", "h.f", 11))),
        1,
        lambda a, b, c, d, e, f, g: int(signed(b, 16) >= signed(f, 11)),
    ),
    (("&", (">>", ("two_comp_mod", "h.a", 8), 2), M8), 8, lambda a, b, c, d, e, f, g: signed(a, 8) >> 2 & M8),
    (("usat_cast", ("+", "h.a", "h.e"), 8), 8, lambda a, b, c, d, e, f, g: clamp(a + e, 0, M8)),
    (("usat_cast", ("-", "h.a", "h.e"), 8), 8, lambda a, b, c, d, e, f, g: clamp(a - e, 0, M8)),
    (
        ("&", ("sat_cast", ("+", ("two_comp_mod", "h.a", 8), ("two_comp_mod", "h.e", 5)), 8), M8),
        8,
        lambda a, b, c, d, e, f, g: clamp(signed(a, 8) + signed(e, 5), -128, 127) & M8,
    ),
    (("?", (">", "h.a", "h.e"), "h.a", "h.e"), 8, lambda a, b, c, d, e, f, g: max(a, e)),
    (("b2d", ("and", ("!=", "h.c", 0), ("not", ("==", "h.b", 7)))), 1, lambda a, b, c, d, e, f, g: int(c != 0 != b - 7)),  # noqa: E501
    (("b2d", ("or", ("<=", "h.d", "h.g"), ("==", "h.e", 31))), 1, lambda a, b, c, d, e, f, g: int(d <= g or e == 31)),
    (("b2d", ("==", "h.c", 0xFFFFFFFF)), 1, lambda a, b, c, d, e, f, g: int(c == M32)),
    (("%", "h.d", 1021), 16, lambda a, b, c, d, e, f, g: d % 1021),
]  # fmt: skip

HASHED = ["h.a", "h.b", "h.e", "h.f", "h.g", (0xAB, 8), "h.c"]


def packed(a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> bytes:
    return struct.pack("!BHH", a, b, e << 11 | f) + g.to_bytes(6, "big") + struct.pack("!BI", 0xAB, c)


def crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0xA001 if crc & 1 else 0)
    return crc


def words(data: bytes) -> list[int]:
    data += bytes(len(data) % 2)
    return list(struct.unpack(f"!{len(data) // 2}H", data))


def csum16(data: bytes) -> int:
    total = sum(words(data))
    while total >> 16:
        total = (total & M16) + (total >> 16)
    return ~total & M16


def xor16(data: bytes) -> int:
    result = 0
    for word in words(data):
        result ^= word
    return result


HASHES: dict[str, Callable[[bytes], int]] = {
    "crc32": binascii.crc32,
    "crc16": crc16,
    "csum16": csum16,
    "xor16": xor16,
    "identity": lambda data: int.from_bytes(data[:8], "big"),
}


def calculator() -> bytes:
    """Return a program that answers each packet with a digest of all cases and hashes."""
    metadata = [(f"r{index}", width) for index, (_, width, _) in enumerate(CASES)]
    metadata += [(f"hash_{name}", 64) for name in HASHES] + [("offset", 16)]
    b = Builder(metadata)
    b.header("h", FIELDS)
    b.state("start", "h")
    compute = b.action(
        "compute",
        (),
        *(assign(f"scalars.r{index}", node) for index, (node, _, _) in enumerate(CASES)),
        *(b.hash(f"scalars.hash_{name}", name, HASHED, 0, 1 << 48) for name in HASHES),
        b.hash("scalars.offset", "crc16", HASHED, 100, 17),
        b.digest("results_t", [f"scalars.{name}" for name, _ in metadata]),
        build.drop(),
    )
    b.start(b.call(compute))
    return b.json()


def packet(a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> bytes:
    return struct.pack("!BHIQH", a, b, c, d, e << 11 | f) + g.to_bytes(6, "big")


def edges(width: int) -> st.SearchStrategy[int]:
    most = (1 << width) - 1
    return st.one_of(st.sampled_from([0, 1, most, most >> 1, (most >> 1) + 1]), st.integers(0, most))


@pytest.mark.net
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.tuples(*(edges(width) for _, width in FIELDS)))
def test_arithmetic_and_hashes(lab: Lab, values: tuple[int, int, int, int, int, int, int]) -> None:
    if lab.engine._active is None:
        lab.run(calculator())
    lab.cables[1].send(packet(*values))
    name, results = lab.event()
    assert name == "results_t"
    assert isinstance(results, tuple)
    expected = [model(*values) for _, _, model in CASES]
    data = packed(*values)
    expected += [function(data) % (1 << 48) for function in HASHES.values()] + [100 + crc16(data) % 17]
    assert list(results) == expected


def translator() -> Translator:
    return Translator(parse_program(calculator()), Position("test"))


@pytest.mark.parametrize(
    ("node", "width", "code"),
    [
        ("h.a", 8, "p->h.a"),
        ("h.b", 8, "(u64)p->h.b & 0xff"),
        (("&", ("+", "h.a", 1), 0xFF), 8, "(((u64)p->h.a + (u64)1) & 0xff)"),
        (("d2b", "h.$valid$"), 1, "(is_valid(p, VALID_h) != 0)"),
        (("<", "h.c", 5), 1, "(p->h.c < 5)"),
        (("-", "h.d", "h.c"), 64, "(p->h.d - (u64)p->h.c)"),
    ],
)
def test_generated_code(node: build.Node, width: int, code: str) -> None:
    """Generated code is read by people: nothing superfluous in it."""
    assert truncate(translator().translate(expr(node)), width) == code


def test_whole_program_is_stable() -> None:
    """The same JSON gives the same C, which the object cache relies on."""
    program = parse_program(calculator())
    assert Source(program, Options()).text == Source(program, Options()).text
