"""P4 types after resolution.

Types that are defined by their shape (bit<8>, tuple<…>, stacks) compare by shape; types that are defined by their
declaration (headers, structs, enums, `type`) compare by identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import ast


class Type:
    """Base of all types; str() is how the user would write it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Bits(Type):
    """bit<w> or int<w>."""

    width: int
    signed: bool = False

    def __str__(self) -> str:
        return f"{'int' if self.signed else 'bit'}<{self.width}>"


@dataclass(frozen=True, slots=True)
class VarBits(Type):
    """varbit<w>."""

    width: int

    def __str__(self) -> str:
        return f"varbit<{self.width}>"


@dataclass(frozen=True, slots=True)
class Simple(Type):
    """A type that is just a word."""

    name: str

    def __str__(self) -> str:
        return self.name


UNKNOWN = Simple("(unknown)")
BOOL = Simple("bool")
INT = Simple("int")  # arbitrary precision, compile time only
STRING = Simple("string")
VOID = Simple("void")
ERROR = Simple("error")
MATCH_KIND = Simple("match_kind")
ANY = Simple("_")  # `default` and `_`, which fit everywhere
STATE = Simple("parser state")


@dataclass(frozen=True, slots=True)
class Tuple(Type):
    """tuple<…>, and what a list expression has."""

    elements: tuple[Type, ...]

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.elements))}>"


@dataclass(frozen=True, slots=True)
class Set(Type):
    """What a mask, a range or a value set has."""

    element: Type

    def __str__(self) -> str:
        return f"set<{self.element}>"


@dataclass(frozen=True, slots=True)
class Stack(Type):
    """A header stack."""

    element: Type
    size: int

    def __str__(self) -> str:
        return f"{self.element}[{self.size}]"


@dataclass(frozen=True, slots=True)
class FieldList(Type):
    """What `{ x = a }` has before it meets the struct that it is for."""

    names: tuple[str, ...]
    elements: tuple[Type, ...]

    def __str__(self) -> str:
        return "{" + ", ".join(f"{n} = {e}" for n, e in zip(self.names, self.elements, strict=True)) + "}"


@dataclass(slots=True, eq=False)
class StructLike(Type):
    """A struct, header or header_union."""

    kind: str
    name: str
    decl: ast.StructDecl
    fields: dict[str, Type] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def control_name(self) -> str:
        """Return the @name, or else the name."""
        return annotated_name(self.decl) or self.name


@dataclass(slots=True, eq=False)
class Enum(Type):
    """An enum without values."""

    name: str
    decl: ast.EnumDecl
    members: list[str]

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True, eq=False)
class SerEnum(Type):
    """An enum with an underlying type and values."""

    name: str
    decl: ast.EnumDecl
    underlying: Type
    members: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass(slots=True, eq=False)
class NewType(Type):
    """`type base name`."""

    name: str
    base: Type
    decl: ast.Typedef

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class TypeVar(Type):
    """A type parameter; its declaration makes it unique."""

    name: str
    decl: object

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Extern(Type):
    """An extern with its type arguments."""

    decl: ast.ExternDecl
    args: tuple[Type, ...] = ()

    def __str__(self) -> str:
        return self.decl.name + (f"<{', '.join(map(str, self.args))}>" if self.args else "")


@dataclass(frozen=True, slots=True)
class Block(Type):
    """A parser, control or package (type)."""

    decl: ast.ParserDecl | ast.ControlDecl | ast.PackageDecl
    args: tuple[Type, ...] = ()

    def __str__(self) -> str:
        return self.decl.name


@dataclass(frozen=True, slots=True)
class ActionType(Type):
    """An action."""

    decl: ast.Action

    def __str__(self) -> str:
        return f"action {self.decl.name}"


@dataclass(frozen=True, slots=True)
class TableType(Type):
    """A table."""

    decl: ast.Table

    def __str__(self) -> str:
        return f"table {self.decl.name}"


@dataclass(frozen=True, slots=True)
class ApplyResult(Type):
    """What table.apply() returns."""

    decl: ast.Table

    def __str__(self) -> str:
        return f"apply result of table {self.decl.name}"


@dataclass(frozen=True, slots=True)
class ActionRun(Type):
    """What table.apply().action_run is."""

    decl: ast.Table

    def __str__(self) -> str:
        return f"action_run of table {self.decl.name}"


@dataclass(frozen=True, slots=True)
class Callable(Type):
    """A function, method or built-in method; `owner` is the type that it belongs to."""

    name: str
    overloads: tuple[ast.Function, ...] = ()
    owner: Type | None = None

    def __str__(self) -> str:
        return f"function {self.name}"


@dataclass(frozen=True, slots=True)
class TypeOf(Type):
    """What the name of a type is, where an expression stands."""

    type: Type

    def __str__(self) -> str:
        return f"the type {self.type}"


def annotated_name(decl: ast.Decl) -> str | None:
    """Return what @name gives a declaration."""
    from . import ast

    annotation = decl.annotation("name")
    if annotation and annotation.args and isinstance(annotation.args[0], ast.String):
        return annotation.args[0].value
    return None


def underlying(kind: Type) -> Type:
    """Look through `type` and serializable enums to what is stored."""
    while True:
        if isinstance(kind, NewType):
            kind = kind.base
        elif isinstance(kind, SerEnum):
            kind = kind.underlying
        else:
            return kind


def width_of(kind: Type) -> int | None:
    """Return the number of bits of a type that has a fixed one."""
    kind = underlying(kind)
    if isinstance(kind, Bits):
        return kind.width
    if kind is BOOL:
        return 1
    if isinstance(kind, Enum) or kind is ERROR:
        return 32
    if isinstance(kind, Tuple):
        return _sum([width_of(e) for e in kind.elements])
    if isinstance(kind, StructLike) and kind.kind != "header_union":
        return _sum([width_of(e) for e in kind.fields.values()])
    if isinstance(kind, Stack):
        element = width_of(kind.element)
        return None if element is None else element * kind.size
    return None


def _sum(widths: list[int | None]) -> int | None:
    total = 0
    for width in widths:
        if width is None:
            return None
        total += width
    return total
