"""The syntax tree. Every node knows from where to where it was written.

Expressions carry what the type checker finds out about them: `type`, `const` (the value, when it is known at compile
time) and, for names, `ref` (what is named). Nothing else is changed after parsing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import types as t


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


# ---- statements


@dataclass(slots=True, eq=False)
class Stmt(Node):
    """Base of statements."""


@dataclass(slots=True, eq=False)
class Block(Stmt):
    """`{ ... }`, with declarations among the statements."""

    items: list[Stmt | Decl]
    annotations: list[Annotation] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Empty(Stmt):
    """`;`."""


@dataclass(slots=True, eq=False)
class Assign(Stmt):
    """`left = right`."""

    left: Expr
    right: Expr


@dataclass(slots=True, eq=False)
class CallStmt(Stmt):
    """A call for its effect."""

    call: Call


@dataclass(slots=True, eq=False)
class If(Stmt):
    """if / else."""

    cond: Expr
    then: Stmt
    orelse: Stmt | None


@dataclass(slots=True, eq=False)
class SwitchCase(Node):
    """`label: block`; block None falls through to the next case."""

    label: Expr
    block: Block | None


@dataclass(slots=True, eq=False)
class Switch(Stmt):
    """switch over an action_run or over a value."""

    expr: Expr
    cases: list[SwitchCase]


@dataclass(slots=True, eq=False)
class Return(Stmt):
    """return."""

    value: Expr | None


@dataclass(slots=True, eq=False)
class Exit(Stmt):
    """exit."""


# ---- declarations


@dataclass(slots=True, eq=False)
class Decl(Node):
    """Base of declarations; `pos` to `end` is the declared name."""

    name: str
    annotations: list[Annotation] = field(kw_only=True, default_factory=list)

    def annotation(self, name: str) -> Annotation | None:
        """Return the annotation of that name."""
        return next((a for a in self.annotations if a.name == name), None)


@dataclass(slots=True, eq=False)
class Param(Decl):
    """A parameter; direction is "", in, out or inout."""

    direction: str
    type_expr: TypeExpr
    default: Expr | None = None
    type: t.Type = field(default=t.UNKNOWN, init=False)
    of_action: bool = field(default=False, init=False)


@dataclass(slots=True, eq=False)
class TypeParam(Decl):
    """A type parameter of something generic."""


@dataclass(slots=True, eq=False)
class Const(Decl):
    """A constant."""

    type_expr: TypeExpr
    value: Expr
    type: t.Type = field(default=t.UNKNOWN, init=False)


@dataclass(slots=True, eq=False)
class Variable(Decl):
    """A variable."""

    type_expr: TypeExpr
    init: Expr | None
    type: t.Type = field(default=t.UNKNOWN, init=False)


@dataclass(slots=True, eq=False)
class Instance(Decl):
    """`type(args) name`: an extern, parser, control or package instance."""

    type_expr: TypeExpr
    args: list[Expr]
    names: list[str | None]
    type: t.Type = field(default=t.UNKNOWN, init=False)


@dataclass(slots=True, eq=False)
class FieldDecl(Decl):
    """A field of a header, struct or union."""

    type_expr: TypeExpr


@dataclass(slots=True, eq=False)
class StructDecl(Decl):
    """header, struct or header_union; `kind` is the keyword."""

    kind: str
    fields: list[FieldDecl]
    type_params: list[TypeParam]


@dataclass(slots=True, eq=False)
class EnumMember(Decl):
    """A member of an enum, error or match_kind."""

    value: Expr | None = None


@dataclass(slots=True, eq=False)
class EnumDecl(Decl):
    """enum, with the underlying type if it is serializable."""

    underlying: TypeExpr | None
    members: list[EnumMember]


@dataclass(slots=True, eq=False)
class ErrorDecl(Decl):
    """error { ... } and match_kind { ... }; `name` is the keyword."""

    members: list[EnumMember]


@dataclass(slots=True, eq=False)
class Typedef(Decl):
    """typedef (`distinct` False) or type."""

    target: TypeExpr
    distinct: bool


@dataclass(slots=True, eq=False)
class Function(Decl):
    """A function, an extern function (`body` None), or a method."""

    type_params: list[TypeParam]
    returns: TypeExpr | None
    params: list[Param]
    body: Block | None
    result: t.Type = field(default=t.UNKNOWN, init=False)


@dataclass(slots=True, eq=False)
class ExternDecl(Decl):
    """An extern type: constructors (named like it) and methods."""

    type_params: list[TypeParam]
    methods: list[Function]


@dataclass(slots=True, eq=False)
class Action(Decl):
    """An action."""

    params: list[Param]
    body: Block


@dataclass(slots=True, eq=False)
class KeyElement(Node):
    """`expr : match_kind`."""

    expr: Expr
    match_kind: Name
    annotations: list[Annotation]


@dataclass(slots=True, eq=False)
class ActionRef(Node):
    """An action in a table's list, default_action or entry; `call` is a Name or a Call of one."""

    call: Expr
    annotations: list[Annotation]


@dataclass(slots=True, eq=False)
class Entry(Node):
    """A row of `entries`."""

    keys: list[Expr]
    action: ActionRef
    annotations: list[Annotation]
    is_const: bool
    priority: Expr | None


@dataclass(slots=True, eq=False)
class Property(Node):
    """Any other `name = value` of a table."""

    name: str
    value: Expr
    is_const: bool
    annotations: list[Annotation]


@dataclass(slots=True, eq=False)
class Table(Decl):
    """A table."""

    keys: list[KeyElement]
    actions: list[ActionRef]
    default_action: ActionRef | None
    default_is_const: bool
    entries: list[Entry] | None
    entries_are_const: bool
    properties: dict[str, Property]


@dataclass(slots=True, eq=False)
class SelectCase(Node):
    """`keyset : state`."""

    keys: list[Expr]
    state: Name


@dataclass(slots=True, eq=False)
class Select(Node):
    """`select (exprs) { cases }`."""

    exprs: list[Expr]
    cases: list[SelectCase]


@dataclass(slots=True, eq=False)
class State(Decl):
    """A parser state; transition None means reject."""

    statements: list[Stmt | Decl]
    transition: Name | Select | None


@dataclass(slots=True, eq=False)
class ValueSet(Decl):
    """A parser value set."""

    element: TypeExpr
    size: Expr
    type: t.Type = field(default=t.UNKNOWN, init=False)


@dataclass(slots=True, eq=False)
class ParserDecl(Decl):
    """A parser, or (states None) a parser type."""

    type_params: list[TypeParam]
    params: list[Param]
    constructor_params: list[Param]
    locals: list[Decl]
    states: list[State] | None


@dataclass(slots=True, eq=False)
class ControlDecl(Decl):
    """A control, or (body None) a control type."""

    type_params: list[TypeParam]
    params: list[Param]
    constructor_params: list[Param]
    locals: list[Decl]
    body: Block | None


@dataclass(slots=True, eq=False)
class PackageDecl(Decl):
    """A package type."""

    type_params: list[TypeParam]
    params: list[Param]


@dataclass(slots=True, eq=False)
class Program(Node):
    """Everything at top level, in order."""

    decls: list[Decl]
