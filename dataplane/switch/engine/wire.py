"""C code that moves fields between a header's bytes and its struct.

Fields lie on the wire back to back, most significant bit first. They are handled in groups: the shortest runs that
start and end on a byte boundary, so a 4 bit version and a 4 bit length are one byte that is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dataplane.switch.engine.bmv2 import Field, Header, refuse
from dataplane.switch.engine.names import declare, identifier, is_wide

_SWAP = {2: "16", 4: "32", 8: "64"}


def groups(header: Header) -> Iterator[tuple[Field, ...]]:
    """Split a header's fields into byte-aligned runs."""
    run: list[Field] = []
    for field in header.fields:
        run.append(field)
        if (field.offset + field.width) % 8 == 0:
            yield tuple(run)
            run = []


def struct(header: Header) -> str:
    """Return the C struct that holds a header's fields in host order."""
    lines = [f"\t{declare(identifier(field.name), field.width)};" for field in header.fields]
    return "\n".join([f"struct {struct_name(header)} {{", *lines, "};"])


def struct_name(header: Header) -> str:
    return f"{identifier(header.name)}_fields"


def load_bytes(base: str, offset: int, size: int) -> str:
    """Return an expression for `size` bytes (1 to 8) at `base + offset` as an integer."""
    if size == 1:
        return f"{base}[{offset}]"
    if size in _SWAP:
        return f"load{_SWAP[size]}({base} + {offset})"
    parts = []
    at = offset
    for piece in _pieces(size):
        shift = (offset + size - at - piece) * 8
        value = load_bytes(base, at, piece)
        parts.append(f"(u64){value} << {shift}" if shift else value)
        at += piece
    return "(" + " | ".join(parts) + ")"


def store_bytes(base: str, offset: int, size: int, value: str) -> list[str]:
    """Return statements that store an integer as `size` bytes (1 to 8) at `base + offset`."""
    if size == 1:
        return [f"{base}[{offset}] = {value};"]
    if size in _SWAP:
        return [f"store{_SWAP[size]}({base} + {offset}, {value});"]
    lines = []
    at = offset
    for piece in _pieces(size):
        shift = (offset + size - at - piece) * 8
        lines += store_bytes(base, at, piece, f"({value}) >> {shift}" if shift else value)
        at += piece
    return lines


def _pieces(size: int) -> Iterator[int]:
    """Split a size into powers of two, the largest that fits first."""
    while size:
        piece = max(power for power in (1, 2, 4, 8) if power <= size)
        yield piece
        size -= piece


def load_field(header: Header, field: Field, base: str) -> str:
    """Return an expression for one field of at most 64 bits, read from the bytes at `base`."""
    first = field.offset // 8
    size = (field.offset + field.width + 7) // 8 - first
    if size > 8:
        refuse(header.name, f"field {field.name} straddles more than 8 bytes, which is not supported")
    whole = load_bytes(base, first, size)
    shift = (first + size) * 8 - field.offset - field.width
    if field.width == size * 8:
        return whole
    shifted = f"{whole} >> {shift}" if shift else whole
    return f"({shifted} & {(1 << field.width) - 1:#x})"


def unpack(header: Header, target: str, base: str) -> list[str]:
    """Return statements that read a whole header from the bytes at `base` into the struct `target`."""
    lines: list[str] = []
    for field in header.fields:
        name = f"{target}.{identifier(field.name)}"
        if is_wide(field.width):
            _check_wide(header, field)
            lines.append(f"__builtin_memcpy({name}, {base} + {field.offset // 8}, {field.width // 8});")
        else:
            lines.append(f"{name} = {load_field(header, field, base)};")
    return lines


def pack(header: Header, source: str, base: str) -> list[str]:
    """Return statements that write the struct `source` to the bytes at `base`."""
    lines: list[str] = []
    for group in groups(header):
        first = group[0].offset // 8
        bits = sum(field.width for field in group)
        if len(group) == 1 and is_wide(bits):
            _check_wide(header, group[0])
            name = f"{source}.{identifier(group[0].name)}"
            lines.append(f"__builtin_memcpy({base} + {first}, {name}, {bits // 8});")
            continue
        if bits > 64:
            names = ", ".join(field.name for field in group)
            refuse(header.name, f"fields {names} share bytes over more than 64 bits, which is not supported")
        lines += store_bytes(base, first, bits // 8, _combine(group, source, bits))
    return lines


def _combine(group: Sequence[Field], source: str, bits: int) -> str:
    """Return an expression that puts a group's fields together."""
    parts = []
    for field in group:
        bits -= field.width
        name = f"{source}.{identifier(field.name)}"
        parts.append(f"(u64){name} << {bits}" if bits else name)
    return " | ".join(parts)


def _check_wide(header: Header, field: Field) -> None:
    if field.offset % 8 or field.width % 8:
        refuse(header.name, f"field {field.name} has more than 64 bits and is not byte-aligned")
