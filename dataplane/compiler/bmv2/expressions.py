"""Values to JSON.

BMv2 wants three flavours of the same value: plain (in conditions and as operands), wrapped once more when it is an
expression (as a primitive's parameter), and without conversion between data and truth values (keys and lists).
"""

from __future__ import annotations

from typing import Any

from .. import ir
from .. import types as t

Json = dict[str, Any]


def hexstr(value: int, width: int = 0) -> str:
    """Write a number, padded to the bytes of its width."""
    digits = f"{abs(value):x}"
    return f"{'-' if value < 0 else ''}0x{digits.rjust((width + 7) // 8 * 2, '0')}"


def constant(value: ir.Const, with_width: bool = False) -> Json:
    """Write a constant."""
    if value.type is t.BOOL:
        return {"type": "bool", "value": bool(value.value)}
    if value.type is t.ERROR:
        return {"type": "hexstr", "value": hexstr(value.value)}
    width = value.type.width if isinstance(value.type, t.Bits) else 0
    result: Json = {"type": "hexstr", "value": hexstr(value.value, width)}
    if with_width:
        result["bitwidth"] = width
    return result


def operation(op: str, left: Json | None, right: Json) -> Json:
    """Write an expression."""
    return {"type": "expression", "value": {"op": op, "left": left, "right": right}}


def header(value: ir.HeaderRef | ir.UnionRef) -> Json:
    """Write a reference to a header or union."""
    if isinstance(value, ir.UnionRef):
        return {"type": "header_union", "value": value.name}
    if value.index is not None:
        stack = {"type": "header_stack", "value": value.name}
        return operation("dereference_header_stack", stack, operand(value.index))
    return {"type": "header", "value": value.name}


def stored(value: ir.Expr) -> Json:
    """Write where a value is stored (left of an assignment, a key, an element of a list)."""
    if isinstance(value, ir.Field):
        return {"type": "field", "value": [value.header, value.name]}
    if isinstance(value, ir.LastField):
        unions, _, member = value.stack.partition(".")
        if member:
            return {"type": "union_stack_field", "value": [unions, member, value.name]}
        return {"type": "stack_field", "value": [value.stack, value.name]}
    if isinstance(value, ir.ElementField):
        stack = {"type": "header_stack", "value": value.stack}
        element = operation("dereference_header_stack", stack, operand(value.index))
        return {"type": "expression", "value": {"op": "access_field", "left": element, "right": value.at}}
    if isinstance(value, ir.Lookahead):
        return {"type": "lookahead", "value": [value.offset, value.width]}
    if isinstance(value, ir.Const):
        if value.type is t.BOOL:
            return {"type": "hexstr", "value": hexstr(int(value.value), 8)}
        return constant(value)
    return plain(value)


def plain(value: ir.Expr) -> Json:
    """Write a value; stored truth values are converted to BMv2's booleans."""
    if isinstance(value, ir.Const):
        return constant(value)
    if isinstance(value, ir.Text):
        return {"type": "string", "value": value.value}
    if isinstance(value, ir.Data):
        return {"type": "runtime_data", "value": value.index}
    if isinstance(value, ir.Op):
        left = operand(value.left) if value.left is not None else None
        return operation(value.op, left, operand(value.right))
    if isinstance(value, ir.Mux):
        inner = {
            "op": "?",
            "left": operand(value.yes),
            "right": operand(value.no),
            "cond": operand(value.cond),
        }
        return {"type": "expression", "value": inner}
    if isinstance(value, ir.Valid):
        return operation("d2b", None, valid_field(value))
    if isinstance(value, ir.LastIndex):
        return operation("last_stack_index", None, {"type": "header_stack", "value": value.stack})
    result = stored(value)
    return operation("d2b", None, result) if value.type is t.BOOL else result


def valid_field(value: ir.Valid) -> Json:
    """Write the hidden field that says whether a header is valid."""
    if value.header.index is not None:
        # BMv2 counts the hidden field behind the declared ones.
        at = len(value.header.type.fields)
        return {
            "type": "expression",
            "value": {"op": "access_field", "left": header(value.header), "right": at},
        }
    return {"type": "field", "value": [value.header.name, "$valid$"]}


def operand(value: ir.Expr) -> Json:
    """Write a value within an expression, where action data is called local."""
    result = plain(value)
    if result["type"] == "runtime_data":
        return {"type": "local", "value": result["value"]}
    return result


def wrapped(value: ir.Expr, as_data: bool = False) -> Json:
    """Write a value as a primitive's parameter; `as_data` for truth values that are going to be stored."""
    result = plain(value)
    if as_data and value.type is t.BOOL:
        result = operation("b2d", None, result)
    if result["type"] in ("expression", "stack_field"):
        return {"type": "expression", "value": result}
    return result
