"""Nodes, annotations, types as written, and expressions.

Expressions carry what the type checker finds out about them: `type`, `const` (the value, when it is known at compile
time) and, for names, `ref` (what is named). Nothing else is changed after parsing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import types as t


@dataclass(slots=True, eq=False)
class Node:
    """Something that was written from `pos` to `end`."""

    pos: int
    end: int


@dataclass(slots=True, eq=False)
class Annotation(Node):
    """`@name`, `@name(body)` or `@name[body]`; `body` are the tokens' texts, `args` the body's parsed expressions."""

    name: str
    body: list[str] | None = None
    structured: bool = False
    args: list[Expr] = field(default_factory=list)


# ---- types as written


@dataclass(slots=True, eq=False)
class TypeExpr(Node):
    """Base of types as written."""


@dataclass(slots=True, eq=False)
class BaseType(TypeExpr):
    """bool, error, void, string, int, match_kind, bit<w>, int<w>, varbit<w>; `width` is an expression."""

    name: str
    width: Expr | None = None


@dataclass(slots=True, eq=False)
class TypeName(TypeExpr):
    """A named type, with its type arguments if it has any."""

    name: str
    args: list[TypeExpr] | None = None
    absolute: bool = False


@dataclass(slots=True, eq=False)
class StackType(TypeExpr):
    """`header_type[size]`."""

    element: TypeExpr
    size: Expr


@dataclass(slots=True, eq=False)
class TupleType(TypeExpr):
    """`tuple<...>` and `list<...>`."""

    elements: list[TypeExpr]
    is_list: bool = False


@dataclass(slots=True, eq=False)
class DontCareType(TypeExpr):
    """`_` as a type argument."""


# ---- expressions


@dataclass(slots=True, eq=False)
class Expr(Node):
    """Base of expressions."""

    type: t.Type = field(default=t.UNKNOWN, init=False)
    const: Any = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class Number(Expr):
    """An integer literal."""

    value: int
    width: int | None = None
    signed: bool = False


@dataclass(slots=True, eq=False)
class Bool(Expr):
    """true or false."""

    value: bool


@dataclass(slots=True, eq=False)
class String(Expr):
    """A string literal."""

    value: str


@dataclass(slots=True, eq=False)
class Name(Expr):
    """A name; `ref` is the declaration that it means."""

    name: str
    absolute: bool = False
    ref: Any = field(default=None, init=False)


@dataclass(slots=True, eq=False)
class Member(Expr):
    """`expr.name`; `name_pos` is where the name stands."""

    expr: Expr
    name: str
    name_pos: int


@dataclass(slots=True, eq=False)
class Index(Expr):
    """`expr[index]`."""

    expr: Expr
    index: Expr


@dataclass(slots=True, eq=False)
class Slice(Expr):
    """`expr[high:low]`."""

    expr: Expr
    high: Expr
    low: Expr


@dataclass(slots=True, eq=False)
class Unary(Expr):
    """`! ~ - +`."""

    op: str
    expr: Expr


@dataclass(slots=True, eq=False)
class Binary(Expr):
    """Arithmetic, comparison, logic, `++`."""

    op: str
    left: Expr
    right: Expr


@dataclass(slots=True, eq=False)
class Ternary(Expr):
    """`cond ? yes : no`."""

    cond: Expr
    yes: Expr
    no: Expr


@dataclass(slots=True, eq=False)
class Cast(Expr):
    """`(type) expr`; `target` is None for a cast that the checker has put in."""

    target: TypeExpr | None
    expr: Expr


@dataclass(slots=True, eq=False)
class TypeRef(Expr):
    """A type where an expression stands: `error` in `error.NoMatch`, `counter` in `counter(8, …)`."""

    target: TypeExpr


@dataclass(slots=True, eq=False)
class Call(Expr):
    """A call or a constructor call; `names` are the arguments' names, if given."""

    func: Expr
    type_args: list[TypeExpr]
    args: list[Expr]
    names: list[str | None]


@dataclass(slots=True, eq=False)
class ListExpr(Expr):
    """`{ a, b }`, and the tuples of select cases and entries."""

    items: list[Expr]


@dataclass(slots=True, eq=False)
class StructExpr(Expr):
    """`{ x = a, y = b }`."""

    names: list[str]
    items: list[Expr]


@dataclass(slots=True, eq=False)
class Default(Expr):
    """`default`, or `_` as an argument or a key."""


@dataclass(slots=True, eq=False)
class Mask(Expr):
    """`value &&& mask`."""

    value: Expr
    mask: Expr


@dataclass(slots=True, eq=False)
class Range(Expr):
    """`low .. high`."""

    low: Expr
    high: Expr
