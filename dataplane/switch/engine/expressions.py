"""BMv2 expressions to C expressions.

BMv2 computes with unlimited precision and truncates on assignment; p4c therefore masks after every operation that
may overflow. Here everything is computed modulo 2**64 in u64, which agrees with that for results of at most 64 bits,
as long as nothing compares or shifts right an intermediate result beyond 64 bits. Values that may be negative
(`-`, `~`, int<N>) are tracked, and compared and shifted as s64. Fields of more than 64 bits are byte arrays in network
order: they can be copied and compared, not computed with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from dataplane.switch.engine.bmv2 import (
    Field,
    Header,
    Json,
    Param,
    Position,
    Program,
    hexstr,
    refuse,
    rejection,
)
from dataplane.switch.engine.names import container, identifier, is_wide


class Kind(Enum):
    """What a C expression yields."""

    BITS = "unsigned integer"
    SIGNED = "integer that may be negative, as two's complement in 64 bits"
    BOOL = "truth value"
    WIDE = "pointer to bytes in network order"


_CLOSED = re.compile(r"[\w.>-]*\w|\([^()]*\)")
"""Code that needs no parentheses around it: a name, a member, a number, or what has parentheses already."""


@dataclass(frozen=True, slots=True)
class Expr:
    """A C expression; `width` is the number of bits that its value needs at most."""

    code: str
    kind: Kind
    width: int

    @property
    def operand(self) -> str:
        """Return the code as an operand of 64 bit arithmetic."""
        code = self.code if _CLOSED.fullmatch(self.code) else f"({self.code})"
        return f"(u64){code}" if self.width <= 32 and self.kind is Kind.BITS else code


def valid_bit(header: Header) -> str:
    return f"VALID_{identifier(header.name)}"


def bits(code: str, width: int) -> Expr:
    return Expr(code, Kind.BITS, width)


def constant(value: int) -> Expr:
    """Translate a literal."""
    if value < 0:
        return Expr(f"(s64){value}LL", Kind.SIGNED, value.bit_length() + 1)
    if value.bit_length() > 64:
        data = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return Expr(", ".join(f"{byte:#x}" for byte in data), Kind.WIDE, len(data) * 8)
    suffix = "" if value < 1 << 31 else "ULL"
    return bits(f"{value:#x}{suffix}" if value > 9 else str(value), value.bit_length() or 1)


def wide_literal(value: int, width: int) -> str:
    """Return a compound literal of a constant of more than 64 bits."""
    data = value.to_bytes(container(width), "big")
    return f"(const u8[{len(data)}]){{{', '.join(f'{byte:#x}' for byte in data)}}}"


class Translator:
    """Translates the expressions of one action, condition or parser state."""

    def __init__(self, program: Program, position: Position, params: Sequence[Param] = ()) -> None:
        self.program = program
        self.position = position
        self.params = params

    def translate(self, node: Json) -> Expr:
        """Translate a type-value object."""
        kind, value = node["type"], node["value"]
        if kind == "expression":
            if "op" in value:
                return self._operation(value)
            return self.translate(value)
        if kind == "field":
            return self.field(value[0], value[1])
        if kind == "hexstr":
            return constant(hexstr(value))
        if kind == "bool":
            return Expr("1" if value else "0", Kind.BOOL, 1)
        if kind in ("runtime_data", "local"):
            param = self.params[value]
            code = f"data->{identifier(param.name)}"
            return Expr(code, Kind.WIDE if is_wide(param.width) else Kind.BITS, param.width)
        if kind == "lookahead":
            return self.lookahead(int(value[0]), int(value[1]))
        raise rejection(self.position, f"an operand of type {kind} is not supported")

    def lookahead(self, offset: int, width: int) -> Expr:
        """Translate a lookahead; only parser states have it."""
        refuse(self.position, "lookahead is supported in parser states only")

    def truth(self, node: Json) -> str:
        """Translate a condition."""
        expr = self.translate(node)
        if expr.kind is Kind.WIDE:
            refuse(self.position, "a value of more than 64 bits is no condition")
        return expr.code

    def value(self, node: Json) -> Expr:
        """Translate an operand that must be an integer of at most 64 bits."""
        expr = self.translate(node)
        if expr.kind is Kind.WIDE:
            refuse(self.position, "arithmetic on more than 64 bits is not supported")
        if expr.kind is Kind.BOOL:
            return bits(f"({expr.code} ? 1 : 0)", 1)
        return expr

    def find(self, header: str, name: str) -> tuple[Header, Field]:
        return self.program.header(header, self.position), self.program.field(header, name, self.position)

    def field(self, header_name: str, name: str) -> Expr:
        """Translate a field reference, `$valid$` included."""
        if name == "$valid$":
            header = self.program.header(header_name, self.position)
            if header.metadata:
                return bits("1", 1)
            return bits(f"is_valid(p, {valid_bit(header)})", 1)
        header, field = self.find(header_name, name)
        code = f"p->{identifier(header.name)}.{identifier(name)}"
        if is_wide(field.width):
            return Expr(code, Kind.WIDE, field.width)
        if field.signed:
            return Expr(f"sign_extend({code}, {field.width})", Kind.SIGNED, field.width)
        return bits(code, field.width)

    def assign(self, header_name: str, name: str, node: Json) -> list[str]:
        """Return statements that set a field."""
        if name == "$valid$":
            refuse(self.position, "validity can be changed by setValid and setInvalid only")
        header, field = self.find(header_name, name)
        target = f"p->{identifier(header.name)}.{identifier(name)}"
        if is_wide(field.width):
            source = self.wide(node, field.width)
            return [f"__builtin_memcpy({target}, {source}, {container(field.width)});"]
        statement = f"{target} = {truncate(self.value(node), field.width)};"
        return [statement, "settle();"] if branches(node) else [statement]

    def wide(self, node: Json, width: int) -> str:
        """Translate an operand of exactly `width` bits, more than 64."""
        while node["type"] == "expression" and "op" not in node["value"]:
            node = node["value"]
        if node["type"] == "hexstr":
            value = hexstr(node["value"])
            if 0 <= value < 1 << width:
                return wide_literal(value, width)
        elif node["type"] in ("field", "runtime_data", "local"):
            expr = self.translate(node)
            if expr.kind is Kind.WIDE and expr.width == width:
                return expr.code
        raise rejection(self.position, f"arithmetic on {width} bits is not supported (at most 64)")

    def _operation(self, node: Json) -> Expr:
        op = node["op"]
        if op in ("==", "!="):
            return self._equality(op, node["left"], node["right"])
        handler = _OPERATIONS.get(op)
        if handler is None:
            refuse(self.position, f"operator {op} is not supported")
        return handler(self, op, node)

    def _equality(self, op: str, left: Json, right: Json) -> Expr:
        one, other = self.translate(left), self.translate(right)
        width = (
            max(e.width for e in (one, other) if e.kind is Kind.WIDE)
            if Kind.WIDE in _kinds(one, other)
            else 0
        )
        if not width:
            if Kind.BOOL in _kinds(one, other):
                return Expr(f"(!!({one.code}) {op} !!({other.code}))", Kind.BOOL, 1)
            return self._compared(op, one, other)
        for node in (left, right):
            if node["type"] == "field":
                width = self.translate(node).width
        call = f"same_bytes({self.wide(left, width)}, {self.wide(right, width)}, {container(width)})"
        return Expr(call if op == "==" else f"!{call}", Kind.BOOL, 1)

    def _compare(self, op: str, node: Json) -> Expr:
        return self._compared(op, self.value(node["left"]), self.value(node["right"]))

    def _compared(self, op: str, one: Expr, other: Expr) -> Expr:
        if Kind.SIGNED in _kinds(one, other):
            return Expr(f"((s64){one.operand} {op} (s64){other.operand})", Kind.BOOL, 1)
        return Expr(f"({one.code} {op} {other.code})", Kind.BOOL, 1)

    def _logic(self, op: str, node: Json) -> Expr:
        joint = "&&" if op == "and" else "||"
        return Expr(f"({self.truth(node['left'])} {joint} {self.truth(node['right'])})", Kind.BOOL, 1)

    def _not(self, op: str, node: Json) -> Expr:
        return Expr(f"!({self.truth(node['right'])})", Kind.BOOL, 1)

    def _arithmetic(self, op: str, node: Json) -> Expr:
        one, other = self.value(node["left"]), self.value(node["right"])
        width = one.width + other.width if op == "*" else max(one.width, other.width) + 1
        signed = op == "-" or Kind.SIGNED in _kinds(one, other)
        kind = Kind.SIGNED if signed else Kind.BITS
        return Expr(f"({one.operand} {op} {other.operand})", kind, min(width, 65))

    def _divide(self, op: str, node: Json) -> Expr:
        one, other = self.value(node["left"]), self.value(node["right"])
        if Kind.SIGNED in _kinds(one, other):
            refuse(self.position, f"{op} of a value that may be negative is not supported")
        return bits(f"({one.operand} {op} {other.operand})", one.width)

    def _bitwise(self, op: str, node: Json) -> Expr:
        one, other = self.value(node["left"]), self.value(node["right"])
        unsigned = [e for e in (one, other) if e.kind is not Kind.SIGNED]
        if op == "&" and unsigned:
            width = min(e.width for e in unsigned)
            return bits(f"({one.code} & {other.code})", width)
        kind = Kind.BITS if len(unsigned) == 2 else Kind.SIGNED
        if kind is Kind.BITS:
            return bits(f"({one.code} {op} {other.code})", max(one.width, other.width))
        return Expr(f"({one.operand} {op} {other.operand})", kind, max(one.width, other.width))

    def _complement(self, op: str, node: Json) -> Expr:
        one = self.value(node["right"])
        return Expr(f"~{one.operand}", Kind.SIGNED, one.width + 1)

    def _shift(self, op: str, node: Json) -> Expr:
        one, other = self.value(node["left"]), self.value(node["right"])
        if node["right"]["type"] == "hexstr":
            amount = hexstr(node["right"]["value"])
            if op == "<<":
                return Expr(
                    f"({one.operand} << {amount})" if amount < 64 else "0", one.kind, one.width + amount
                )
            if one.kind is Kind.SIGNED:
                return Expr(f"((s64){one.operand} >> {min(amount, 63)})", one.kind, one.width)
            code = f"({one.code} >> {amount})" if amount < 64 else "0"
            return bits(code, max(one.width - amount, 1))
        if op == "<<":
            return Expr(f"shift_left({one.code}, {other.code})", one.kind, 65)
        name = "shift_right_signed" if one.kind is Kind.SIGNED else "shift_right"
        return Expr(f"{name}({one.code}, {other.code})", one.kind, one.width)

    def _valid(self, op: str, node: Json) -> Expr:
        header = self.program.header(node["right"]["value"], self.position)
        return Expr(f"is_valid(p, {valid_bit(header)})", Kind.BOOL, 1)

    def _to_bool(self, op: str, node: Json) -> Expr:
        return Expr(f"({self.value(node['right']).code} != 0)", Kind.BOOL, 1)

    def _to_data(self, op: str, node: Json) -> Expr:
        return bits(f"({self.truth(node['right'])} ? 1 : 0)", 1)

    def _width_of(self, node: Json) -> int:
        if node["type"] != "hexstr":
            refuse(self.position, "a cast to a width that is not constant is not supported")
        width = hexstr(node["value"])
        if not 0 < width <= 64:
            refuse(self.position, f"a cast to {width} bits is not supported (at most 64)")
        return width

    def _two_comp_mod(self, op: str, node: Json) -> Expr:
        width = self._width_of(node["right"])
        return Expr(f"sign_extend({self.value(node['left']).operand}, {width})", Kind.SIGNED, width)

    def _saturate(self, op: str, node: Json) -> Expr:
        width = self._width_of(node["right"])
        if width > 62:
            refuse(self.position, f"saturating arithmetic on {width} bits is not supported (at most 62)")
        one = self.value(node["left"])
        if op == "usat_cast":
            return bits(f"saturate({one.operand}, {width})", width)
        return Expr(f"saturate_signed({one.operand}, {width})", Kind.SIGNED, width)

    def _choice(self, op: str, node: Json) -> Expr:
        condition = self.truth(node["cond"])
        one, other = self.translate(node["left"]), self.translate(node["right"])
        if Kind.WIDE in _kinds(one, other):
            refuse(self.position, "a choice between values of more than 64 bits is not supported")
        kind = one.kind if one.kind is other.kind else Kind.SIGNED
        code = f"({condition} ? {one.operand} : {other.operand})"
        return Expr(code, kind, max(one.width, other.width))


_STRAIGHT = frozenset(("+", "-", "*", "/", "%", "&", "|", "^", "~", "two_comp_mod"))


def branches(node: object) -> bool:
    """Tell whether the code of an expression has more than one way through it."""
    if isinstance(node, Mapping):
        shifts = node.get("op") in ("<<", ">>") and node["right"]["type"] == "hexstr"
        if "op" in node and node["op"] not in _STRAIGHT and not shifts:
            return True
        return any(branches(value) for value in node.values())
    return False


def _kinds(*exprs: Expr) -> set[Kind]:
    return {expr.kind for expr in exprs}


def truncate(expr: Expr, width: int) -> str:
    """Return the code of a value cut to `width` bits, as an assignment does."""
    if expr.kind is not Kind.SIGNED and expr.width <= width:
        return expr.code
    if width == 64:
        return expr.code
    return f"{expr.operand} & {(1 << width) - 1:#x}{'ULL' if width > 31 else ''}"


_Handler = Callable[[Translator, str, Json], Expr]

_OPERATIONS: dict[str, _Handler] = {
    **dict.fromkeys(("<", "<=", ">", ">="), Translator._compare),
    **dict.fromkeys(("and", "or"), Translator._logic),
    "not": Translator._not,
    **dict.fromkeys(("+", "-", "*"), Translator._arithmetic),
    **dict.fromkeys(("/", "%"), Translator._divide),
    **dict.fromkeys(("&", "|", "^"), Translator._bitwise),
    "~": Translator._complement,
    **dict.fromkeys(("<<", ">>"), Translator._shift),
    "valid": Translator._valid,
    "d2b": Translator._to_bool,
    "b2d": Translator._to_data,
    "two_comp_mod": Translator._two_comp_mod,
    **dict.fromkeys(("usat_cast", "sat_cast"), Translator._saturate),
    "?": Translator._choice,
}
