"""Arithmetic on constants, as P4 defines it.

Values of bit<w> are kept as 0 … 2^w - 1, values of int<w> as signed numbers, `int` without bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import types as t

MAX_SHIFT = 1 << 16


class FoldingError(Exception):
    """The constant expression has no value; the message says why."""


@dataclass(frozen=True, slots=True)
class EnumValue:
    """A member of an enum or of error."""

    type: t.Type
    name: str


def wrap(value: int, kind: t.Type) -> int:
    """Bring a number into the range of a type, modulo 2^width."""
    kind = t.underlying(kind)
    if not isinstance(kind, t.Bits):
        return value
    value &= (1 << kind.width) - 1
    if kind.signed and kind.width and value >> (kind.width - 1):
        value -= 1 << kind.width
    return value


def saturate(value: int, kind: t.Bits) -> int:
    """Bring a number into the range of a type by the nearest number in it."""
    low, high = (
        (-(1 << (kind.width - 1)), (1 << (kind.width - 1)) - 1) if kind.signed else (0, (1 << kind.width) - 1)
    )
    return max(low, min(high, value))


def fold_unary(operator: str, value: int | bool, kind: t.Type) -> int | bool:
    """Compute `! ~ - +`."""
    if operator == "!":
        return not value
    if operator == "~":
        return wrap(~int(value), kind)
    return wrap(-int(value) if operator == "-" else int(value), kind)


def fold_binary(
    operator: str, left: object, right: object, kind: t.Type, right_type: t.Type
) -> int | bool | None:
    """Compute a binary operator whose result has type `kind` (for comparisons: whose operands have)."""
    if operator == "==":
        return left == right
    if operator == "!=":
        return left != right
    if operator == "&&":
        return bool(left) and bool(right)
    if operator == "||":
        return bool(left) or bool(right)
    if not isinstance(left, int) or not isinstance(right, int):
        return None
    if operator in ("<", "<=", ">", ">="):
        return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operator]
    return _arithmetic(operator, left, right, kind, right_type)


def _arithmetic(operator: str, left: int, right: int, kind: t.Type, right_type: t.Type) -> int:
    if operator in ("/", "%"):
        if right == 0:
            raise FoldingError("division by zero")
        if left < 0 or right < 0:
            raise FoldingError(f"'{operator}' is not defined for negative numbers")
        return wrap(left // right if operator == "/" else left % right, kind)
    if operator in ("<<", ">>"):
        return _shift(operator, left, right, kind)
    if operator == "++":
        width = t.width_of(right_type) or 0
        return wrap((left << width) | (right & ((1 << width) - 1)), kind)
    if operator in ("|+|", "|-|"):
        assert isinstance(kind, t.Bits)
        return saturate(left + right if operator == "|+|" else left - right, kind)
    result = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "&": left & right,
        "|": left | right,
        "^": left ^ right,
    }[operator]
    return wrap(result, kind)


def _shift(operator: str, left: int, right: int, kind: t.Type) -> int:
    if right < 0:
        raise FoldingError("shift by a negative amount")
    width = t.width_of(kind)
    if width is not None:
        right = min(right, width)
    elif right > MAX_SHIFT:
        raise FoldingError("shift by an impossible amount")
    return wrap(left << right if operator == "<<" else left >> right, kind)


def fold_slice(value: int, high: int, low: int) -> int:
    """Compute value[high:low]."""
    return (value >> low) & ((1 << (high - low + 1)) - 1)


def fold_cast(value: object, kind: t.Type) -> object:
    """Convert a constant to a type."""
    base = t.underlying(kind)
    if isinstance(value, bool):
        return int(value) if isinstance(base, t.Bits) else value
    if isinstance(value, int):
        if base is t.BOOL:
            return value != 0
        return wrap(value, kind)
    return value
