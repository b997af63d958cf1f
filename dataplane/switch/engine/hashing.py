"""The `hash` extern: C code that feeds a field list to a hash byte by byte.

As in BMv2 the fields are packed back to back, most significant bit first, the last byte filled up with zero bits, and
fields of headers that are not valid are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.switch.engine.bmv2 import Calculation, Json, hexstr, refuse
from dataplane.switch.engine.expressions import Kind, Translator, constant, valid_bit

ALGORITHMS = {"crc32", "crc16", "csum16", "xor16", "identity"}


@dataclass(frozen=True, slots=True)
class Piece:
    """An element of a field list; `header` is the packet header that must be valid for it to count."""

    code: str
    width: int
    wide: bool
    header: str | None


def pieces(calculation: Calculation, translator: Translator) -> list[Piece]:
    """Translate a field list."""
    found: list[Piece] = []
    for node in calculation.inputs:
        if node["type"] == "header":
            header = translator.program.header(node["value"], translator.position)
            found += [_field({"value": [header.name, field.name]}, translator) for field in header.fields]
        elif node["type"] == "field":
            found.append(_field(node, translator))
        elif node["type"] == "hexstr":
            width = int(node["bitwidth"])
            if width > 64:
                refuse(
                    translator.position, "a constant of more than 64 bits in a field list is not supported"
                )
            found.append(Piece(constant(hexstr(node["value"])).code, width, False, None))
        else:
            refuse(translator.position, f"{node['type']} in a field list is not supported")
    return found


def _field(node: Json, translator: Translator) -> Piece:
    header_name, name = node["value"]
    header, field = translator.find(header_name, name)
    expr = translator.field(header_name, name)
    code = f"({expr.code} & {(1 << field.width) - 1:#x})" if expr.kind is Kind.SIGNED else expr.code
    return Piece(code, field.width, expr.kind is Kind.WIDE, None if header.metadata else valid_bit(header))


def feed(calculation: Calculation, translator: Translator) -> list[str]:
    """Return statements that leave the hash of the field list in the variable `hash`."""
    algorithm = calculation.algorithm
    if algorithm not in ALGORITHMS:
        refuse(translator.position, f"hash algorithm {algorithm} is not supported")
    lines = [f"struct hash state = {algorithm}_start();"]
    group: list[Piece] = []
    for piece in pieces(calculation, translator):
        group.append(piece)
        if sum(member.width for member in group) % 8 == 0:
            lines += _feed_group(algorithm, group, translator)
            group = []
    if group:
        lines += _feed_group(algorithm, group, translator)
    return [*lines, f"u64 hash = {algorithm}_result(&state);"]


def _feed_group(algorithm: str, group: list[Piece], translator: Translator) -> list[str]:
    total = sum(piece.width for piece in group)
    size = (total + 7) // 8
    headers = {piece.header for piece in group}
    if len(headers) > 1:
        refuse(
            translator.position,
            "a field list in which fields of different headers share a byte is not supported",
        )
    if len(group) == 1 and group[0].wide:
        lines = [f"{algorithm}_add(&state, {group[0].code}[{index}]);" for index in range(size)]
    else:
        if total > 64:
            refuse(translator.position, "a field list that is not byte-aligned for more than 64 bits")
        lines = [f"u64 bytes = {_join(group, size * 8)};"]
        for index in range(size):
            shift = (size - 1 - index) * 8
            lines.append(
                f"{algorithm}_add(&state, bytes >> {shift});" if shift else f"{algorithm}_add(&state, bytes);"
            )
    condition = next(iter(headers))
    return [f"if (is_valid(p, {condition})) {{" if condition else "{", *(f"\t{line}" for line in lines), "}"]


def _join(group: list[Piece], remaining: int) -> str:
    parts = []
    for piece in group:
        remaining -= piece.width
        parts.append(f"(u64)({piece.code}) << {remaining}" if remaining else f"({piece.code})")
    return " | ".join(parts)
