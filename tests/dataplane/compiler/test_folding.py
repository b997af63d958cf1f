"""Constant folding agrees with arithmetic modulo the width."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.compiler import CompileError
from dataplane.compiler import types as t
from dataplane.compiler.folding import fold_binary, fold_cast, fold_slice, saturate, wrap

from .skeleton import Workbench, hidden_steps

widths = st.integers(1, 128)
values = st.integers(-(2**130), 2**130)


def unsigned(value: int, width: int) -> int:
    """Return a number modulo 2^width."""
    return value % (1 << width)


def signed(value: int, width: int) -> int:
    """Return a number modulo 2^width, between -2^(width-1) and 2^(width-1) - 1."""
    value %= 1 << width
    return value - (1 << width) if value >= 1 << (width - 1) else value


@given(values, values, widths, st.booleans(), st.sampled_from(["+", "-", "*", "&", "|", "^"]))
def test_arithmetic_wraps(left: int, right: int, width: int, is_signed: bool, operator: str) -> None:
    """bit<w> and int<w> are Python's integers modulo 2^w."""
    kind = t.Bits(width, is_signed)
    one, other = wrap(left, kind), wrap(right, kind)
    python: dict[str, Any] = {
        "+": one + other, "-": one - other, "*": one * other, "&": one & other, "|": one | other, "^": one ^ other,
    }  # fmt: skip
    bring = signed if is_signed else unsigned
    assert fold_binary(operator, one, other, kind, kind) == bring(python[operator], width)


@given(values, st.integers(0, 200), widths, st.booleans())
def test_shifts(value: int, amount: int, width: int, is_signed: bool) -> None:
    """Shifts fill with zeros, or with the sign; large amounts empty the value."""
    kind = t.Bits(width, is_signed)
    number = wrap(value, kind)
    bring = signed if is_signed else unsigned
    assert fold_binary("<<", number, amount, kind, t.INT) == bring(number << amount, width)
    assert fold_binary(">>", number, amount, kind, t.INT) == number >> amount


@given(values, widths, widths)
def test_casts_and_slices(value: int, width: int, other: int) -> None:
    """Casts keep the low bits; a slice is a shift and a mask."""
    number = unsigned(value, width)
    assert fold_cast(number, t.Bits(other)) == unsigned(number, other)
    assert fold_cast(number, t.Bits(width, True)) == signed(number, width)
    high = width - 1
    assert fold_slice(number, high, high // 2) == number >> (high // 2)


@given(values, values, widths)
def test_saturation(left: int, right: int, width: int) -> None:
    """Saturating results stay at the bounds."""
    kind = t.Bits(width)
    one, other = wrap(left, kind), wrap(right, kind)
    assert fold_binary("|+|", one, other, kind, kind) == min(one + other, 2**width - 1)
    assert fold_binary("|-|", one, other, kind, kind) == max(one - other, 0)
    assert saturate(2**200, t.Bits(8, True)) == 127


@given(values, widths, values, widths)
def test_concatenation(left: int, left_width: int, right: int, right_width: int) -> None:
    """++ puts the right bits behind the left ones."""
    one, other = unsigned(left, left_width), unsigned(right, right_width)
    kind = t.Bits(left_width + right_width)
    assert fold_binary("++", one, other, kind, t.Bits(right_width)) == one << right_width | other


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("8w200 + 100", "0x2c"),
        ("(bit<8>)(16w0x1234 >> 4)", "0x23"),
        ("8w5 - 6", "0xff"),
        ("7 / 2 + 7 % 4", "0x06"),
        ("(bit<8>)(int<8>)-1", "0xff"),
        ("~8w0x0f", "0xf0"),
        ("4w0xa ++ 4w5", "0xa5"),
        ("16w0xabcd[11:4]", "0xbc"),
        ("true && 3 > 2 ? 8w1 : 2", "0x01"),
        ("8w250 |+| 10", "0xff"),
        ("(bit<8>)X * 2", "0x14"),
        ("8w6 & 3 == 2 ? 8w1 : 0", "0x01"),
        ("8w1 | 2 < 4 ? 8w1 : 0", "0x01"),
        ("8w1 | 2 ^ 3 & 6", "0x01"),
        ("8w1 + 2 << 1 & 0xff", "0x06"),
        ("8w7 - 2 - 1", "0x04"),
        ("4w1 ++ 4w2 + 1 == 0x13 ? 8w1 : 0", "0x01"),
        ("-8w1 >> 4", "0x0f"),
    ],
)
def test_constants_in_programs(bench: Workbench, expression: str, value: str) -> None:
    """A constant expression reaches BMv2 as its value."""
    document = bench.json(top="const bit<16> X = 5 * 2;", apply=f"meta.a = {expression};")
    assert hidden_steps(document)[0]["parameters"][1] == {"type": "hexstr", "value": value}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.sampled_from(["+", "-", "*", "&", "|", "^"]))
def test_front_end_folds_the_same(
    tmp_path_factory: pytest.TempPathFactory, left: int, right: int, operator: str
) -> None:
    """The whole front end computes what the folding functions do."""
    bench = Workbench(tmp_path_factory.mktemp("p4"))
    document = bench.json(apply=f"meta.a = 8w{left} {operator} 8w{right};")
    expected = eval(f"({left} {operator} {right}) % 256")
    assert hidden_steps(document)[0]["parameters"][1]["value"] == f"0x{expected:02x}"


def test_division_by_zero(bench: Workbench) -> None:
    """Division by zero is an error where it stands."""
    with pytest.raises(CompileError, match="division by zero"):
        bench.compile(apply="meta.a = 5 / 0;")
