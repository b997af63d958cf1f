"""BMv2 JSON to the objects of `bmv2`, refusing what the generator has no translation for.

A JSON that is no BMv2 JSON, or lacks something, is one PipelineRejected as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from dataplane.switch.engine.bmv2 import (
    MAX_HEADERS,
    Action,
    Array,
    Calculation,
    Call,
    Checksum,
    Conditional,
    Control,
    Digest,
    Field,
    Header,
    Json,
    Key,
    Param,
    Position,
    Program,
    State,
    Table,
    hexstr,
    refuse,
)
from dataplane.switch.pipeline import PipelineRejected


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
            with_timeout=bool(item.get("support_timeout")),
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
