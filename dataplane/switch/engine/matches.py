"""What a table entry matches, checked and brought into the form that a map holds. Pure functions.

Ranges become prefixes, since a map can only mask: a range of w bits needs at most 2w - 2 of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from dataplane.switch.engine.bmv2 import Json, Key, Table, hexstr
from dataplane.switch.engine.layout import KeyLayout
from dataplane.switch.pipeline import BadEntry, Exact, Lpm, Match, Range, Ternary

Masked = tuple[int, int]
"""A value and its mask."""


def ones(width: int) -> int:
    return (1 << width) - 1


def prefix_mask(length: int, width: int) -> int:
    """Return the mask of a prefix."""
    return ones(length) << (width - length)


def prefixes(low: int, high: int, width: int) -> Iterator[Masked]:
    """Yield the prefixes that together cover low to high."""
    while low <= high:
        length = low & -low or 1 << width
        while length > high - low + 1:
            length >>= 1
        yield low, ones(width) & ~(length - 1)
        low += length


def check(table: Table, match: Sequence[Match]) -> tuple[Match, ...]:
    """Return the match in canonical form (bits outside of masks are zero); raises BadEntry."""
    if len(match) != len(table.keys):
        raise BadEntry(f"{table.name} has {len(table.keys)} match fields, not {len(match)}")
    return tuple(_check_one(table, key, one) for key, one in zip(table.keys, match, strict=True))


def _check_one(table: Table, key: Key, match: Match) -> Match:
    if type(match) is Exact and key.match_type == "exact" and 0 <= match.value < 1 << key.width:
        return match  # nearly all there are
    name, most = f"{table.name}, match field {key.name}", ones(key.width)
    for value in _values(match):
        if not 0 <= value <= most:
            raise BadEntry(f"{name}: {value:#x} does not fit {key.width} bits")
    if isinstance(match, Lpm) and not 0 <= match.prefix_len <= key.width:
        raise BadEntry(f"{name}: prefix length {match.prefix_len} is not 0 to {key.width}")
    if isinstance(match, Range) and match.low > match.high:
        raise BadEntry(f"{name}: the range {match.low} to {match.high} is empty")
    canonical = _CANONICAL.get((key.match_type, type(match)))
    if canonical is None:
        raise BadEntry(f"{name} takes {key.match_type}, not {type(match).__name__.lower()}")
    return canonical(match, key.width)


def _values(match: Match) -> tuple[int, ...]:
    if isinstance(match, Range):
        return (match.low, match.high)
    if isinstance(match, Ternary):
        return (match.value, match.mask)
    return (match.value,)


def _lpm(match: Match, width: int) -> Match:
    assert isinstance(match, Lpm)
    return Lpm(match.value & prefix_mask(match.prefix_len, width), match.prefix_len)


def _full_ternary(match: Match, width: int) -> Match:
    assert isinstance(match, Exact)
    return Ternary(match.value, ones(width))


def _ternary(match: Match, width: int) -> Match:
    assert isinstance(match, Ternary)
    return Ternary(match.value & match.mask, match.mask)


def _same(match: Match, width: int) -> Match:
    return match


_CANONICAL = {
    ("exact", Exact): _same,
    ("lpm", Lpm): _lpm,
    ("ternary", Ternary): _ternary,
    ("ternary", Exact): _full_ternary,
    ("optional", Ternary): _ternary,
    ("optional", Exact): _full_ternary,
    ("range", Range): _same,
}


def exact_key(layout: KeyLayout, match: Sequence[Match]) -> bytes:
    """Return the key of a row of an exact or lpm table."""
    values = [one.value if type(one) is Exact else _values(one)[0] for one in match]
    if layout.lpm is not None:
        slot, one = layout.slots[layout.lpm], match[layout.lpm]
        assert isinstance(one, Lpm)
        values[layout.lpm] <<= slot.size * 8 - slot.width
        values.append(layout.front_bits + one.prefix_len)
    return layout.packer.pack(values)


def masked_keys(layout: KeyLayout, match: Sequence[Match]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (masked components, mask) pairs by which a ternary table finds a row."""
    choices = [list(_masked(one, slot.width)) for one, slot in zip(match, layout.slots, strict=True)]
    for combination in itertools.product(*choices):
        values, masks = bytearray(layout.size), bytearray(layout.size)
        for slot, (value, mask) in zip(layout.slots, combination, strict=True):
            slot.put(values, value & mask)
            slot.put(masks, mask)
        yield bytes(values[layout.start :]), bytes(masks[layout.start :])


def _masked(match: Match, width: int) -> Iterator[Masked]:
    if isinstance(match, Range):
        yield from prefixes(match.low, match.high, width)
    elif isinstance(match, Ternary):
        yield match.value, match.mask
    elif isinstance(match, Lpm):
        yield match.value, prefix_mask(match.prefix_len, width)
    else:
        yield match.value, ones(width)


def declared(key: Key, node: Json) -> Match:
    """Read one match of an entry that the program declares."""
    kind = node["match_type"]
    if kind == "range":
        return Range(hexstr(node["start"]), hexstr(node["end"]))
    value = node["key"]
    number = int(value) if isinstance(value, bool) else hexstr(value)
    if kind == "lpm":
        return Lpm(number, int(node["prefix_length"]))
    if kind == "ternary" or "mask" in node:
        return Ternary(number & hexstr(node["mask"]), hexstr(node["mask"]))
    return Exact(number)
