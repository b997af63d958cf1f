"""Statements and declarations."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import types as t
from .expressions import Annotation, Call, Expr, Name, Node, TypeExpr

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
