"""Primitives to C statements: the bodies of actions, and the same calls in parser states.

One entry in `_PRIMITIVES` per BMv2 primitive; what is not there is refused by name. `_jump` and `_jump_if_zero`, by
which BMv2 runs conditionals inside an action, become gotos.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from dataplane.switch.engine.bmv2 import Action, Json, Position, Program, hexstr, refuse
from dataplane.switch.engine.expressions import Kind, Translator, branches, valid_bit
from dataplane.switch.engine.hashing import feed
from dataplane.switch.engine.names import container, declare, global_identifier, identifier, is_wide

log = logging.getLogger(__name__)


class Primitives:
    """Translates primitive calls at one position."""

    def __init__(self, program: Program, translator: Translator) -> None:
        self.program = program
        self.t = translator

    def translate(self, node: Json) -> list[str]:
        """Return the statements of one primitive call."""
        handler = _PRIMITIVES.get(node["op"])
        if handler is None:
            refuse(self.t.position, f"{_REASONS.get(node['op'], node['op'])} is not supported")
        return handler(self, node["parameters"])

    def assign_to(self, node: Json, value: Json) -> list[str]:
        """Return statements that assign to an lvalue."""
        header, name = self._lvalue(node)
        if (header, name) == ("standard_metadata", "mcast_grp") and value.get("value") not in (
            "0x0000",
            "0x00",
        ):
            refuse(self.t.position, "multicast (standard_metadata.mcast_grp) is not supported")
        return self.t.assign(header, name, value)

    def _lvalue(self, node: Json) -> tuple[str, str]:
        while node["type"] == "expression" and "op" not in node["value"]:
            node = node["value"]
        if node["type"] != "field":
            refuse(self.t.position, f"assignment to {node['type']} is not supported")
        return node["value"][0], node["value"][1]

    def _store(self, node: Json, code: str) -> list[str]:
        """Return statements that assign computed C code to a field of at most 64 bits."""
        header_name, name = self._lvalue(node)
        header, field = self.t.find(header_name, name)
        if is_wide(field.width):
            refuse(
                self.t.position, f"{header_name}.{name} has more than 64 bits, which is not supported here"
            )
        mask = "" if field.width == 64 else f" & {(1 << field.width) - 1:#x}ULL"
        return [f"p->{identifier(header.name)}.{identifier(name)} = ({code}){mask};", "settle();"]

    def assign(self, parameters: list[Json]) -> list[str]:
        return self.assign_to(parameters[0], parameters[1])

    def add_header(self, parameters: list[Json]) -> list[str]:
        header = self.program.header(parameters[0]["value"], self.t.position)
        return [f"p->valid |= {valid_bit(header)};"]

    def remove_header(self, parameters: list[Json]) -> list[str]:
        header = self.program.header(parameters[0]["value"], self.t.position)
        return [f"p->valid &= ~{valid_bit(header)};"]

    def assign_header(self, parameters: list[Json]) -> list[str]:
        target, source = (self.program.header(node["value"], self.t.position) for node in parameters)
        one, other = identifier(target.name), identifier(source.name)
        copy = f"__builtin_memcpy(&p->{one}, &p->{other}, sizeof(p->{one}));"
        if target.metadata or source.metadata:
            return [copy]
        return [
            f"if (is_valid(p, {valid_bit(source)})) {{",
            f"\t{copy}",
            f"\tp->valid |= {valid_bit(target)};",
            "} else {",
            f"\tp->valid &= ~{valid_bit(target)};",
            "}",
            "settle();",
        ]

    def mark_to_drop(self, parameters: list[Json]) -> list[str]:
        return ["p->standard_metadata.egress_spec = DROP_PORT;"]

    def exit(self, parameters: list[Json]) -> list[str]:
        return ["p->exited = 1;", "return;"]

    def count(self, parameters: list[Json]) -> list[str]:
        array = self.program.counters[parameters[0]["value"]]
        index = self.t.value(parameters[1]).operand
        return [f"count(p, bpf_map_lookup_elem(&{global_identifier(array.name)}, &(u32){{{index}}}));"]

    def register_read(self, parameters: list[Json]) -> list[str]:
        array = self.program.registers[parameters[1]["value"]]
        index = self.t.value(parameters[2]).operand
        lines = self._store(parameters[0], "cell ? *cell : 0")
        return [
            f"u64 *cell = bpf_map_lookup_elem(&{global_identifier(array.name)}, &(u32){{{index}}});",
            *lines,
        ]

    def register_write(self, parameters: list[Json]) -> list[str]:
        array = self.program.registers[parameters[0]["value"]]
        index, value = self.t.value(parameters[1]).operand, self.t.value(parameters[2])
        mask = (1 << array.width) - 1
        return [
            f"u64 *cell = bpf_map_lookup_elem(&{global_identifier(array.name)}, &(u32){{{index}}});",
            "if (cell)",
            f"\t*cell = {value.operand} & {mask:#x}ULL;",
        ]

    def hash(self, parameters: list[Json]) -> list[str]:
        calculation = self.program.calculations[parameters[2]["value"]]
        base, size = self.t.value(parameters[1]), self.t.value(parameters[3])
        lines = feed(calculation, self.t)
        # BMv2's modify_field_with_hash_based_offset: a maximum of 0 yields the base.
        return [
            *lines,
            f"u64 size = {size.operand};",
            *self._store(parameters[0], f"{base.operand} + (size ? hash % size : 0)"),
        ]

    def random(self, parameters: list[Json]) -> list[str]:
        low, high = self.t.value(parameters[1]).operand, self.t.value(parameters[2]).operand
        return [f"u64 low = {low}, high = {high};", *self._store(parameters[0], "random_between(low, high)")]

    def digest(self, parameters: list[Json]) -> list[str]:
        digest = self.program.digests[hexstr(parameters[1]["value"])]
        lines = [f"struct digest_{digest.id} *event = bpf_ringbuf_reserve(&p4_events, sizeof(*event), 0);"]
        lines += ["if (event) {", "\tevent->kind = EVENT_DIGEST;", f"\tevent->id = {digest.id};"]
        for index, element in enumerate(digest.elements):
            expr = self.t.translate(element)
            if expr.kind is Kind.WIDE:
                lines.append(
                    f"\t__builtin_memcpy(event->value{index}, {expr.code}, {container(expr.width)});"
                )
            else:
                lines.append(f"\tevent->value{index} = {expr.code};")
            if branches(element):
                lines.append("\tsettle();")
        return [*lines, "\tbpf_ringbuf_submit(event, 0);", "} else {", "\tlost(LOST_DIGEST);", "}"]

    def log_msg(self, parameters: list[Json]) -> list[str]:
        log.warning("%s: log_msg has no effect in the embedded switch", self.t.position)
        return []


_Handler = Callable[[Primitives, list[Json]], list[str]]

_PRIMITIVES: dict[str, _Handler] = {
    "assign": Primitives.assign,
    "modify_field": Primitives.assign,
    "set": Primitives.assign,
    "add_header": Primitives.add_header,
    "remove_header": Primitives.remove_header,
    "assign_header": Primitives.assign_header,
    "copy_header": Primitives.assign_header,
    "mark_to_drop": Primitives.mark_to_drop,
    "drop": Primitives.mark_to_drop,
    "exit": Primitives.exit,
    "count": Primitives.count,
    "register_read": Primitives.register_read,
    "register_write": Primitives.register_write,
    "modify_field_with_hash_based_offset": Primitives.hash,
    "modify_field_rng_uniform": Primitives.random,
    "generate_digest": Primitives.digest,
    "log_msg": Primitives.log_msg,
    "no_op": lambda self, parameters: [],
}

_REASONS = {
    "clone_ingress_pkt_to_egress": "clone (I2E)",
    "clone_egress_pkt_to_egress": "clone (E2E)",
    "execute_meter": "a meter",
    "assign_VL": "assignment of varbit fields",
    "push": "push_front of a header stack",
    "pop": "pop_front of a header stack",
}


def digest_structs(program: Program) -> Iterable[str]:
    """Yield the ring buffer records of the program's digests."""
    for digest in program.digests.values():
        lines = [f"/* digest {digest.name} */", f"struct digest_{digest.id} {{", "\tu32 kind;", "\tu32 id;"]
        for index, width in enumerate(digest_widths(program, digest.id)):
            lines.append(f"\t{declare(f'value{index}', width) if is_wide(width) else f'u64 value{index}'};")
        yield "\n".join([*lines, "} __attribute__((packed, aligned(8)));"])


def digest_widths(program: Program, id_: int) -> list[int]:
    """Return the widths of a digest's fields."""
    digest = program.digests[id_]
    translator = Translator(program, Position(f"digest {digest.name}"))
    return [translator.translate(element).width for element in digest.elements]


def data_name(name: str) -> str:
    return f"{name}_data"


def data_struct(action: Action, name: str) -> str:
    """Return the struct of an action's parameters."""
    lines = [f"\t{declare(identifier(param.name), param.width)};" for param in action.params]
    return "\n".join([f"struct {data_name(name)} {{", *lines, "};"])


def action_function(program: Program, action: Action, name: str) -> str:
    """Return the C function of an action."""
    translator = Translator(program, action.position, action.params)
    data = f", const struct {data_name(name)} *data" if action.params else ""
    targets = {_target(node, action) for node in action.primitives if node["op"].startswith("_jump")}
    body: list[str] = []
    for index, node in enumerate(action.primitives):
        if index in targets:
            body.append(f"at_{index}:;")
        translator.position = Position.of(node, str(action.position))
        body += _primitive(program, action, translator, node)
    if len(action.primitives) in targets:
        body.append(f"at_{len(action.primitives)}:;")
    head = f"/* action {action.name}, {action.position} */"
    signature = f"static __always_inline void {name}(struct __sk_buff *skb, struct packet *p{data})"
    return "\n".join([head, signature, "{", *(f"\t{line}" for line in body), "}"])


def _primitive(program: Program, action: Action, translator: Translator, node: Json) -> list[str]:
    if node["op"] == "_jump":
        return [f"goto at_{_target(node, action)};"]
    if node["op"] == "_jump_if_zero":
        condition = translator.truth(node["parameters"][0])
        return [f"if (!({condition}))", f"\tgoto at_{_target(node, action)};"]
    lines = Primitives(program, translator).translate(node)
    if not lines:
        return []
    if len(lines) == 1:
        return [f"{lines[0]}  /* {translator.position} */"]
    return [f"{{  /* {translator.position} */", *(f"\t{line}" for line in lines), "}"]


def _target(node: Json, action: Action) -> int:
    target = node["parameters"][-1]
    if target["type"] != "hexstr":
        refuse(action.position, f"a computed {node['op']} is not supported")
    return hexstr(target["value"])
