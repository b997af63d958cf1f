"""The deparser: what changed is written back, and only where the set of headers changed is the packet reshaped."""

from __future__ import annotations

from collections.abc import Sequence

from dataplane.switch.engine.bmv2 import Header, Program, State
from dataplane.switch.engine.checksums import ChecksumWriter, changing_headers
from dataplane.switch.engine.expressions import valid_bit
from dataplane.switch.engine.names import identifier
from dataplane.switch.engine.wire import pack


def emitted(program: Program) -> list[Header]:
    """Return the headers that the deparser emits, in its order; headers without bytes take no part."""
    headers = [program.header(name, "deparser") for name in program.deparser]
    return [header for header in headers if header.size]


def reshapes(program: Program) -> bool:
    """Tell whether a packet can leave with other headers than it came with."""
    if changing_headers(program) or any(
        op["op"] == "advance" for s in program.states.values() for op in s.ops
    ):
        return True
    return order_differs(program) or bool(set(extracted(program)) - set(program.deparser))


def extracted(program: Program) -> list[str]:
    """Return the headers that some parser state extracts."""
    return [
        op["parameters"][0]["value"]
        for state in program.states.values()
        for op in state.ops
        if op["op"] == "extract" and op["parameters"][0]["type"] == "regular"
    ]


def order_differs(program: Program) -> bool:
    """Tell whether some path through the parser extracts in another order than the deparser emits."""
    place = {name: index for index, name in enumerate(program.deparser)}

    def visit(state: State, last: int) -> bool:
        for op in state.ops:
            if op["op"] == "extract" and op["parameters"][0]["value"] in place:
                at = place[op["parameters"][0]["value"]]
                if at <= last:
                    return True
                last = at
        following = {t["next_state"] for t in state.transitions if t["next_state"] is not None}
        return any(visit(program.states[name], last) for name in following)

    return visit(program.states[program.init_state], -1)


def deparser_source(program: Program, checksums: Sequence[ChecksumWriter]) -> str:
    """Return the C source of the deparser."""
    headers = emitted(program)
    updates = [writer for writer in checksums if writer.checksum.update]
    parts = [writer.prepare_function() for writer in updates]
    parts += [writer.update_function() for writer in updates]
    parts += [_write_function(header, index, updates) for index, header in enumerate(headers)]
    if reshapes(program):
        parts.append(_reshape_function(program, headers))
    body = [f"checksum{writer.number}_prepare(p);" for writer in updates]
    body.append("p->where.emitted = p->valid & DEPARSED;")
    body += [f"write_{identifier(header.name)}(skb, p);" for header in headers]
    body += [f"checksum{writer.number}_update(skb, p);" for writer in updates]
    lines = ["static __always_inline void deparse(struct __sk_buff *skb, struct packet *p)", "{"]
    parts.append("\n".join([*lines, *(f"\t{line}" for line in body), "}"]))
    return "\n\n".join(parts)


def _write_function(header: Header, index: int, checksums: Sequence[ChecksumWriter]) -> str:
    """Return the function that packs a header, and writes it to the packet if it was there and differs."""
    name, bit = identifier(header.name), valid_bit(header)
    # The bytes of Ethernet are not in skb->csum, and a header's own checksum balances the header's changes.
    balanced = index == 0 or any(writer.compensates == header.name for writer in checksums)
    flags = "0" if balanced else "BPF_F_RECOMPUTE_CSUM"
    lines = [
        f"static __always_inline void write_{name}(struct __sk_buff *skb, struct packet *p)",
        "{",
        f"\tif (!is_valid(p, {bit}))",
        "\t\treturn;",
        *(f"\t{line}" for line in pack(header, f"p->{name}", f"p->out.{name}")),
        f"\tif (!(p->where.extracted & {bit}) || same_bytes(p->out.{name}, p->raw.{name}, {header.size}))",
        "\t\treturn;",
        f"\tbpf_skb_store_bytes(skb, p->where.at[{header.index}], p->out.{name}, {header.size}, {flags});",
        f"\tp->changed |= {bit};",
        "}",
    ]
    return "\n".join(lines)


def _reshape_function(program: Program, headers: Sequence[Header]) -> str:
    """Return the function that gives the packet the headers that the pipeline left valid."""
    ordered = "1" if order_differs(program) else "p->gap || p->where.emitted != p->where.extracted"
    lines = [
        "static __always_inline bool reshape(struct __sk_buff *skb, struct packet *p)",
        "{",
        "\tu32 size = 0;",
        "",
        f"\tif (!({ordered}))",
        "\t\treturn true;",
    ]
    for header in headers:
        name, bit = identifier(header.name), valid_bit(header)
        lines += [
            f"\tif (p->where.emitted & {bit}) {{",
            f"\t\tsize += {header.size};",
            "\t\t/* with the checksum as it is by now */",
            f"\t\tif (p->where.extracted & {bit})",
            f"\t\t\tbpf_skb_load_bytes(skb, p->where.at[{header.index}], p->out.{name}, {header.size});",
            "\t}",
        ]
    lines += ["\tif (!resize(skb, p, p->offset, size))", "\t\treturn false;", "\tsize = 0;"]
    for header in headers:
        name, bit = identifier(header.name), valid_bit(header)
        lines += [
            f"\tif (p->where.emitted & {bit}) {{",
            f"\t\tif (bpf_skb_store_bytes(skb, size, p->out.{name}, {header.size}, 0))",
            "\t\t\treturn false;",
            f"\t\tsize += {header.size};",
            "\t}",
        ]
    return "\n".join([*lines, "\treturn true;", "}"])
