"""Tables: the kernel finds what a model in Python finds, and the control plane refuses what it must."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.switch.engine import matches
from dataplane.switch.pipeline import (
    ActionCall,
    BadEntry,
    CounterValue,
    EntryExists,
    EntryNotFound,
    Exact,
    Lpm,
    Match,
    Operation,
    PipelineError,
    Range,
    TableEntry,
    TableFull,
    Ternary,
    Update,
)
from tests.dataplane.engine import build
from tests.dataplane.engine.build import Builder, assign
from tests.dataplane.engine.conftest import Lab, insert

MISS = 0xFFFF
SIZE = 40


def lookup_program() -> bytes:
    """Return a program that looks up x, y, z in tables of all kinds, and reports what each found."""
    b = Builder([("exact", 16), ("lpm", 16), ("ternary", 16), ("mixed", 16)])
    b.header("k", [("x", 16), ("y", 8), ("z", 32), ("w", 128)])
    b.state("start", "k")
    setters = {
        name: b.action(f"found_{name}", [("row", 16)], assign(f"scalars.{name}", "$0"))
        for name in ("exact", "lpm", "ternary", "mixed")
    }
    report = b.action(
        "report",
        (),
        b.digest("found_t", [f"scalars.{name}" for name in setters]),
        build.drop(),
    )
    last = b.call(report)
    keys = {
        "mixed": [("k.x", "range"), ("k.z", "lpm"), ("k.y", "ternary"), ("k.w", "ternary")],
        "ternary": [("k.x", "ternary"), ("k.y", "optional"), ("k.z", "exact")],
        "lpm": [("k.y", "exact"), ("k.z", "lpm"), ("k.x", "exact")],
        "exact": [("k.x", "exact"), ("k.y", "exact"), ("k.w", "exact")],
    }
    for name, columns in keys.items():
        last = b.table(
            name,
            columns,
            [setters[name]],
            setters[name],
            last,
            size=SIZE,
            data=[MISS],
            counters=name != "lpm",
        )
    b.start(last)
    return b.json()


def packet(x: int, y: int, z: int, w: int) -> bytes:
    return struct.pack("!HBI", x, y, z) + w.to_bytes(16, "big")


COLUMNS = {"mixed": "xzyw", "ternary": "xyz", "lpm": "yzx", "exact": "xyw"}
WIDTH = {"x": 16, "y": 8, "z": 32, "w": 128}


def hits(match: Match, value: int, width: int) -> bool:
    if isinstance(match, Exact):
        return value == match.value
    if isinstance(match, Ternary):
        return value & match.mask == match.value & match.mask
    if isinstance(match, Range):
        return match.low <= value <= match.high
    return value >> (width - match.prefix_len) == match.value >> (width - match.prefix_len)


def best(table: str, entries: Sequence[TableEntry], values: dict[str, int]) -> set[int]:
    """Return the rows that may be found: those of the best priority, or of the longest prefix."""
    columns = COLUMNS[table]
    found = [
        entry
        for entry in entries
        if all(
            hits(match, values[name], WIDTH[name]) for match, name in zip(entry.match, columns, strict=True)
        )
    ]
    if not found:
        return {MISS}

    def rank(entry: TableEntry) -> int:
        if table == "lpm":
            return sum(match.prefix_len for match in entry.match if isinstance(match, Lpm))
        return entry.priority

    top = max(map(rank, found))
    return {entry.action.params[0] for entry in found if rank(entry) == top}


# Few different values, so that entries overlap and packets hit.
XS = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 255, 256, 0x7FFF, 0x8000, 0xFFFF])
YS = st.sampled_from([0, 1, 2, 0x80, 0xFF])
ZS = st.sampled_from([0, 1, 0x0A000000, 0x0A000001, 0x0A0000FF, 0x0A010000, 0x80000000, 0xFFFFFFFF])
WS = st.sampled_from([0, 1, 1 << 127, (1 << 128) - 1, 1 << 64])
MASKS16 = st.sampled_from([0, 1, 3, 0xFF00, 0xFFFF])
LENGTHS = st.sampled_from([0, 1, 8, 16, 24, 31, 32])


def ranges() -> st.SearchStrategy[Range]:
    return st.tuples(XS, XS).map(lambda pair: Range(min(pair), max(pair)))


def ternary(values: st.SearchStrategy[int], masks: st.SearchStrategy[int]) -> st.SearchStrategy[Ternary]:
    return st.builds(lambda value, mask: Ternary(value & mask, mask), values, masks)


def prefix(length: int, value: int) -> Lpm:
    return Lpm(value & matches.prefix_mask(length, 32), length)


EXACT_ROW = st.tuples(XS.map(Exact), YS.map(Exact), WS.map(Exact))
LPM_ROW = st.tuples(YS.map(Exact), st.builds(prefix, LENGTHS, ZS), XS.map(Exact))
TERNARY_ROW = st.tuples(ternary(XS, MASKS16), ternary(YS, st.sampled_from([0, 0xFF])), ZS.map(Exact))
MIXED_ROW = st.tuples(
    ranges(),
    st.builds(prefix, st.sampled_from([0, 8, 32]), ZS),
    ternary(YS, st.sampled_from([0, 0xFF])),
    ternary(WS, st.sampled_from([0, 1 << 127, (1 << 128) - 1])),
)
ROWS = {"mixed": MIXED_ROW, "ternary": TERNARY_ROW, "lpm": LPM_ROW, "exact": EXACT_ROW}


@st.composite
def fillings(draw: st.DrawFn) -> dict[str, list[TableEntry]]:
    """Draw distinct entries for every table."""
    tables = {}
    for table, rows in ROWS.items():
        with_priority = table in ("ternary", "mixed")
        drawn = draw(
            st.lists(
                st.tuples(rows, st.integers(1, 5) if with_priority else st.just(0)), max_size=14, unique=True
            )
        )
        tables[table] = [
            TableEntry(match, ActionCall(f"found_{table}", (index,)), priority)
            for index, (match, priority) in enumerate(drawn)
        ]
    return tables


def changes(operation: Operation, tables: dict[str, list[TableEntry]]) -> list[Update]:
    return [Update(operation, table, entry) for table, entries in tables.items() for entry in entries]


@pytest.mark.net
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tables=fillings(),
    packets=st.lists(st.tuples(XS, YS, ZS, WS), min_size=6, max_size=6),
    removed=st.randoms(use_true_random=False),
)
def test_lookup_agrees_with_model(
    lab: Lab, tables: dict[str, list[TableEntry]], packets: list[tuple[int, int, int, int]], removed: object
) -> None:
    pipeline = lab.engine._active or lab.run(lookup_program())
    results = pipeline.apply(changes(Operation.INSERT, tables))
    for table, entries in tables.items():
        accepted = [
            e for e, r in zip(entries, results[: len(entries)], strict=True) if not isinstance(r, TableFull)
        ]
        assert all(result is None or isinstance(result, TableFull) for result in results[: len(entries)])
        results = results[len(entries) :]
        tables[table] = accepted
    compare(lab, tables, packets)
    gone = {table: entries[::2] for table, entries in tables.items()}
    assert not any(pipeline.apply(changes(Operation.DELETE, gone)))
    left = {table: entries[1::2] for table, entries in tables.items()}
    compare(lab, left, packets)
    assert not any(pipeline.apply(changes(Operation.DELETE, left)))
    compare(lab, {table: [] for table in tables}, packets)


def compare(lab: Lab, tables: dict[str, list[TableEntry]], packets: list[tuple[int, int, int, int]]) -> None:
    for values in packets:
        lab.cables[1].send(packet(*values))
        _, found = lab.event()
        assert isinstance(found, tuple)
        named = dict(zip("xyzw", values, strict=True))
        for table, row in zip(("exact", "lpm", "ternary", "mixed"), found, strict=True):
            assert row in best(table, tables[table], named), (table, values)


@pytest.mark.net
def test_counters_follow_their_rows(lab: Lab) -> None:
    """A modified row keeps its counter, a new row starts at nothing, default hits count nowhere."""
    pipeline = lab.run(lookup_program())
    match = (Exact(1), Exact(2), Exact(3))
    entry = TableEntry(match, ActionCall("found_exact", (7,)))
    insert(pipeline, "exact", match, "found_exact", 7)
    send(lab, 1, 2, 0, 3)
    assert pipeline.read_direct_counter("exact", entry) == CounterValue(1, 23)
    changed = TableEntry(match, ActionCall("found_exact", (8,)))
    assert pipeline.apply([Update(Operation.MODIFY, "exact", changed)]) == [None]
    assert send(lab, 1, 2, 0, 3)[0] == 8
    assert pipeline.read_direct_counters("exact") == {(match, 0): CounterValue(2, 46)}
    pipeline.write_direct_counter("exact", entry, CounterValue(5, 6))
    assert pipeline.read_direct_counter("exact", entry) == CounterValue(5, 6)
    assert pipeline.apply([Update(Operation.DELETE, "exact", entry)]) == [None]
    insert(pipeline, "exact", match, "found_exact", 9)
    assert pipeline.read_direct_counter("exact", entry) == CounterValue(0, 0)


def send(lab: Lab, x: int, y: int, z: int, w: int) -> tuple[int, ...]:
    lab.cables[1].send(packet(x, y, z, w))
    _, found = lab.event()
    assert isinstance(found, tuple)
    return found


@pytest.mark.net
def test_default_action(lab: Lab) -> None:
    pipeline = lab.run(lookup_program())
    assert send(lab, 0, 0, 0, 0) == (MISS, MISS, MISS, MISS)
    pipeline.set_default("lpm", ActionCall("found_lpm", (77,)))
    assert send(lab, 0, 0, 0, 0) == (MISS, 77, MISS, MISS)
    pipeline.set_default("lpm", None)
    assert send(lab, 0, 0, 0, 0) == (MISS, MISS, MISS, MISS)


def entry(
    *match: Match, action: str = "found_exact", params: tuple[int, ...] = (1,), priority: int = 0
) -> TableEntry:
    return TableEntry(match, ActionCall(action, params), priority)


GOOD = entry(Exact(1), Exact(1), Exact(1))

INSERT, MODIFY, DELETE = Operation.INSERT, Operation.MODIFY, Operation.DELETE
ABSENT = entry(Exact(9), Exact(9), Exact(9))
NEW = (Exact(1), Exact(2), Exact(1))
EMPTY_RANGE = entry(Range(2, 1), Lpm(0, 0), Ternary(0, 0), Ternary(0, 0), action="found_mixed")

REFUSALS: list[tuple[Update, type[PipelineError], str]] = [
    (Update(INSERT, "exact", GOOD), EntryExists, "exact has an entry with this match already"),
    (Update(DELETE, "exact", ABSENT), EntryNotFound, "no entry"),
    (Update(MODIFY, "exact", ABSENT), EntryNotFound, "no entry"),
    (Update(INSERT, "exact", entry(Exact(1))), BadEntry, "3 match fields, not 1"),
    (Update(INSERT, "exact", entry(Exact(1), Exact(256), Exact(1))), BadEntry, "does not fit 8 bits"),
    (Update(INSERT, "exact", entry(Exact(1), Lpm(1, 8), Exact(1))), BadEntry, "takes exact, not lpm"),
    (Update(INSERT, "exact", entry(*NEW, action="found_lpm")), BadEntry, "no action found_lpm"),
    (Update(INSERT, "exact", entry(*NEW, params=())), BadEntry, "takes 1 parameters, not 0"),
    (Update(INSERT, "exact", entry(*NEW, params=(1 << 16,))), BadEntry, "does not fit row"),
    (Update(INSERT, "nope", GOOD), BadEntry, "no table nope"),
    (Update(INSERT, "mixed", EMPTY_RANGE), BadEntry, "is empty"),
]


@pytest.mark.net
def test_refusals(lab: Lab) -> None:
    """Each is one clear error, and changes nothing."""
    pipeline = lab.run(lookup_program())
    assert pipeline.apply([Update(INSERT, "exact", GOOD)]) == [None]
    for update, kind, text in REFUSALS:
        [error] = pipeline.apply([update])
        assert type(error) is kind, text
        assert text in str(error)
    assert send(lab, 1, 1, 0, 1)[0] == 1


@pytest.mark.net
@pytest.mark.parametrize("batch", [1, SIZE + 5])
def test_size_is_kept(lab: Lab, batch: int) -> None:
    """A table takes as many entries as it declares; one more is refused, whether one by one or all at once."""
    pipeline = lab.run(lookup_program())
    updates = [
        Update(Operation.INSERT, "exact", entry(Exact(number), Exact(0), Exact(0)))
        for number in range(SIZE + 5)
    ]
    results: list[PipelineError | None] = []
    for start in range(0, len(updates), batch):
        results += pipeline.apply(updates[start : start + batch])
    assert results[:SIZE] == [None] * SIZE
    assert [type(result) for result in results[SIZE:]] == [TableFull] * 5
    assert send(lab, SIZE - 1, 0, 0, 0)[0] == 1
    assert send(lab, SIZE, 0, 0, 0)[0] == MISS


@pytest.mark.net
def test_too_many_masks_are_refused(lab: Lab) -> None:
    pipeline = lab.run(lookup_program())
    ranges_ = [Range(1, (1 << 16) - 2), Range(0, 0)]
    wide = [
        entry(range_, Lpm(0, length), Ternary(0, 0), Ternary(0, 0), action="found_mixed", priority=1)
        for length in range(0, 33, 4)
        for range_ in ranges_
    ]
    results = [pipeline.apply([Update(Operation.INSERT, "mixed", item)])[0] for item in wide]
    full = [result for result in results if result]
    assert full
    assert all(isinstance(result, TableFull) and "different masks" in str(result) for result in full)


@pytest.mark.parametrize(
    ("low", "high", "count"), [(0, 0xFFFF, 1), (5, 5, 1), (1, 0xFFFE, 30), (1024, 65535, 6), (0, 9, 2)]
)
def test_ranges_become_prefixes(low: int, high: int, count: int) -> None:
    pieces = list(matches.prefixes(low, high, 16))
    assert len(pieces) == count
    covered = sorted((value, value | (~mask & 0xFFFF)) for value, mask in pieces)
    assert covered[0][0] == low
    assert covered[-1][1] == high
    assert all(one[1] + 1 == other[0] for one, other in pairwise(covered))
