"""What the middle of the compiler makes of a program: v1model's blocks with everything inlined.

Values live in fields of headers (BMv2's word for every named group of fields: real headers, `standard_metadata`, and
`scalars`, which holds the user's metadata and all variables). Struct-typed things have dissolved into their fields.
Every node that p4c gives a `source_info` has a span.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from . import ast
from . import types as t

Span = tuple[int, int]


# ---- values


@dataclass(frozen=True, slots=True)
class Expr:
    """Base of values; `type` is bit<>, int<>, bool, varbit<>, error or an enum, with `type` looked through."""

    type: t.Type


@dataclass(frozen=True, slots=True)
class Const(Expr):
    """A number or truth value."""

    value: int


@dataclass(frozen=True, slots=True)
class Text(Expr):
    """A string literal (log_msg)."""

    value: str


@dataclass(frozen=True, slots=True)
class Field(Expr):
    """A field of a header instance."""

    header: str
    name: str


@dataclass(frozen=True, slots=True)
class LastField(Expr):
    """stack.last.field."""

    stack: str
    name: str


@dataclass(frozen=True, slots=True)
class ElementField(Expr):
    """stack[index].field with an index known only when it runs; `at` counts the header's fields."""

    stack: str
    index: Expr
    name: str
    at: int


@dataclass(frozen=True, slots=True)
class Data(Expr):
    """An action's parameter, set by the control plane."""

    index: int


@dataclass(frozen=True, slots=True)
class Op(Expr):
    """An operator as BMv2 names it; unary ones have no `left`."""

    op: str
    left: Expr | None
    right: Expr


@dataclass(frozen=True, slots=True)
class Mux(Expr):
    """cond ? yes : no."""

    cond: Expr
    yes: Expr
    no: Expr


@dataclass(frozen=True, slots=True)
class Valid(Expr):
    """header.isValid()."""

    header: HeaderRef


@dataclass(frozen=True, slots=True)
class Lookahead(Expr):
    """packet.lookahead, `width` bits from `offset`."""

    offset: int
    width: int


@dataclass(frozen=True, slots=True)
class LastIndex(Expr):
    """stack.lastIndex."""

    stack: str


# ---- headers


@dataclass(frozen=True, slots=True)
class HeaderRef:
    """A header: an instance, or (`index`) an element of a stack chosen when it runs, or its `next` or `last`."""

    name: str
    type: t.StructLike
    index: Expr | None = None
    which: str = ""  # "", "next", "last"


@dataclass(frozen=True, slots=True)
class UnionRef:
    """A header union; `which` as for headers, for unions in stacks."""

    name: str
    type: t.StructLike
    which: str = ""


@dataclass(frozen=True, slots=True)
class StackRef:
    """A stack of headers or unions."""

    name: str
    type: t.Stack


@dataclass(frozen=True, slots=True)
class Struct:
    """Something of struct type: its fields. `header` names BMv2's group of fields, if it is one as a whole."""

    type: t.Type
    fields: dict[str, Value]
    header: str | None = None


@dataclass(frozen=True, slots=True)
class PacketRef:
    """packet_in or packet_out."""


@dataclass(frozen=True, slots=True)
class DontCare:
    """`_` as an argument."""


Value = Expr | HeaderRef | UnionRef | StackRef | Struct | PacketRef | DontCare


# ---- steps: what actions and parser states do


@dataclass(frozen=True, slots=True)
class Step:
    """One primitive, with BMv2's name; parameters are values or what `Ref` names."""

    op: str
    params: tuple[Value | Ref, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Ref:
    """A parameter that names something: a counter array, a calculation, a list of fields (by index)."""

    kind: str
    value: object


@dataclass(slots=True, eq=False)
class FieldListDecl:
    """A learn list (digest) or field list, in the order of BMv2's numbers."""

    name: str
    elements: list[Expr]
    span: Span | None


@dataclass(slots=True, eq=False)
class Calculation:
    """A hash or checksum over values."""

    name: str
    algorithm: str
    inputs: list[Expr]
    with_payload: bool
    span: Span | None


@dataclass(slots=True, eq=False)
class Checksum:
    """A checksum that is verified or updated."""

    name: str
    target: Field
    calculation: Calculation
    condition: Expr
    update: bool
    span: Span


# ---- actions, tables, instances


@dataclass(slots=True, eq=False)
class Param:
    """A parameter that the control plane sets."""

    name: str
    type: t.Type
    decl: ast.Param


@dataclass(slots=True, eq=False)
class Action:
    """An action with its body; one for every table that uses it, as p4c has it."""

    name: str
    decl: ast.Action | None
    params: list[Param] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Extern:
    """An instance of counter, register, …: constructor arguments by parameter name."""

    name: str
    type: t.Extern
    decl: ast.Instance
    args: dict[str, object]
    table: Table | None = None
    result: Expr | None = None  # of a direct meter


@dataclass(slots=True, eq=False)
class Key:
    """A key of a table."""

    value: Expr
    kind: str
    name: str
    type: t.Type
    element: ast.KeyElement
    mask: int | None = None


@dataclass(slots=True, eq=False)
class EntryKey:
    """What one key of an entry matches: `value` with `extra` (mask or upper bound); None: everything."""

    value: int | None
    extra: int | None = None


@dataclass(slots=True, eq=False)
class Entry:
    """A row that the program declares."""

    keys: list[EntryKey]
    action: Action
    args: list[int]
    priority: int
    span: Span


@dataclass(slots=True, eq=False)
class ActionUse:
    """An action in a table's list."""

    action: Action
    annotations: list[ast.Annotation]


@dataclass(slots=True, eq=False)
class Table:
    """A table; `decl` is None for those that the compiler makes of statements."""

    name: str
    decl: ast.Table | None
    span: Span | None
    keys: list[Key] = field(default_factory=list)
    actions: list[ActionUse] = field(default_factory=list)
    default: Action | None = None
    default_args: list[int] = field(default_factory=list)
    default_const: bool = False
    entries: list[Entry] | None = None
    entries_const: bool = False
    size: int | None = None
    support_timeout: bool = False
    counter: Extern | None = None
    meter: Extern | None = None
    implementation: Extern | None = None


# ---- control flow


@dataclass(slots=True, eq=False)
class Node:
    """Base of what the flow passes; `next` fields are filled in by the linker."""

    name: str


@dataclass(slots=True, eq=False)
class Apply(Node):
    """Apply a table, then go on depending on hit, or on the action that ran, or always the same way."""

    table: Table
    hit: list[Node] | None = None
    miss: list[Node] | None = None
    cases: list[tuple[list[Action], list[Node]]] | None = None
    otherwise: list[Node] | None = None
    span: Span | None = None


@dataclass(slots=True, eq=False)
class Branch(Node):
    """Go one way or the other."""

    cond: Expr
    yes: list[Node]
    no: list[Node]
    span: Span


@dataclass(slots=True, eq=False)
class Leave(Node):
    """Go on behind the inlined control, function or action with that label; None: leave the pipeline."""

    label: object | None


@dataclass(slots=True, eq=False)
class Labelled(Node):
    """What a `Leave` with this label leaves."""

    label: object
    body: list[Node]


# ---- parsers


@dataclass(frozen=True, slots=True)
class Case:
    """One way out of a state; keys as in entries, or a value set."""

    keys: list[EntryKey]
    value_set: str | None
    next_state: str | None


@dataclass(slots=True, eq=False)
class State:
    """A parser state."""

    name: str
    steps: list[Step] = field(default_factory=list)
    keys: list[Expr] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class ValueSet:
    """A parser value set."""

    name: str
    type: t.Type
    size: int
    decl: ast.ValueSet


@dataclass(slots=True, eq=False)
class HeaderInstance:
    """A header, stack, union, or group of metadata fields."""

    name: str
    type: t.Type
    kind: str  # header, union, stack, metadata


@dataclass(slots=True, eq=False)
class Pipeline:
    """Ingress or egress."""

    name: str
    decl: ast.ControlDecl
    body: list[Node] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Program:
    """A v1model program."""

    errors: list[str]
    enums: list[t.Enum]
    scalars: list[tuple[str, t.Type]] = field(default_factory=list)
    headers: list[HeaderInstance] = field(default_factory=list)
    standard_metadata: t.StructLike | None = None
    states: list[State] = field(default_factory=list)
    value_sets: list[ValueSet] = field(default_factory=list)
    pipelines: list[Pipeline] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    externs: list[Extern] = field(default_factory=list)
    deparser: ast.ControlDecl | None = None
    deparser_order: list[str] = field(default_factory=list)
    deparser_steps: list[Step] = field(default_factory=list)
    calculations: list[Calculation] = field(default_factory=list)
    checksums: list[Checksum] = field(default_factory=list)
    learn_lists: list[FieldListDecl] = field(default_factory=list)
    field_lists: list[FieldListDecl] = field(default_factory=list)
    digests: list[tuple[str, t.Type]] = field(default_factory=list)
    controller_headers: list[t.StructLike] = field(default_factory=list)
    main: ast.Instance | None = None
