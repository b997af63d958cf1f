"""P4Runtime messages by the names of P4Info, for the tests that run compiled programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finsy.proto import p4i, p4r

Value = int | tuple[int, int]


def encoded(value: int) -> bytes:
    """Return the canonical byte string."""
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")


class Program:
    """A compiled program: its P4Info and JSON, and builders."""

    def __init__(self, info: p4i.P4Info, device_config: bytes) -> None:
        self.info = info
        self.device_config = device_config

    def id(self, kind: str, name: str) -> int:
        """Return the id of an object: `id("tables", "Ingress.route")`."""
        objects = getattr(self.info, kind)
        return next(int(o.preamble.id) for o in objects if o.preamble.name == name)

    def row(
        self, table_name: str, match: Mapping[str, Value], action: str = "", *params: int, **fields: Any
    ) -> p4r.TableEntry:
        """Return a table entry; a pair is (value, prefix length), (value, mask) or (low, high)."""
        table = next(t for t in self.info.tables if t.preamble.name == table_name)
        row = p4r.TableEntry(table_id=table.preamble.id, **fields)
        for field in table.match_fields:
            if field.name in match:
                self._match(row.match.add(field_id=field.id), field.match_type, match[field.name])
        if action:
            row.action.action.action_id = self.id("actions", action)
            for number, value in enumerate(params, 1):
                row.action.action.params.add(param_id=number, value=encoded(value))
        return row

    def _match(self, message: p4r.FieldMatch, kind: int, value: Value) -> None:
        first, second = value if isinstance(value, tuple) else (value, 0)
        match kind:
            case p4i.MatchField.EXACT:
                message.exact.value = encoded(first)
            case p4i.MatchField.LPM:
                message.lpm.value, message.lpm.prefix_len = encoded(first), second
            case p4i.MatchField.TERNARY:
                message.ternary.value, message.ternary.mask = encoded(first), encoded(second)
            case p4i.MatchField.RANGE:
                message.range.low, message.range.high = encoded(first), encoded(second)
            case p4i.MatchField.OPTIONAL:
                message.optional.value = encoded(first)
            case _:
                raise AssertionError(kind)

    def packet_out(self, payload: bytes, *values: int) -> p4r.PacketOut:
        """Return a packet-out with these metadata values."""
        metadata = [
            p4r.PacketMetadata(metadata_id=number, value=encoded(v)) for number, v in enumerate(values, 1)
        ]
        return p4r.PacketOut(payload=payload, metadata=metadata)


def metadata(message: p4r.PacketIn) -> list[int]:
    """Return the metadata values of a packet-in."""
    return [int.from_bytes(m.value, "big") for m in message.metadata]
