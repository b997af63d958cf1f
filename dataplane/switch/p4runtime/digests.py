"""Digest lists: what packets reported, bundled, numbered and acknowledged (spec section "DigestEntry").

`DigestStream` is the pure part, one for each enabled digest: it is told the time and never looks at a clock.
`Digests` holds the streams of a pipeline, translates messages, and may be called from any thread. Nothing here
waits; the owner asks `next_deadline` and calls `due`.

Reports that nobody can receive (no primary) are dropped by the owner before they get here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from finsy.proto import p4d, p4i, p4r, p4t

from dataplane.switch.p4runtime import bytestrings
from dataplane.switch.p4runtime.errors import Code, RequestRefused, invalid, unimplemented
from dataplane.switch.p4runtime.schema import DigestInfo, Schema
from dataplane.switch.pipeline import Operation

Values = tuple[int, ...]

MAX_LIST = 4096
"""Messages in a list when the client sets no limit (`max_list_size` 0)."""
MAX_UNACKNOWLEDGED = 1 << 17
"""Messages remembered until acknowledged; beyond that the oldest list is forgotten, and may be reported again."""


@dataclass(frozen=True, slots=True)
class DigestConfig:
    """How a client wants its digests."""

    max_timeout_ns: int = 0
    max_list_size: int = 0
    ack_timeout_ns: int = 0


@dataclass
class DigestStream:
    """The messages of one digest that wait to be sent, and those that wait to be acknowledged."""

    config: DigestConfig
    _buffer: dict[Values, None] = field(default_factory=dict)
    _first_at: int = 0
    _unacknowledged: dict[Values, int] = field(default_factory=dict)
    """Each message sent and not acknowledged, with the id of its list."""
    _lists: dict[int, tuple[int, list[Values]]] = field(default_factory=dict)
    """Time of sending and content of each list not acknowledged, oldest first."""

    def add(self, values: Values, now: int) -> bool:
        """Take a message; return whether the list must go out at once."""
        self._expire(now)
        if values in self._unacknowledged or values in self._buffer:
            return False
        if not self._buffer:
            self._first_at = now
        self._buffer[values] = None
        return self.config.max_timeout_ns == 0 or len(self._buffer) >= (self.config.max_list_size or MAX_LIST)

    def deadline(self) -> int | None:
        """Return when the waiting messages must go out."""
        return self._first_at + self.config.max_timeout_ns if self._buffer else None

    def take(self, list_id: int, now: int) -> list[Values]:
        """Return the waiting messages, which are then sent under this list id."""
        values = list(self._buffer)
        self._buffer.clear()
        if self.config.ack_timeout_ns:
            self._expire(now)
            self._lists[list_id] = (now, values)
            self._unacknowledged.update(dict.fromkeys(values, list_id))
            while len(self._unacknowledged) > MAX_UNACKNOWLEDGED:
                self.acknowledge(next(iter(self._lists)))
        return values

    def acknowledge(self, list_id: int) -> None:
        """Forget a list, so that its messages are reported again when they happen again."""
        _, values = self._lists.pop(list_id, (0, []))
        for value in values:
            self._unacknowledged.pop(value, None)

    def forget(self) -> None:
        """Forget all lists: the client that could acknowledge them is gone."""
        self._lists.clear()
        self._unacknowledged.clear()

    def _expire(self, now: int) -> None:
        while self._lists:
            list_id, (sent_at, _) = next(iter(self._lists.items()))
            if now - sent_at < self.config.ack_timeout_ns:
                return
            self.acknowledge(list_id)


class Digests:
    """The enabled digests of one pipeline."""

    def __init__(self, schema: Schema) -> None:
        """Start with every digest disabled, as the specification says."""
        self.schema = schema
        self.streams: dict[int, DigestStream] = {}
        self._by_name = {digest.name: digest for digest in schema.digests.values()}
        self._last_list_id = 0
        self._lock = threading.RLock()

    def report(self, name: str, values: Values, now: int) -> p4r.DigestList | None:
        """Take a message from the data plane; return a list if one must go out at once."""
        with self._lock:
            digest = self._by_name.get(name)
            stream = self.streams.get(digest.id) if digest else None
            if digest is None or stream is None or not stream.add(values, now):
                return None
            return self._list(digest, stream, now)

    def next_deadline(self) -> int | None:
        """Return when `due` has something to send, if nothing else happens."""
        with self._lock:
            deadlines = [d for stream in self.streams.values() if (d := stream.deadline()) is not None]
        return min(deadlines, default=None)

    def due(self, now: int) -> list[p4r.DigestList]:
        """Return the lists that have waited long enough."""
        with self._lock:
            return [
                self._list(self.schema.digests[digest_id], stream, now)
                for digest_id, stream in self.streams.items()
                if (deadline := stream.deadline()) is not None and deadline <= now
            ]

    def _list(self, digest: DigestInfo, stream: DigestStream, now: int) -> p4r.DigestList:
        self._last_list_id += 1
        return p4r.DigestList(
            digest_id=digest.id,
            list_id=self._last_list_id,
            data=[
                encode_data(self.schema.p4info, digest.spec, v) for v in stream.take(self._last_list_id, now)
            ],
            timestamp=time.time_ns(),
        )

    def acknowledge(self, ack: p4r.DigestListAck) -> None:
        """Take a client's acknowledgement; raises RequestRefused when there is no such digest."""
        if ack.digest_id not in self.schema.digests:
            raise invalid(f"P4Info has no digest with id {ack.digest_id}")
        with self._lock:
            if stream := self.streams.get(ack.digest_id):
                stream.acknowledge(ack.list_id)

    def forget_unacknowledged(self) -> None:
        """Start afresh with a new primary."""
        with self._lock:
            for stream in self.streams.values():
                stream.forget()

    # ---- DigestEntry

    def write(self, operation: Operation, message: p4r.DigestEntry) -> None:
        """Enable, change or disable a digest."""
        digest = self._find(message.digest_id)
        given = message.config
        if min(given.max_timeout_ns, given.max_list_size, given.ack_timeout_ns) < 0:
            raise invalid(f"digest {digest.name}: timeouts and sizes cannot be negative")
        config = DigestConfig(given.max_timeout_ns, given.max_list_size, given.ack_timeout_ns)
        with self._lock:
            enabled = digest.id in self.streams
            if operation is Operation.INSERT and enabled:
                raise RequestRefused(Code.ALREADY_EXISTS, f"digest {digest.name} is enabled already")
            if operation is not Operation.INSERT and not enabled:
                raise RequestRefused(Code.NOT_FOUND, f"digest {digest.name} is not enabled")
            if operation is Operation.INSERT:
                self.streams[digest.id] = DigestStream(config)
            elif operation is Operation.MODIFY:
                self.streams[digest.id].config = config
            else:
                del self.streams[digest.id]

    def read(self, request: p4r.DigestEntry) -> Iterator[p4r.Entity]:
        """Return the configuration of one digest, or of all that are enabled."""
        if request.digest_id:
            self._find(request.digest_id)
        chosen = [(i, s.config) for i, s in self.streams.items() if request.digest_id in (0, i)]
        return (
            p4r.Entity(
                digest_entry=p4r.DigestEntry(
                    digest_id=digest_id,
                    config=p4r.DigestEntry.Config(
                        max_timeout_ns=config.max_timeout_ns,
                        max_list_size=config.max_list_size,
                        ack_timeout_ns=config.ack_timeout_ns,
                    ),
                )
            )
            for digest_id, config in chosen
        )

    def _find(self, digest_id: int) -> DigestInfo:
        digest = self.schema.digests.get(digest_id)
        if digest is None:
            raise invalid(f"P4Info has no digest with id {digest_id} (0x{digest_id:08x})")
        return digest


def encode_data(p4info: p4i.P4Info, spec: p4t.P4DataTypeSpec, values: Sequence[int]) -> p4d.P4Data:
    """Return a digest's fields, which come in order and flat, in the shape that P4Info declares."""
    rest = iter(values)
    try:
        data = _encode(p4info, spec, rest)
    except StopIteration as ex:
        raise invalid("a digest message has fewer fields than P4Info declares") from ex
    if next(rest, None) is not None:
        raise invalid("a digest message has more fields than P4Info declares")
    return data


def _encode(p4info: p4i.P4Info, spec: p4t.P4DataTypeSpec, values: Iterator[int]) -> p4d.P4Data:
    types = p4info.type_info
    match spec.WhichOneof("type_spec"):
        case "bitstring":
            return p4d.P4Data(bitstring=bytestrings.encode(next(values)))
        case "bool":
            return p4d.P4Data(bool=bool(next(values)))
        case "tuple":
            members = [_encode(p4info, member, values) for member in spec.tuple.members]
            return p4d.P4Data(tuple=p4d.P4StructLike(members=members))
        case "struct":
            fields = types.structs[spec.struct.name].members
            members = [_encode(p4info, member.type_spec, values) for member in fields]
            return p4d.P4Data(struct=p4d.P4StructLike(members=members))
        case "serializable_enum":
            return p4d.P4Data(enum_value=bytestrings.encode(next(values)))
        case "new_type":
            return _encode(p4info, types.new_types[spec.new_type.name].original_type, values)
        case kind:
            raise unimplemented(f"digests with members of type {kind} are not offered")
