"""What a forwarding pipeline offers: P4Info and BMv2 JSON, joined by name and checked against each other.

P4Info gives ids and widths; the JSON gives what P4Info lacks: the default entries' arguments. Both must come from one
compilation, so each thing that P4Info names is looked up in the JSON and compared. `@hidden` tables exist in the JSON
only, and are no mismatch.

Values are plain `bit<W>`: types that P4Runtime translates to strings (`sdn_string`) are refused here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from finsy.proto import p4i, p4t

from dataplane.switch.p4runtime.errors import RequestRefused, invalid, unimplemented
from dataplane.switch.pipeline import ActionCall


class MatchKind(Enum):
    """The match kinds of P4Info, named as in the JSON."""

    EXACT = "exact"
    LPM = "lpm"
    TERNARY = "ternary"
    RANGE = "range"
    OPTIONAL = "optional"


_KINDS = {
    p4i.MatchField.EXACT: MatchKind.EXACT,
    p4i.MatchField.LPM: MatchKind.LPM,
    p4i.MatchField.TERNARY: MatchKind.TERNARY,
    p4i.MatchField.RANGE: MatchKind.RANGE,
    p4i.MatchField.OPTIONAL: MatchKind.OPTIONAL,
}
_NEEDS_PRIORITY = {MatchKind.TERNARY, MatchKind.RANGE, MatchKind.OPTIONAL}


@dataclass(frozen=True, slots=True)
class Field:
    """A value with an id: a key of a table, a parameter of an action, a field of a packet header."""

    id: int
    name: str
    width: int
    where: str
    """How messages name it: `table Ingress.route, field address`."""
    kind: MatchKind = MatchKind.EXACT

    @property
    def maximum(self) -> int:
        """Return the largest value."""
        return (1 << self.width) - 1


@dataclass(frozen=True, slots=True)
class ActionInfo:
    """An action with its parameters in order."""

    id: int
    name: str
    params: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table as P4Runtime sees it."""

    id: int
    name: str
    fields: tuple[Field, ...]
    actions: Mapping[int, ActionInfo]
    action_ids: Mapping[str, int]
    table_only: frozenset[int]
    default_only: frozenset[int]
    is_const: bool
    const_default: bool
    default: ActionCall
    needs_priority: bool
    idle_timeout: bool
    indirect: bool
    direct_counter: int | None
    """The id of the attached direct counter."""


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """A counter or register array."""

    id: int
    name: str
    size: int
    width: int = 0
    counts_packets: bool = True
    counts_bytes: bool = True


@dataclass(frozen=True, slots=True)
class DirectCounterInfo:
    """A counter with one cell for each row of a table."""

    id: int
    name: str
    table: int
    counts_packets: bool
    counts_bytes: bool


@dataclass(frozen=True, slots=True)
class DigestInfo:
    """A digest: the shape of the message that a packet may leave for the controller."""

    id: int
    name: str
    spec: p4t.P4DataTypeSpec


@dataclass(frozen=True)
class Schema:
    """All that a pipeline offers, by id and by name."""

    p4info: p4i.P4Info
    tables: dict[int, TableInfo] = field(default_factory=dict)
    counters: dict[int, ArrayInfo] = field(default_factory=dict)
    direct_counters: dict[int, DirectCounterInfo] = field(default_factory=dict)
    registers: dict[int, ArrayInfo] = field(default_factory=dict)
    digests: dict[int, DigestInfo] = field(default_factory=dict)
    packet_in: tuple[Field, ...] = ()
    packet_out: tuple[Field, ...] = ()


def parse_device_config(data: bytes) -> dict[str, Any]:
    """Parse `p4_device_config`, which is a BMv2 JSON file as it is."""
    if not data:
        raise invalid("p4_device_config is empty: send the BMv2 JSON that the P4 compiler wrote")
    try:
        program = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as ex:
        raise invalid(f"p4_device_config is not BMv2 JSON: {ex}") from ex
    if not isinstance(program, dict) or "pipelines" not in program:
        raise invalid("p4_device_config is JSON, but not BMv2 JSON: it has no pipelines")
    return program


def build_schema(p4info: p4i.P4Info, program: Mapping[str, Any]) -> Schema:
    """Join P4Info and BMv2 JSON; raises RequestRefused when they are not of one program."""
    return _Builder(p4info, program).build()


def _mismatch(what: str) -> RequestRefused:
    return invalid(f"P4Info and BMv2 JSON do not belong together: {what}")


class _Builder:
    """One pass over P4Info, with the JSON's objects indexed by name."""

    def __init__(self, p4info: p4i.P4Info, program: Mapping[str, Any]) -> None:
        self.p4info = p4info
        self.actions: dict[int, ActionInfo] = {}
        self.json_actions = {a["id"]: a for a in program.get("actions", [])}
        self.json_tables = {
            t["name"]: t for pipeline in program["pipelines"] for t in pipeline.get("tables", [])
        }
        self.json_counters = {c["name"]: c for c in program.get("counter_arrays", [])}
        self.json_registers = {r["name"]: r for r in program.get("register_arrays", [])}
        self.json_digests = {d["name"] for d in program.get("learn_lists", [])}

    def build(self) -> Schema:
        self.actions = {a.preamble.id: self.action(a) for a in self.p4info.actions}
        headers = {h.preamble.name: self.packet_header(h) for h in self.p4info.controller_packet_metadata}
        return Schema(
            p4info=self.p4info,
            tables={t.preamble.id: self.table(t) for t in self.p4info.tables},
            counters={c.preamble.id: self.counter(c) for c in self.p4info.counters},
            direct_counters={c.preamble.id: self.direct_counter(c) for c in self.p4info.direct_counters},
            registers={r.preamble.id: self.register(r) for r in self.p4info.registers},
            digests={d.preamble.id: self.digest(d) for d in self.p4info.digests},
            packet_in=headers.get("packet_in", ()),
            packet_out=headers.get("packet_out", ()),
        )

    def action(self, info: p4i.Action) -> ActionInfo:
        name = info.preamble.name
        params = tuple(
            _field(p.id, p.name, p.bitwidth, f"action {name}, parameter {p.name}") for p in info.params
        )
        return ActionInfo(info.preamble.id, name, params)

    def table(self, info: p4i.Table) -> TableInfo:
        name = info.preamble.name
        found = self.json_tables.get(name)
        if found is None:
            raise _mismatch(f"table {name} is missing in the JSON")
        fields = tuple(self.match_field(name, f) for f in info.match_fields)
        self.compare_keys(name, fields, found)
        actions = {ref.id: self.actions[ref.id] for ref in info.action_refs if ref.id in self.actions}
        self.compare_actions(name, actions.values(), found)
        counters = {c.preamble.id for c in self.p4info.direct_counters}
        return TableInfo(
            id=info.preamble.id,
            name=name,
            fields=fields,
            actions=actions,
            action_ids={a.name: a.id for a in actions.values()},
            table_only=frozenset(r.id for r in info.action_refs if r.scope == p4i.ActionRef.TABLE_ONLY),
            default_only=frozenset(r.id for r in info.action_refs if r.scope == p4i.ActionRef.DEFAULT_ONLY),
            is_const=info.is_const_table,
            const_default=bool(info.const_default_action_id),
            default=self.default_action(found),
            needs_priority=any(f.kind in _NEEDS_PRIORITY for f in fields),
            idle_timeout=info.idle_timeout_behavior != p4i.Table.NO_TIMEOUT,
            indirect=bool(info.implementation_id),
            direct_counter=next((i for i in info.direct_resource_ids if i in counters), None),
        )

    def match_field(self, table: str, info: p4i.MatchField) -> Field:
        kind = _KINDS.get(info.match_type)
        where = f"table {table}, field {info.name}"
        if kind is None:
            raise unimplemented(
                f"{where}: match kind {info.other_match_type or info.match_type!r} is not known"
            )
        return _field(info.id, info.name, info.bitwidth, where, kind)

    def compare_keys(self, table: str, fields: tuple[Field, ...], found: Mapping[str, Any]) -> None:
        keys = found.get("key", [])
        if len(keys) != len(fields):
            raise _mismatch(f"table {table} has {len(fields)} keys in P4Info, {len(keys)} in the JSON")
        for info, key in zip(fields, keys, strict=True):
            kind = key["match_type"]
            # p4c compiles optional to ternary; old versions wrote an exact match on isValid() as "valid".
            same = kind == info.kind.value or (kind, info.kind) in (
                ("ternary", MatchKind.OPTIONAL),
                ("valid", MatchKind.EXACT),
            )
            if not same or key.get("name", info.name) != info.name:
                raise _mismatch(
                    f"table {table}, key {info.name} ({info.kind.value}) is "
                    f"{key.get('name', 'unnamed')} ({kind}) in the JSON"
                )

    def compare_actions(self, table: str, actions: Iterable[ActionInfo], found: Mapping[str, Any]) -> None:
        compiled = {a["name"]: a for a in (self.json_actions[i] for i in found.get("action_ids", []))}
        for action in actions:
            if action.name not in compiled:
                raise _mismatch(f"action {action.name} of table {table} is missing in the JSON")
            widths = [p["bitwidth"] for p in compiled[action.name].get("runtime_data", [])]
            if widths != [p.width for p in action.params]:
                raise _mismatch(
                    f"action {action.name} takes bits {[p.width for p in action.params]} in P4Info, "
                    f"{widths} in the JSON"
                )

    def default_action(self, found: Mapping[str, Any]) -> ActionCall:
        entry = found.get("default_entry")
        if entry is None:
            return ActionCall("NoAction")
        data = tuple(int(value, 16) for value in entry.get("action_data", []))
        return ActionCall(self.json_actions[entry["action_id"]]["name"], data)

    def counter(self, info: p4i.Counter) -> ArrayInfo:
        found = self.json_counters.get(info.preamble.name)
        if found is None or found.get("is_direct") or found["size"] != info.size:
            raise _mismatch(f"counter {info.preamble.name} with {info.size} cells is missing in the JSON")
        packets, octets = _units(info.spec)
        return ArrayInfo(
            info.preamble.id, info.preamble.name, info.size, counts_packets=packets, counts_bytes=octets
        )

    def direct_counter(self, info: p4i.DirectCounter) -> DirectCounterInfo:
        found = self.json_counters.get(info.preamble.name)
        if found is None or not found.get("is_direct"):
            raise _mismatch(f"direct counter {info.preamble.name} is missing in the JSON")
        packets, octets = _units(info.spec)
        return DirectCounterInfo(info.preamble.id, info.preamble.name, info.direct_table_id, packets, octets)

    def register(self, info: p4i.Register) -> ArrayInfo:
        found = self.json_registers.get(info.preamble.name)
        if found is None or found["size"] != info.size:
            raise _mismatch(f"register {info.preamble.name} with {info.size} cells is missing in the JSON")
        return ArrayInfo(info.preamble.id, info.preamble.name, info.size, width=found["bitwidth"])

    def digest(self, info: p4i.Digest) -> DigestInfo:
        if info.preamble.name not in self.json_digests:
            raise _mismatch(f"digest {info.preamble.name} is missing in the JSON")
        return DigestInfo(info.preamble.id, info.preamble.name, info.type_spec)

    def packet_header(self, info: p4i.ControllerPacketMetadata) -> tuple[Field, ...]:
        name = info.preamble.name
        fields = tuple(_field(m.id, m.name, m.bitwidth, f"{name}, field {m.name}") for m in info.metadata)
        if sum(f.width for f in fields) % 8:
            raise invalid(f"the controller header {name} is not a whole number of bytes")
        return fields


def _field(id_: int, name: str, width: int, where: str, kind: MatchKind = MatchKind.EXACT) -> Field:
    if width <= 0:
        raise unimplemented(f"{where}: values that P4Runtime translates to strings are not offered")
    return Field(id_, name, width, where, kind)


def _units(spec: p4i.CounterSpec) -> tuple[bool, bool]:
    packets = spec.unit in (p4i.CounterSpec.PACKETS, p4i.CounterSpec.BOTH)
    octets = spec.unit in (p4i.CounterSpec.BYTES, p4i.CounterSpec.BOTH)
    return packets, octets
