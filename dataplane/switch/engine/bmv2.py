"""The parts of a BMv2 JSON that code is generated from, as read-only objects.

The format is BMv2's docs/JSON_format.md, as p4c-bm2-ss writes it. Expressions and primitives stay the JSON's own
dictionaries: `expressions` and `actions` translate them. Whatever the generator has no translation for is refused
here or there with the P4 source position that the JSON carries; nothing is skipped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

from dataplane.switch.pipeline import PipelineRejected

Json = Mapping[str, Any]

MAX_HEADERS = 64
"""Validity is kept in one 64-bit word."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the P4 source, or what is known of it."""

    text: str

    @classmethod
    def of(cls, node: Json, otherwise: str) -> Position:
        """Read a node's `source_info`; `otherwise` names the node where the compiler left none."""
        info = node.get("source_info")
        if not info or "line" not in info:
            return cls(otherwise)
        name = str(info.get("filename", "")).removeprefix("./") or otherwise
        column = info.get("column")
        return cls(f"{name}:{info['line']}" + (f":{column}" if column is not None else ""))

    def __str__(self) -> str:
        return self.text


def refuse(position: Position | str, reason: str) -> NoReturn:
    """Raise PipelineRejected for a construct."""
    raise rejection(position, reason)


def rejection(position: Position | str, reason: str) -> PipelineRejected:
    """Return the error for a construct."""
    return PipelineRejected(f"{position}: {reason}")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a header type; `offset` counts bits from the header's start."""

    name: str
    width: int
    signed: bool
    offset: int


@dataclass(frozen=True)
class Header:
    """A header or metadata instance."""

    name: str
    type_name: str
    fields: tuple[Field, ...]
    metadata: bool
    index: int = -1
    """Bit number in the validity word; -1 for metadata."""

    @property
    def bits(self) -> int:
        return sum(field_.width for field_ in self.fields)

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return self.bits // 8

    @cached_property
    def by_name(self) -> dict[str, Field]:
        return {field_.name: field_ for field_ in self.fields}


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of an action."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Action:
    """An action, with its primitives as in the JSON."""

    id: int
    name: str
    params: tuple[Param, ...]
    primitives: tuple[Json, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class Key:
    """One component of a table's key."""

    name: str
    match_type: str
    header: str
    field: str
    width: int
    mask: int | None


@dataclass(frozen=True, slots=True)
class Call:
    """An action bound to its data."""

    action: Action
    data: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """A table of one of the two controls."""

    name: str
    position: Position
    keys: tuple[Key, ...]
    actions: tuple[Action, ...]
    size: int
    with_counters: bool
    with_timeout: bool
    """Rows know when they were hit last (support_timeout)."""
    default: Call | None
    default_const: bool
    next_by_action: Mapping[str, str | None]
    base_default_next: str | None
    entries: tuple[Json, ...]

    @property
    def kind(self) -> str:
        """Return how rows are found: `none` (no key), `exact`, `lpm` or `ternary`."""
        types = [key.match_type for key in self.keys]
        if not types:
            return "none"
        if any(type_ in ("ternary", "range", "optional") for type_ in types) or types.count("lpm") > 1:
            return "ternary"
        return "lpm" if "lpm" in types else "exact"


@dataclass(frozen=True, slots=True)
class Conditional:
    """An `if` of a control."""

    name: str
    position: Position
    expression: Json
    true_next: str | None
    false_next: str | None


@dataclass(frozen=True)
class Control:
    """Ingress or egress: a graph of tables and conditionals."""

    name: str
    init: str | None
    tables: Mapping[str, Table]
    conditionals: Mapping[str, Conditional]


@dataclass(frozen=True, slots=True)
class State:
    """A parser state."""

    name: str
    position: Position
    ops: tuple[Json, ...]
    key: tuple[Json, ...]
    transitions: tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Calculation:
    """A field list and an algorithm; `payload` says whether the rest of the packet follows the fields."""

    name: str
    algorithm: str
    inputs: tuple[Json, ...]
    payload: bool
    position: Position


@dataclass(frozen=True, slots=True)
class Checksum:
    """A declared checksum."""

    name: str
    position: Position
    header: str
    field: str
    calculation: Calculation
    condition: Json | None
    update: bool
    verify: bool


@dataclass(frozen=True, slots=True)
class Array:
    """A counter or register array; `width` is 0 for counters."""

    name: str
    size: int
    width: int
    position: Position


@dataclass(frozen=True, slots=True)
class Digest:
    """A learn list."""

    id: int
    name: str
    elements: tuple[Json, ...]


@dataclass(frozen=True)
class Program:
    """A whole BMv2 JSON."""

    source: str
    headers: Mapping[str, Header]
    errors: Mapping[str, int]
    init_state: str
    states: Mapping[str, State]
    deparser: tuple[str, ...]
    actions: Mapping[int, Action]
    ingress: Control
    egress: Control
    checksums: tuple[Checksum, ...]
    calculations: Mapping[str, Calculation]
    counters: Mapping[str, Array]
    registers: Mapping[str, Array]
    digests: Mapping[int, Digest]
    direct_counters: Mapping[str, str] = field(default_factory=dict)
    """Direct counter by the table it is attached to."""

    def header(self, name: str, position: Position | str) -> Header:
        """Find a header instance; stacks and unions are not instances."""
        found = self.headers.get(name)
        if found is None:
            refuse(position, f"header {name} is not a plain header (stacks and unions are not supported)")
        return found

    def field(self, header: str, name: str, position: Position | str) -> Field:
        """Find a field of an instance."""
        found = self.header(header, position).by_name.get(name)
        if found is None:
            refuse(position, f"field {header}.{name} does not exist")
        return found

    def has_field(self, header: str, name: str) -> bool:
        return header in self.headers and name in self.headers[header].by_name

    @property
    def packet_headers(self) -> tuple[Header, ...]:
        """Return the headers that can be in a packet, in order of their index."""
        return tuple(header for header in self.headers.values() if not header.metadata)

    @property
    def tables(self) -> tuple[Table, ...]:
        return (*self.ingress.tables.values(), *self.egress.tables.values())


def hexstr(text: str) -> int:
    """Read a hexstr, which may carry a minus sign."""
    negative = text.startswith("-")
    value = int(text.lstrip("-"), 16)
    return -value if negative else value
