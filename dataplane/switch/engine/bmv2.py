"""The parts of a BMv2 JSON that code is generated from, as read-only objects.

The format is BMv2's docs/JSON_format.md, as p4c-bm2-ss writes it. Expressions and primitives stay the JSON's own
dictionaries: `expressions` and `actions` translate them. Whatever the generator has no translation for is refused
here or there with the P4 source position that the JSON carries; nothing is skipped silently.
"""

from __future__ import annotations

import json
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


def parse_program(data: bytes) -> Program:
    """Read a BMv2 JSON; raises PipelineRejected."""
    try:
        root = json.loads(data)
    except ValueError as ex:
        raise PipelineRejected(f"the pipeline is no BMv2 JSON: {ex}") from ex
    if not isinstance(root, dict) or "pipelines" not in root or "parsers" not in root:
        raise PipelineRejected("the pipeline is no BMv2 JSON: it has no parsers or no pipelines")
    try:
        return _Reader(root).read()
    except (KeyError, TypeError, IndexError) as ex:
        raise PipelineRejected(f"the BMv2 JSON is malformed: {ex!r} is missing or of the wrong type") from ex


_REFUSED_LISTS = {
    "header_stacks": "header stacks are not supported",
    "header_unions": "header unions are not supported",
    "header_union_stacks": "stacks of header unions are not supported",
    "parse_vsets": "parser value sets are not supported",
    "meter_arrays": "meters are not supported",
    "extern_instances": "extern instances are not supported",
}


class _Reader:
    """Builds a Program from the JSON's root."""

    def __init__(self, root: Json) -> None:
        self.root = root
        self.source = str(root.get("program", "program.p4")).removeprefix("./")

    def read(self) -> Program:
        self._refuse_lists()
        headers = self._headers()
        calculations = {item["name"]: self._calculation(item) for item in self.root.get("calculations", ())}
        actions = {item["id"]: self._action(item) for item in self.root.get("actions", ())}
        pipelines = {item["name"]: item for item in self.root["pipelines"]}
        parser = self.root["parsers"][0]
        counters = self.root.get("counter_arrays", ())
        return Program(
            source=self.source,
            headers=headers,
            errors=dict(self.root.get("errors", ())),
            init_state=parser["init_state"],
            states={item["name"]: self._state(item) for item in parser["parse_states"]},
            deparser=self._deparser(),
            actions=actions,
            ingress=self._control(pipelines["ingress"], headers, actions),
            egress=self._control(pipelines["egress"], headers, actions),
            checksums=tuple(self._checksum(item, calculations) for item in self.root.get("checksums", ())),
            calculations=calculations,
            counters={
                item["name"]: Array(item["name"], int(item["size"]), 0, self._at(item, "counter"))
                for item in counters
                if not item.get("is_direct")
            },
            registers={item["name"]: self._register(item) for item in self.root.get("register_arrays", ())},
            digests={
                item["id"]: Digest(item["id"], item["name"], tuple(item["elements"]))
                for item in self.root.get("learn_lists", ())
            },
            direct_counters={item["binding"]: item["name"] for item in counters if item.get("is_direct")},
        )

    def _at(self, node: Json, kind: str) -> Position:
        return Position.of(node, f"{self.source}: {kind} {node.get('name', '')}".strip())

    def _refuse_lists(self) -> None:
        for name, reason in _REFUSED_LISTS.items():
            for item in self.root.get(name, ()):
                refuse(self._at(item, name.rstrip("s")), f"{reason} ({item.get('name', '?')})")

    def _headers(self) -> dict[str, Header]:
        types = {item["name"]: item for item in self.root["header_types"]}
        headers: dict[str, Header] = {}
        index = 0
        for item in self.root["headers"]:
            type_ = types[item["header_type"]]
            metadata = bool(item["metadata"])
            fields = self._fields(type_)
            header = Header(item["name"], type_["name"], fields, metadata, -1 if metadata else index)
            if not metadata and header.bits % 8:
                refuse(self._at(type_, "header type"), f"header {header.name} is no whole number of bytes")
            index += not metadata
            headers[header.name] = header
        if index > MAX_HEADERS:
            refuse(self.source, f"more than {MAX_HEADERS} headers are not supported")
        return headers

    def _fields(self, type_: Json) -> tuple[Field, ...]:
        fields: list[Field] = []
        offset = 0
        for item in type_["fields"]:
            if item[1] == "*":
                at = self._at(type_, "header type")
                refuse(at, f"varbit fields are not supported ({type_['name']}.{item[0]})")
            fields.append(Field(item[0], int(item[1]), len(item) > 2 and bool(item[2]), offset))
            offset += int(item[1])
        return tuple(fields)

    def _state(self, item: Json) -> State:
        return State(
            name=item["name"],
            position=self._at(item, "parser state"),
            ops=tuple(item.get("parser_ops", ())),
            key=tuple(item.get("transition_key", ())),
            transitions=tuple(item.get("transitions", ())),
        )

    def _deparser(self) -> tuple[str, ...]:
        deparser = self.root["deparsers"][0]
        order = tuple(deparser["order"])
        at = self._at(deparser, "deparser")
        if deparser.get("primitives"):
            refuse(at, "statements other than emit are not supported in the deparser")
        if len(set(order)) != len(order):
            refuse(at, "a header that is emitted twice is not supported")
        return order

    def _register(self, item: Json) -> Array:
        at = self._at(item, "register")
        width = int(item["bitwidth"])
        if width > 64:
            refuse(at, f"register {item['name']} is {width} bits wide; at most 64 are supported")
        return Array(item["name"], int(item["size"]), width, at)

    def _action(self, item: Json) -> Action:
        return Action(
            id=int(item["id"]),
            name=item["name"],
            params=tuple(Param(param["name"], int(param["bitwidth"])) for param in item["runtime_data"]),
            primitives=tuple(item["primitives"]),
            position=self._at(item, "action"),
        )

    def _calculation(self, item: Json) -> Calculation:
        inputs = tuple(element for element in item["input"] if element["type"] != "payload")
        return Calculation(
            name=item["name"],
            algorithm=item["algo"],
            inputs=inputs,
            payload=len(inputs) != len(item["input"]),
            position=self._at(item, "calculation"),
        )

    def _checksum(self, item: Json, calculations: Mapping[str, Calculation]) -> Checksum:
        calculation = calculations[item["calculation"]]
        header, name = item["target"]
        return Checksum(
            name=item["name"],
            position=Position.of(item, str(calculation.position)),
            header=header,
            field=name,
            calculation=calculation,
            condition=item.get("if_cond"),
            update=bool(item.get("update", True)),
            verify=bool(item.get("verify", True)),
        )

    def _control(self, item: Json, headers: Mapping[str, Header], actions: Mapping[int, Action]) -> Control:
        for profile in item.get("action_profiles", ()):
            refuse(
                self._at(profile, "action profile"), f"action profiles are not supported ({profile['name']})"
            )
        if item.get("action_calls"):
            refuse(self._at(item, "control"), "action_calls nodes are not supported")
        return Control(
            name=item["name"],
            init=item["init_table"],
            tables={table["name"]: self._table(table, headers, actions) for table in item["tables"]},
            conditionals={node["name"]: self._conditional(node) for node in item["conditionals"]},
        )

    def _conditional(self, item: Json) -> Conditional:
        return Conditional(
            item["name"],
            self._at(item, "condition"),
            item["expression"],
            item["true_next"],
            item["false_next"],
        )

    def _table(self, item: Json, headers: Mapping[str, Header], actions: Mapping[int, Action]) -> Table:
        at = self._at(item, "table")
        if item.get("type", "simple") != "simple":
            refuse(at, f"table {item['name']} has an action profile or selector, which is not supported")
        if item.get("direct_meters"):
            refuse(at, f"table {item['name']} has a direct meter, which is not supported")
        if item.get("support_timeout"):
            refuse(at, f"table {item['name']} asks for idle timeouts, which are not supported")
        ids = item.get("action_ids")
        if ids is None:
            by_name = {action.name: action for action in actions.values()}
            own = tuple(by_name[name] for name in item["actions"])
        else:
            own = tuple(actions[id_] for id_ in ids)
        default = item.get("default_entry")
        return Table(
            name=item["name"],
            position=at,
            keys=tuple(self._key(key, headers, at) for key in item["key"]),
            actions=own,
            size=int(item.get("max_size", 1024)) or 1024,
            with_counters=bool(item.get("with_counters")),
            default=_call(default, actions) if default else None,
            default_const=bool(default and default.get("action_const") and default.get("action_entry_const")),
            next_by_action=item["next_tables"],
            base_default_next=item.get("base_default_next"),
            entries=tuple(item.get("entries", ())),
        )

    def _key(self, item: Json, headers: Mapping[str, Header], at: Position) -> Key:
        match_type = item["match_type"]
        if match_type not in ("exact", "lpm", "ternary", "range", "optional"):
            refuse(at, f"match kind {match_type} is not supported")
        header, name = item["target"]
        if header not in headers:
            refuse(at, f"key {header}.{name} is no field of a plain header")
        width = 1 if name == "$valid$" else headers[header].by_name[name].width
        mask = item.get("mask")
        label = item.get("name") or f"{header}.{name}"
        return Key(label, match_type, header, name, width, hexstr(mask) if mask else None)


def _call(entry: Json, actions: Mapping[int, Action]) -> Call:
    return Call(actions[entry["action_id"]], tuple(hexstr(value) for value in entry.get("action_data", ())))
