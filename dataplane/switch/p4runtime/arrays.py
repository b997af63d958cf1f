"""Indirect counters and registers: arrays that a client reads and writes by index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from finsy.proto import p4d, p4r

from dataplane.switch.p4runtime import bytestrings
from dataplane.switch.p4runtime.errors import Code, RequestRefused, invalid, refusals
from dataplane.switch.p4runtime.schema import ArrayInfo, Schema
from dataplane.switch.p4runtime.tables import counter_value
from dataplane.switch.pipeline import CounterValue, Operation, Pipeline

_V = TypeVar("_V")


def _find(arrays: Mapping[int, ArrayInfo], kind: str, array_id: int) -> ArrayInfo:
    array = arrays.get(array_id)
    if array is None:
        raise invalid(f"P4Info has no {kind} with id {array_id} (0x{array_id:08x})")
    return array


def _check_index(array: ArrayInfo, index: int) -> int:
    if index < 0:
        raise invalid(f"{array.name}: index {index} is negative")
    if index >= array.size:
        raise RequestRefused(
            Code.OUT_OF_RANGE, f"{array.name}: index {index} is beyond its {array.size} cells"
        )
    return index


def _only_modify(operation: Operation, kind: str) -> None:
    if operation is not Operation.MODIFY:
        raise invalid(f"{kind} cells always exist: they can only be modified")


def _snapshot(
    arrays: Mapping[int, ArrayInfo],
    kind: str,
    id_: int,
    request: p4r.CounterEntry | p4r.RegisterEntry,
    read: Callable[[str], Sequence[_V]],
) -> Iterator[tuple[ArrayInfo, int, _V]]:
    """Read now what a request selects: one cell of an array, all of its cells, or (id 0) those of all arrays."""
    wanted = list(arrays.values()) if id_ == 0 else [_find(arrays, kind, id_)]
    snapshots: list[tuple[ArrayInfo, int, Sequence[_V]]] = []
    for array in wanted:
        with refusals():
            values = read(array.name)
        if id_ and request.HasField("index"):
            index = _check_index(array, request.index.index)
            snapshots.append((array, index, [values[index]]))
        else:
            snapshots.append((array, 0, values))
    return (
        (array, first + offset, value)
        for array, first, values in snapshots
        for offset, value in enumerate(values)
    )


def read_counters(schema: Schema, pipeline: Pipeline, request: p4r.CounterEntry) -> Iterator[p4r.Entity]:
    """Return one cell, all cells of a counter, or all cells of all counters."""
    cells = _snapshot(schema.counters, "counter", request.counter_id, request, pipeline.read_counters)
    return (p4r.Entity(counter_entry=_counter_entry(*cell)) for cell in cells)


def _counter_entry(array: ArrayInfo, index: int, value: CounterValue) -> p4r.CounterEntry:
    return p4r.CounterEntry(
        counter_id=array.id,
        index=p4r.Index(index=index),
        data=p4r.CounterData(
            packet_count=value.packets if array.counts_packets else 0,
            byte_count=value.bytes if array.counts_bytes else 0,
        ),
    )


def write_counter(
    schema: Schema, pipeline: Pipeline, operation: Operation, message: p4r.CounterEntry
) -> None:
    """Overwrite one cell of a counter."""
    _only_modify(operation, "counter")
    array = _find(schema.counters, "counter", message.counter_id)
    if not message.HasField("index"):
        raise invalid(f"{array.name}: a write needs an index")
    index = _check_index(array, message.index.index)
    value = counter_value(message.data)
    with refusals():
        pipeline.write_counter(array.name, index, value)


def read_registers(schema: Schema, pipeline: Pipeline, request: p4r.RegisterEntry) -> Iterator[p4r.Entity]:
    """Return one cell, all cells of a register array, or all cells of all arrays."""
    cells = _snapshot(schema.registers, "register", request.register_id, request, pipeline.read_register)
    return (p4r.Entity(register_entry=_register_entry(*cell)) for cell in cells)


def _register_entry(array: ArrayInfo, index: int, value: int) -> p4r.RegisterEntry:
    return p4r.RegisterEntry(
        register_id=array.id,
        index=p4r.Index(index=index),
        data=p4d.P4Data(bitstring=bytestrings.encode(value)),
    )


def write_register(
    schema: Schema, pipeline: Pipeline, operation: Operation, message: p4r.RegisterEntry
) -> None:
    """Overwrite one cell of a register array, or all when the index is left out."""
    _only_modify(operation, "register")
    array = _find(schema.registers, "register", message.register_id)
    if message.data.WhichOneof("data") != "bitstring":
        raise invalid(f"{array.name}: the data is not a bit string")
    value = bytestrings.decode(message.data.bitstring, array.width, array.name)
    if message.HasField("index"):
        cells = range(_check_index(array, message.index.index), message.index.index + 1)
    else:
        cells = range(array.size)
    with refusals():
        for index in cells:
            pipeline.write_register(array.name, index, value)
