"""Writes BMv2 JSON as p4c-bm2-ss does, from a few lines of Python: the programs of these tests.

Expressions: an int is a constant, "ipv4.ttl" a field, "$0" an action's first parameter, a tuple (op, left, right) an
operation (unary: (op, operand)), True and False are themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

Node = Any

STANDARD_METADATA = [
    ("ingress_port", 9), ("egress_spec", 9), ("egress_port", 9), ("instance_type", 32), ("packet_length", 32),
    ("enq_timestamp", 32), ("enq_qdepth", 19), ("deq_timedelta", 32), ("deq_qdepth", 19),
    ("ingress_global_timestamp", 48), ("egress_global_timestamp", 48), ("mcast_grp", 16), ("egress_rid", 16),
    ("checksum_error", 1), ("parser_error", 32), ("priority", 3), ("_padding", 3),
]  # fmt: skip

ETHERNET = [("dst", 48), ("src", 48), ("ethertype", 16)]
IPV4 = [
    ("version", 4), ("ihl", 4), ("tos", 8), ("total_length", 16), ("identification", 16), ("flags", 3),
    ("fragment_offset", 13), ("ttl", 8), ("protocol", 8), ("checksum", 16), ("src", 32), ("dst", 32),
]  # fmt: skip
TCP = [
    ("src_port", 16), ("dst_port", 16), ("sequence", 32), ("acknowledgement", 32), ("data_offset", 4),
    ("reserved", 4), ("flags", 8), ("window", 16), ("checksum", 16), ("urgent", 16),
]  # fmt: skip
UDP = [("src_port", 16), ("dst_port", 16), ("length", 16), ("checksum", 16)]

EGRESS_SPEC = "standard_metadata.egress_spec"
INGRESS_PORT = "standard_metadata.ingress_port"


def expr(node: Node) -> dict[str, Any]:
    """Return a type-value object."""
    if isinstance(node, dict):
        return node
    if isinstance(node, bool):
        return {"type": "bool", "value": node}
    if isinstance(node, int):
        return {"type": "hexstr", "value": hex(node)}
    if isinstance(node, str):
        if node.startswith("$"):
            return {"type": "runtime_data", "value": int(node[1:])}
        return {"type": "field", "value": field(node)}
    op, *operands = node
    if op == "?":
        inner = {"op": op, "cond": expr(operands[0]), "left": expr(operands[1]), "right": expr(operands[2])}
    else:
        left = None if len(operands) == 1 else expr(operands[0])
        inner = {"op": op, "left": left, "right": expr(operands[-1])}
    return {"type": "expression", "value": {"type": "expression", "value": inner}}


def field(name: str) -> list[str]:
    return name.split(".", 1)


def valid(header: str) -> Node:
    """Return hdr.isValid() as p4c writes it."""
    return ("d2b", f"{header}.$valid$")


def primitive(op: str, *parameters: Any) -> dict[str, Any]:
    return {"op": op, "parameters": list(parameters), "source_info": source(1)}


def assign(target: str, value: Node) -> dict[str, Any]:
    return primitive("assign", expr(target), expr(value))


def header_primitive(op: str, *headers: str) -> dict[str, Any]:
    return primitive(op, *({"type": "header", "value": name} for name in headers))


def drop() -> dict[str, Any]:
    return header_primitive("mark_to_drop", "standard_metadata")


def source(line: int, column: int = 8) -> dict[str, Any]:
    return {"filename": "./test.p4", "line": line, "column": column, "source_fragment": "…"}


class Builder:
    """A program under construction; every method returns what later ones refer to."""

    def __init__(self, metadata: Sequence[tuple[str, int]] = ()) -> None:
        self.root: dict[str, Any] = {
            "header_types": [], "headers": [], "header_stacks": [], "header_union_types": [], "header_unions": [],
            "header_union_stacks": [], "field_lists": [],
            "errors": [["NoError", 0], ["PacketTooShort", 1], ["NoMatch", 2], ["StackOutOfBounds", 3]],
            "enums": [], "parse_vsets": [], "meter_arrays": [], "counter_arrays": [], "register_arrays": [],
            "calculations": [], "learn_lists": [], "actions": [], "checksums": [], "extern_instances": [],
            "program": "test.p4", "__meta__": {"version": [2, 23], "compiler": "tests"},
        }  # fmt: skip
        self.states: list[dict[str, Any]] = []
        self.order: list[str] = []
        self.controls: dict[str, dict[str, Any]] = {
            name: {
                "name": name,
                "id": index,
                "init_table": None,
                "tables": [],
                "action_profiles": [],
                "conditionals": [],
            }
            for index, name in enumerate(("ingress", "egress"))
        }
        self._header("scalars", [*metadata, ("_padding_0", 8)], metadata=True)
        self._header("standard_metadata", STANDARD_METADATA, metadata=True)

    def _header(self, name: str, fields: Iterable[tuple[str, int]], metadata: bool) -> None:
        index = len(self.root["headers"])
        rows = [[field, width, False] for field, width in fields]
        self.root["header_types"].append({"name": f"{name}_t", "id": index, "fields": rows})
        entry = {"name": name, "id": index, "header_type": f"{name}_t", "metadata": metadata, "pi_omit": True}
        self.root["headers"].append(entry)

    def header(self, name: str, fields: Iterable[tuple[str, int]], emit: bool = True) -> None:
        """Declare a packet header, emitted after those declared before it."""
        self._header(name, fields, metadata=False)
        if emit:
            self.order.append(name)

    def state(
        self,
        name: str,
        *headers: str,
        select: Sequence[Node] = (),
        cases: Sequence[tuple[str, str | None]] = (),
        default: str | None = None,
        ops: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Declare a parser state; a case is (hex value, or "value/mask"; next state)."""
        extracts = [{"op": "extract", "parameters": [{"type": "regular", "value": h}]} for h in headers]
        transitions: list[dict[str, Any]] = []
        for text, target in cases:
            value, _, mask = text.partition("/")
            transitions.append({"type": "hexstr", "value": value, "mask": mask or None, "next_state": target})
        transitions.append({"type": "default", "value": None, "mask": None, "next_state": default})
        self.states.append(
            {
                "name": name,
                "id": len(self.states),
                "parser_ops": [*extracts, *ops],
                "transitions": transitions,
                "transition_key": [expr(key) for key in select],
            }
        )

    def action(self, name: str, params: Sequence[tuple[str, int]] = (), *primitives: dict[str, Any]) -> int:
        """Declare an action; returns its id."""
        id_ = len(self.root["actions"])
        runtime = [{"name": param, "bitwidth": width} for param, width in params]
        self.root["actions"].append(
            {"name": name, "id": id_, "runtime_data": runtime, "primitives": list(primitives)}
        )
        return id_

    def table(
        self,
        name: str,
        keys: Sequence[tuple[str, str]],
        actions: Sequence[int],
        default: int,
        next_: str | dict[str, str | None] | None = None,
        control: str = "ingress",
        size: int = 64,
        const: bool = False,
        data: Sequence[int] = (),
        counters: bool = False,
        entries: Sequence[dict[str, Any]] = (),
    ) -> str:
        """Declare a table; `next_` is what follows whatever happens, or a dictionary as in the JSON."""
        named = (
            {self.root["actions"][id_]["name"]: next_ for id_ in actions}
            if not isinstance(next_, dict)
            else next_
        )
        types = [kind for _, kind in keys]
        match = next((t for t in ("range", "ternary", "lpm") if t in types), "exact")
        entry = {
            "name": name,
            "id": len(self.controls[control]["tables"]),
            "source_info": source(10 + len(self.controls[control]["tables"])),
            "key": [
                {"match_type": kind, "name": target, "target": field(target), "mask": None}
                for target, kind in keys
            ],
            "match_type": match,
            "type": "simple",
            "max_size": size,
            "with_counters": counters,
            "support_timeout": False,
            "direct_meters": None,
            "action_ids": list(actions),
            "actions": [self.root["actions"][id_]["name"] for id_ in actions],
            "base_default_next": next_ if not isinstance(next_, dict) else None,
            "next_tables": named,
            "default_entry": {
                "action_id": default,
                "action_const": const,
                "action_data": [hex(value) for value in data],
                "action_entry_const": const,
            },
        }
        if entries:
            entry["entries"] = list(entries)
        self.controls[control]["tables"].append(entry)
        if counters:
            self.root["counter_arrays"].append(
                {"name": f"{name}_counter", "id": 0, "is_direct": True, "binding": name}
            )
        return name

    def call(self, action: int, next_: str | None = None, control: str = "ingress") -> str:
        """Declare the keyless table by which p4c calls an action directly."""
        name = f"tbl_{action}_{len(self.controls[control]['tables'])}"
        return self.table(name, [], [action], action, next_, control, const=True)

    def condition(self, test: Node, then: str | None, otherwise: str | None, control: str = "ingress") -> str:
        """Declare an `if`."""
        name = f"node_{len(self.controls[control]['conditionals'])}"
        self.controls[control]["conditionals"].append(
            {
                "name": name,
                "id": 0,
                "source_info": source(50),
                "expression": expr(test)["value"] if isinstance(test, tuple) else expr(test),
                "true_next": then,
                "false_next": otherwise,
            }
        )
        return name

    def start(self, node: str, control: str = "ingress") -> None:
        self.controls[control]["init_table"] = node

    def calculation(self, inputs: Sequence[Any], algorithm: str = "csum16", payload: bool = False) -> str:
        """Declare a field list; a constant in it is (value, width)."""
        elements: list[dict[str, Any]] = []
        for item in inputs:
            if isinstance(item, tuple):
                elements.append({"type": "hexstr", "value": hex(item[0]), "bitwidth": item[1]})
            else:
                elements.append({"type": "field", "value": field(item)})
        if payload:
            elements.append({"type": "payload", "value": None})
        name = f"calc_{len(self.root['calculations'])}"
        self.root["calculations"].append({"name": name, "id": 0, "algo": algorithm, "input": elements})
        return name

    def checksum(
        self,
        target: str,
        inputs: Sequence[Any],
        condition: Node = True,
        payload: bool = False,
        verify: bool = False,
    ) -> None:
        """Declare update_checksum or verify_checksum."""
        calculation = self.calculation(inputs, payload=payload)
        test = expr(condition)
        self.root["checksums"].append(
            {
                "name": f"cksum_{len(self.root['checksums'])}",
                "id": 0,
                "source_info": source(90),
                "target": field(target),
                "type": "generic",
                "calculation": calculation,
                "verify": verify,
                "update": not verify,
                "if_cond": test["value"] if isinstance(condition, tuple) else test,
            }
        )

    def hash(
        self, target: str, algorithm: str, inputs: Sequence[Any], base: Node, size: Node
    ) -> dict[str, Any]:
        """Return a call of the hash extern."""
        calculation = {"type": "calculation", "value": self.calculation(inputs, algorithm)}
        return primitive(
            "modify_field_with_hash_based_offset", expr(target), expr(base), calculation, expr(size)
        )

    def digest(self, name: str, elements: Sequence[Node]) -> dict[str, Any]:
        """Declare a learn list and return the call that sends it."""
        id_ = len(self.root["learn_lists"]) + 1
        self.root["learn_lists"].append(
            {"id": id_, "name": name, "elements": [expr(item) for item in elements]}
        )
        return primitive("generate_digest", expr(1), expr(id_))

    def json(self) -> bytes:
        """Return the finished program."""
        parser = {
            "name": "parser",
            "id": 0,
            "init_state": self.states[0]["name"],
            "parse_states": self.states,
        }
        deparser = {
            "name": "deparser",
            "id": 0,
            "source_info": source(99),
            "order": self.order,
            "primitives": [],
        }
        root = self.root | {
            "parsers": [parser],
            "deparsers": [deparser],
            "pipelines": list(self.controls.values()),
        }
        return json.dumps(root).encode()


IPV4_LIST = [f"ipv4.{name}" for name, _ in IPV4 if name != "checksum"]
TCP_LIST = [
    "ipv4.src", "ipv4.dst", (0, 8), "ipv4.protocol", "scalars.l4_length",
    *(f"tcp.{name}" for name, _ in TCP if name != "checksum"),
]  # fmt: skip
UDP_LIST = [
    "ipv4.src", "ipv4.dst", (0, 8), "ipv4.protocol", "scalars.l4_length", "udp.src_port", "udp.dst_port", "udp.length",
]  # fmt: skip


def nat_parser(builder: Builder) -> None:
    """Declare and parse Ethernet, IPv4, TCP and UDP, and keep their checksums."""
    builder.header("ethernet", ETHERNET)
    builder.header("ipv4", IPV4)
    builder.header("tcp", TCP)
    builder.header("udp", UDP)
    builder.state("start", "ethernet", select=["ethernet.ethertype"], cases=[("0x0800", "parse_ipv4")])
    builder.state(
        "parse_ipv4",
        "ipv4",
        select=["ipv4.ihl", "ipv4.fragment_offset", "ipv4.protocol"],
        cases=[("0x05000006", "parse_tcp"), ("0x05000011", "parse_udp")],
    )
    builder.state("parse_tcp", "tcp")
    builder.state("parse_udp", "udp")
    builder.checksum("ipv4.checksum", IPV4_LIST, valid("ipv4"))
    builder.checksum("tcp.checksum", TCP_LIST, valid("tcp"), payload=True)
    condition = ("and", valid("udp"), ("!=", "udp.checksum", 0))
    builder.checksum("udp.checksum", UDP_LIST, condition, payload=True)


def nat(control_port: bool = False) -> bytes:
    """Return a program that rewrites addresses and ports per destination, exact, and counts."""
    b = Builder([("l4_length", 16)])
    nat_parser(b)
    no_action = b.action("NoAction")
    drop_ = b.action("Ingress.drop", (), drop())
    rewrite = b.action(
        "Ingress.rewrite",
        [("port", 9), ("src", 32), ("dst", 32), ("src_port", 16), ("dst_port", 16), ("mac", 48)],
        assign(EGRESS_SPEC, "$0"),
        assign("ipv4.src", "$1"),
        assign("ipv4.dst", "$2"),
        assign("tcp.src_port", "$3"),
        assign("tcp.dst_port", "$4"),
        assign("udp.src_port", "$3"),
        assign("udp.dst_port", "$4"),
        assign("ethernet.dst", "$5"),
        assign("ipv4.ttl", ("&", ("+", "ipv4.ttl", 0xFF), 0xFF)),
    )
    table = b.table(
        "Ingress.nat",
        [("ipv4.dst", "exact"), (INGRESS_PORT, "exact")],
        [rewrite, no_action, drop_],
        drop_,
        counters=True,
    )
    b.start(b.condition(valid("ipv4"), table, b.call(drop_)))
    return b.json()


def forwarder() -> bytes:
    """Return a program that rewrites IPv4 addresses and MACs by destination, ports untouched."""
    b = Builder([("l4_length", 16)])
    nat_parser(b)
    drop_ = b.action("Ingress.drop", (), drop())
    rewrite = b.action(
        "Ingress.rewrite",
        [("port", 9), ("src", 32), ("dst", 32), ("mac", 48)],
        assign(EGRESS_SPEC, "$0"),
        assign("ipv4.src", "$1"),
        assign("ipv4.dst", "$2"),
        assign("ethernet.dst", "$3"),
        assign("ipv4.ttl", ("&", ("+", "ipv4.ttl", 0xFF), 0xFF)),
    )
    table = b.table(
        "Ingress.nat",
        [("ipv4.dst", "exact"), (INGRESS_PORT, "exact")],
        [rewrite, drop_],
        drop_,
        counters=True,
    )
    b.start(b.condition(valid("ipv4"), table, b.call(drop_)))
    return b.json()


PACKET_IN = [("port", 16), ("reason", 8)]
PACKET_OUT = [("port", 16), ("operation", 8)]
OP_SEND, OP_RESUME = 0, 1


def controller() -> bytes:
    """Return a program that sends to the controller what its table says, and takes it back.

    A packet-out with OP_SEND leaves on its port, one with OP_RESUME goes through the table as if it had come in there.
    """
    b = Builder([("l4_length", 16), ("in_port", 16)])
    b.header("packet_in", PACKET_IN)
    b.header("packet_out", PACKET_OUT, emit=False)
    b.state("start", select=[INGRESS_PORT], cases=[("0x00ff", "parse_packet_out")], default="parse_ethernet")
    b.state("parse_packet_out", "packet_out", default="parse_ethernet")
    states, b.states = b.states, []
    nat_parser(b)
    b.states[0]["name"] = "parse_ethernet"
    b.states = states + b.states
    for id_, state in enumerate(b.states):
        state["id"] = id_
    drop_ = b.action("Ingress.drop", (), drop())
    forward = b.action(
        "Ingress.forward",
        [("port", 9), ("src", 32), ("dst", 32)],
        assign(EGRESS_SPEC, "$0"),
        assign("ipv4.src", "$1"),
        assign("ipv4.dst", "$2"),
    )
    punt = b.action(
        "Ingress.punt",
        [("reason", 8)],
        b.digest("seen_t", ["ipv4.src", "ethernet.src", "scalars.in_port"]),
        header_primitive("add_header", "packet_in"),
        assign("packet_in.port", "scalars.in_port"),
        assign("packet_in.reason", "$0"),
        assign(EGRESS_SPEC, 255),
    )
    set_port = b.action("set_port", (), assign("scalars.in_port", INGRESS_PORT))
    take = b.action(
        "take",
        (),
        assign("scalars.in_port", "packet_out.port"),
        header_primitive("remove_header", "packet_out"),
        assign(EGRESS_SPEC, ("&", "packet_out.port", 0x1FF)),
    )
    table = b.table(
        "Ingress.where",
        [("ipv4.dst", "ternary"), ("scalars.in_port", "exact")],
        [forward, punt, drop_],
        drop_,
    )
    resume = b.condition(("==", "packet_out.operation", OP_RESUME), table, None)
    b.start(b.condition(valid("packet_out"), b.call(take, resume), b.call(set_port, table)))
    return b.json()
