"""The parser: one C function per state, and the function that goes from state to state.

Headers are copied out of the packet one by one: the bytes stay in `p->raw` (what the checksums' old values and the
deparser's "has it changed?" refer to), the fields go to the header's struct. A packet that is too short ends
the parser as in BMv2: the error is noted, and the packet goes on with the headers so far.

A packet-out's header is not in the packet: it travels beside it (see `cpu_port`), so that the packet itself stays an
ordinary Ethernet frame that the kernel can segment. `front_states` finds the states that read it.
"""

from __future__ import annotations

from collections.abc import Iterable

from dataplane.switch.engine.actions import Primitives
from dataplane.switch.engine.bmv2 import Header, Json, Position, Program, State, hexstr, refuse, rejection
from dataplane.switch.engine.expressions import (
    Expr,
    Kind,
    Translator,
    bits,
    truncate,
    valid_bit,
    wide_literal,
)
from dataplane.switch.engine.names import container, identifier
from dataplane.switch.engine.wire import load_bytes, unpack

INGRESS_PORT = ["standard_metadata", "ingress_port"]
FRONT_BYTES = 120
"""The longest packet-out header."""


class ParserTranslator(Translator):
    """Expressions of parser states, which may look ahead.

    `front` is where in the packet-out header the state goes on reading, None in states that read the packet.
    """

    def __init__(self, program: Program, position: Position, front: int | None) -> None:
        super().__init__(program, position)
        self.front = front
        self.prelude: list[str] = []
        self._count = 0

    def lookahead(self, offset: int, width: int) -> Expr:
        """Emit the load before the statement, and return the value."""
        if self.front is not None:
            refuse(self.position, "lookahead in the part of the parser that reads the packet-out header")
        first, last = offset // 8, (offset + width + 7) // 8
        size = last - first
        if size > 8:
            refuse(self.position, f"lookahead of {width} bits is not supported (at most 64, within 8 bytes)")
        name = f"ahead{self._count}"
        self._count += 1
        self.prelude += [
            f"u8 {name}[8];",
            f"if (!look_ahead(skb, p, {first}, {name}, {size}))",
            "\treturn too_short(p);",
        ]
        shift = last * 8 - offset - width
        whole = load_bytes(name, 0, size)
        return bits(f"(({whole} >> {shift}) & {(1 << width) - 1:#x}ULL)", width)


def front_states(program: Program, cpu_port: int) -> list[str]:
    """Return the states that read a packet-out's header: those that only packets of the CPU port reach.

    They form a chain from the start state; the chain ends at the first state that other ports reach too, or that
    decides by anything but the ingress port.
    """
    others = _reachable(program, cpu_port, is_cpu=False)
    chain: list[str] = []
    name: str | None = program.init_state
    while name is not None and name not in chain:
        state = program.states[name]
        if name in others and name != program.init_state:
            break
        if name not in others:
            chain.append(name)
        elif any(op["op"] != "set" for op in state.ops):
            break  # the start state itself reads from every packet
        following = _next_states(program, state, cpu_port, is_cpu=True)
        if len(following) != 1:
            break
        name = following[0]
    return chain


def _reachable(program: Program, cpu_port: int, is_cpu: bool) -> set[str]:
    found: set[str] = set()
    waiting = [program.init_state]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [n for n in _next_states(program, program.states[name], cpu_port, is_cpu) if n is not None]
    return found


def _next_states(program: Program, state: State, cpu_port: int, is_cpu: bool) -> list[str | None]:
    """Return where a state may go, deciding selects on the ingress port alone."""
    by_port = (
        len(state.key) == 1 and state.key[0]["type"] == "field" and state.key[0]["value"] == INGRESS_PORT
    )
    found: list[str | None] = []
    for transition in state.transitions:
        if by_port and transition["type"] == "hexstr":
            mask = hexstr(transition["mask"]) if transition["mask"] else 0xFFFF
            to_cpu = cpu_port & mask == hexstr(transition["value"]) & mask
            if is_cpu and to_cpu:
                return [*found, transition["next_state"]]
            if is_cpu or (to_cpu and not transition["mask"]):
                continue
        found.append(transition["next_state"])
    return list(dict.fromkeys(found))


def front_offsets(program: Program, cpu_port: int) -> dict[str, int]:
    """Return the states that read a packet-out's header, and where in it each begins; one too long is refused."""
    offsets: dict[str, int] = {}
    end = 0
    for name in front_states(program, cpu_port):
        offsets[name] = end
        end += sum(header.size for header in _extracted(program, program.states[name]))
    if end > FRONT_BYTES:
        position = program.states[next(iter(offsets))].position
        refuse(position, f"a packet-out header of {end} bytes is not supported (at most {FRONT_BYTES})")
    return offsets


def front_headers(program: Program, cpu_port: int) -> list[Header]:
    """Return the headers that a packet-out has in front of its Ethernet frame."""
    return [
        header
        for name in front_states(program, cpu_port)
        for header in _extracted(program, program.states[name])
    ]


def _extracted(program: Program, state: State) -> list[Header]:
    return [
        program.header(op["parameters"][0]["value"], state.position)
        for op in state.ops
        if op["op"] == "extract"
    ]


def parser_states(program: Program) -> str:
    """Return the enumeration of the states."""
    numbers = [f"\tSTATE_{identifier(name)}," for name in _topological(program)]
    return "\n".join(["enum parser_state {", "\tSTATE_DONE,", *numbers, "};"])


def parser_source(program: Program, cpu_port: int) -> str:
    """Return the C functions of the parser."""
    order = _topological(program)
    front = front_offsets(program, cpu_port)
    parts = [_state_function(program, program.states[name], front.get(name)) for name in order]
    return "\n\n".join([*parts, _driver(program, order)])


def _topological(program: Program) -> list[str]:
    """Order the states that can be reached; a loop is refused."""
    order: list[str] = []
    active: set[str] = set()

    def visit(name: str) -> None:
        if name in order:
            return
        state = program.states[name]
        if name in active:
            refuse(state.position, f"parser state {name} is part of a loop, which is not supported")
        active.add(name)
        for transition in state.transitions:
            if transition["next_state"] is not None:
                visit(transition["next_state"])
        active.remove(name)
        order.append(name)

    visit(program.init_state)
    return order[::-1]


def _driver(program: Program, order: Iterable[str]) -> str:
    lines = [
        "static __always_inline void parse(struct __sk_buff *skb, struct packet *p)",
        "{",
        "\tenum parser_state next;",
        "",
        f"\tgoto {identifier(program.init_state)};",
    ]
    for name in order:
        state = program.states[name]
        targets = dict.fromkeys(t["next_state"] for t in state.transitions if t["next_state"] is not None)
        lines.append(f"{identifier(name)}:")
        lines.append(f"\tnext = state_{identifier(name)}(skb, p);")
        for target in targets:
            lines += [f"\tif (next == STATE_{identifier(target)})", f"\t\tgoto {identifier(target)};"]
        lines.append("\treturn;")
    return "\n".join([*lines, "}"])


def _state_function(program: Program, state: State, front: int | None) -> str:
    translator = ParserTranslator(program, state.position, front)
    body: list[str] = []
    for op in state.ops:
        lines = _operation(program, translator, op)
        body += [*_take(translator), *lines]
    body += _transitions(program, state, translator)
    head = f"/* parser state {state.name}, {state.position} */"
    signature = (
        f"static __always_inline enum parser_state state_{identifier(state.name)}"
        "(struct __sk_buff *skb, struct packet *p)"
    )
    return "\n".join([head, signature, "{", *(f"\t{line}" for line in body), "}"])


def _take(translator: ParserTranslator) -> list[str]:
    lines, translator.prelude = translator.prelude, []
    return lines


def _operation(program: Program, translator: ParserTranslator, op: Json) -> list[str]:
    kind, parameters = op["op"], op["parameters"]
    primitives = Primitives(program, translator)
    if kind == "extract":
        return _extract(program, translator, parameters[0])
    if kind == "set":
        return primitives.assign_to(parameters[0], parameters[1])
    if kind == "primitive":
        lines = primitives.translate(parameters[0])
        return ["{", *(f"\t{line}" for line in lines), "}"]
    if kind == "verify":
        condition = translator.truth(parameters[0])
        error = truncate(translator.value(parameters[1]), 32)
        return [f"if (!({condition})) {{", f"\tp->error = {error};", "\treturn STATE_DONE;", "}"]
    if kind == "advance":
        amount = translator.value(parameters[0])
        if translator.front is not None:
            refuse(translator.position, "advance over a packet-out's header is not supported")
        return [f"if (!advance(p, {amount.operand}))", "\treturn too_short(p);"]
    raise rejection(translator.position, f"parser operation {kind} is not supported")


def _extract(program: Program, translator: ParserTranslator, target: Json) -> list[str]:
    if target["type"] != "regular":
        refuse(translator.position, f"extract into a {target['type']} is not supported")
    header = program.header(target["value"], translator.position)
    name = identifier(header.name)
    raw = f"p->raw.{name}"
    if header.size == 0:
        return [f"p->valid |= {valid_bit(header)};"]
    if translator.front is None:
        load = f"extract(skb, p, {raw}, {header.size})"
    else:
        load = f"extract_front(p, {translator.front}, {raw}, {header.size})"
    lines = [f"if (!{load})", "\treturn too_short(p);"]
    lines += unpack(header, f"p->{name}", raw)
    lines.append(f"p->valid |= {valid_bit(header)};")
    if translator.front is not None:
        translator.front += header.size
    else:
        lines.append(f"p->where.extracted |= {valid_bit(header)};")
        lines.append(f"p->where.at[{header.index}] = p->offset - {header.size};")
    return lines


def _transitions(program: Program, state: State, translator: ParserTranslator) -> list[str]:
    keys: list[Expr] = []
    body: list[str] = []
    for index, node in enumerate(state.key):
        expr = translator.translate(node)
        if expr.kind is not Kind.WIDE:
            body += [*_take(translator), f"u64 key{index} = {expr.code};"]
            expr = Expr(f"key{index}", expr.kind, expr.width)
        keys.append(expr)
    for transition in state.transitions:
        name = transition["next_state"]
        target = f"STATE_{identifier(name)}" if name is not None else "STATE_DONE"
        if transition["type"] == "default":
            return [*body, f"return {target};"]
        if transition["type"] != "hexstr":
            refuse(state.position, f"a transition by {transition['type']} is not supported")
        body += [f"if ({_match(keys, transition, translator)})", f"\treturn {target};"]
    if state.transitions:
        body.append(f"p->error = {program.errors.get('NoMatch', 2)};")
    return [*body, "return STATE_DONE;"]


def _match(keys: list[Expr], transition: Json, translator: Translator) -> str:
    """Return the condition of a transition; values are concatenations of byte-padded components."""
    value = hexstr(transition["value"])
    mask = hexstr(transition["mask"]) if transition["mask"] else None
    tests: list[str] = []
    for expr in reversed(keys):
        size = (expr.width + 7) // 8 * 8
        part, part_mask = value & ((1 << size) - 1), None if mask is None else mask & ((1 << size) - 1)
        value, mask = value >> size, None if mask is None else mask >> size
        full = part_mask is None or part_mask & ((1 << expr.width) - 1) == (1 << expr.width) - 1
        if expr.kind is Kind.WIDE:
            if not full:
                refuse(translator.position, "a mask on a select of more than 64 bits is not supported")
            tests.append(
                f"same_bytes({expr.code}, {wide_literal(part, expr.width)}, {container(expr.width)})"
            )
        elif full:
            tests.append(f"{expr.code} == {part:#x}")
        elif part_mask:
            tests.append(f"({expr.code} & {part_mask:#x}) == {part & part_mask:#x}")
    return " && ".join(reversed(tests)) or "1"
