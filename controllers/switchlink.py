"""The connection to one switch, on finsy: it comes back whenever it is lost.

Life of a connection: wait until the switch's port answers, open the stream and take mastership, push the pipeline
if the switch does not have it (finsy compares cookies), configure the digest, read the tables, hand them to
`on_ready` (which restores or adopts them), and be ready until the stream ends or another controller takes over.

All stream messages reach the listener in the order in which they came; see `barrier` for what follows from that.
Where it stops: one stream, no roles.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import finsy
from finsy import p4client
from finsy.proto import p4r
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from controllers.codec import UPDATE_TYPE, RowCodec
from controllers.config import SwitchConfig
from controllers.errors import (
    BarrierTimeout,
    ConfigError,
    NotPrimary,
    SwitchError,
    SwitchNotReady,
    WriteRefused,
)
from controllers.rows import REASON_BARRIER, Change, Op, Row
from migration.slowness import scaled
from migration.trace import SWITCH, sent, told

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
# finsy logs every switch without gNMI as a warning, and every end of one with a traceback; what matters arrives here
# as exceptions.
logging.getLogger("finsy").setLevel(logging.CRITICAL + 1)

OP_SEND, OP_RESUME, OP_BARRIER = 0, 1, 2
"""As in load_balancer.p4."""

_EXTERN_TYPE = 0x81
_PACKETS = 0x8100_0003
DIGEST = "connection_event_t"
DIGEST_TIMEOUT_NS = 1_000_000
DIGEST_LIST = 64
_QUEUE = 1 << 20
_AWAY = (finsy.GRPCStatusCode.UNAVAILABLE, finsy.GRPCStatusCode.CANCELLED)
_BATCH = 4096
_POLL_S = 0.02
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_BARRIER_S = scaled(5.0)
_BARRIER_AGAIN_S = 0.5
# finsy ends every call after a constant 10 s, which compiling a program for the kernel takes on a slow machine.
p4client._DEFAULT_RPC_TIMEOUT = scaled(p4client._DEFAULT_RPC_TIMEOUT)


class StreamListener(Protocol):
    """Who hears what a switch reports. The methods must not wait."""

    def on_packet(self, reason: int, port: int, id: int, frame: bytes) -> None:
        """Take a packet-in (never a barrier)."""

    def on_digest(self, events: Sequence[dict[str, int]]) -> None:
        """Take a list of connection events."""


@dataclass(frozen=True, slots=True)
class Packets:
    """Packets for a switch to send: what it is to do with them, the id that goes with it, and (port, frame) pairs."""

    operation: int
    id: int
    frames: Sequence[tuple[int, bytes]]


OnReady = Callable[["SwitchLink", list[Row]], Awaitable[None]]


class SwitchLink:
    """One switch: connected or not, ready or not."""

    def __init__(
        self, config: SwitchConfig, on_ready: OnReady, listener: StreamListener | None = None
    ) -> None:
        self.config = config
        self.state = "connecting"
        self.connects = 0
        self.ready = asyncio.Event()
        self._on_ready = on_ready
        self._listener = listener
        self._switch: _Switch | None = None
        self._codec: RowCodec | None = None
        self._barriers: dict[int, asyncio.Future[None]] = {}
        self._tokens = itertools.count(1)
        self._sending = asyncio.Lock()

    @property
    def name(self) -> str:
        """Return the switch's name."""
        return self.config.name

    @property
    def codec(self) -> RowCodec:
        """Return the translator of rows; it is known once the P4Info was read."""
        if self._codec is None:
            raise SwitchNotReady(f"switch {self.name} at {self.config.addr} is not connected")
        return self._codec

    async def run(self) -> None:
        """Keep the connection until cancelled; raises ConfigError when the program's files cannot be used."""
        options = self._options()
        attempt = 0
        while True:
            await self._wait_for_port()
            switch = _Switch(self.name, self.config.addr, options)
            before = self.connects
            try:
                await self._session(switch)
            except ConfigError:
                raise
            except (finsy.P4ClientError, SwitchError) as ex:
                LOG.warning("switch %s: %s", self.name, _reason(ex))
            except asyncio.CancelledError:
                if switch.failure is None:
                    raise  # it is we who are to end
                LOG.warning("switch %s: %s", self.name, _reason(switch.failure))
            except Exception:  # whatever a switch does to finsy, the next connection may be better
                LOG.exception("switch %s", self.name)
            finally:
                self._lost()
            if switch.failure is not None and self.connects == 0:
                raise ConfigError(
                    f"switch {self.name} refuses {self.config.bmv2_json or 'its program'}: {_reason(switch.failure)}"
                )
            attempt = 0 if self.connects > before else attempt + 1
            await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])

    def _options(self) -> finsy.SwitchOptions:
        for path in (self.config.p4info, self.config.bmv2_json):
            if path is not None and not path.is_file():
                raise ConfigError(f"switch {self.name}: {path} is not there")
        return finsy.SwitchOptions(
            p4info=self.config.p4info, p4blob=self.config.bmv2_json, device_id=self.config.id
        )

    async def _wait_for_port(self) -> None:
        """Wait until somebody listens: gRPC's own retries begin with a second's pause."""
        host, _, port = self.config.addr.rpartition(":")
        while True:
            try:
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            except OSError:
                await asyncio.sleep(_POLL_S)
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return

    async def _session(self, switch: _Switch) -> None:
        """Serve one connection until it ends."""
        down, events = asyncio.Event(), asyncio.Queue[bool]()
        switch.ee.on(finsy.SwitchEvent.CHANNEL_READY, lambda _: events.put_nowait(switch.is_primary))
        switch.ee.on(finsy.SwitchEvent.CHANNEL_DOWN, lambda _: down.set())
        async with contextlib.AsyncExitStack() as stack:
            ends = [await stack.enter_async_context(_running(down.wait()))]
            if self._listener is not None:
                for reader in (self._read_packets(switch), self._read_digests(switch)):
                    ends.append(await stack.enter_async_context(_running(reader)))
                await asyncio.sleep(0)  # both have opened their queues when the stream begins
            await stack.enter_async_context(switch)
            self._switch, self._codec = switch, RowCodec(switch.p4info)
            while not (over := [end for end in ends if end.done()]):
                async with _running(events.get()) as change:
                    await asyncio.wait({change, *ends}, return_when=asyncio.FIRST_COMPLETED)
                    if change.done():
                        await self._role(change.result())
            for end in over:
                end.result()

    async def _role(self, primary: bool) -> None:
        """Set the tables up as the primary, or stand back as a backup."""
        self.ready.clear()
        if not primary:
            self.state = "backup"
            LOG.warning("switch %s: another controller is in charge", self.name)
            return
        self.state = "setting up"
        if self._listener is not None:
            await self._configure_digest()
        await self._on_ready(self, await self.read_rows())
        self.state = "ready"
        self.connects += 1
        self.ready.set()

    def _lost(self) -> None:
        self._switch = None
        self.state = "connecting"
        self.ready.clear()
        for waiting in self._barriers.values():
            if not waiting.done():
                waiting.set_exception(SwitchNotReady(f"switch {self.name} was lost"))
        self._barriers.clear()

    def _connected(self) -> _Switch:
        if self._switch is None:
            raise SwitchNotReady(f"switch {self.name} at {self.config.addr} is not connected")
        if self.state == "backup":
            raise NotPrimary(f"another controller is in charge of switch {self.name}")
        return self._switch

    # ---- stream

    async def _read_packets(self, switch: finsy.Switch) -> None:
        assert self._listener is not None
        async for packet in switch.read_packets(queue_size=_QUEUE):
            reason, id = packet["reason"], packet["id"]
            if reason != REASON_BARRIER:
                self._listener.on_packet(reason, packet["port"], id, packet.payload)
                continue
            waiting = self._barriers.pop(id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    async def _read_digests(self, switch: finsy.Switch) -> None:
        assert self._listener is not None
        async for digest in switch.read_digests(DIGEST, queue_size=_QUEUE):
            self._listener.on_digest(digest.data)
            await self._send(switch, digest.ack())

    async def _configure_digest(self) -> None:
        entry = finsy.P4DigestEntry(
            DIGEST, max_list_size=DIGEST_LIST, max_timeout_ns=DIGEST_TIMEOUT_NS, ack_timeout_ns=100_000_000
        )
        switch = self._connected()
        try:
            await switch.insert([entry])
        except finsy.P4ClientError as ex:
            if not all(e.canonical_code == finsy.GRPCStatusCode.ALREADY_EXISTS for e in ex.details.values()):
                raise
            await switch.modify([entry])

    async def packets_out(self, packets: Packets) -> None:
        """Send packets in order."""
        switch = self._connected()
        for packet in self._encode(packets):
            await self._send(switch, p4r.StreamMessageRequest(packet=packet))

    def _encode(self, packets: Packets) -> Iterator[p4r.PacketOut]:
        headers: dict[int, list[p4r.PacketMetadata]] = {}
        for port, frame in packets.frames:
            if port not in headers:
                message = finsy.P4PacketOut(b"", port=port, operation=packets.operation, id=packets.id)
                headers[port] = list(message.encode_update(self._connected().p4info).packet.metadata)
            yield p4r.PacketOut(payload=frame, metadata=headers[port])

    async def _send(
        self, switch: finsy.Switch, message: p4r.StreamMessageRequest | finsy.P4DigestListAck
    ) -> None:
        """Send one stream message; grpc.aio loses messages of writers that do not wait for each other."""
        async with self._sending:
            try:
                await switch.write([message])
            except finsy.P4ClientError as ex:
                raise SwitchNotReady(f"switch {self.name}: {_reason(ex)}") from ex

    async def barrier(self, timeout: float = _BARRIER_S) -> None:
        """Return when the switch has handled all that was sent to it, and the listener all that it had reported.

        The switch gives the barrier back behind its earlier packet-ins. An earlier digest may still wait in the
        switch for its list to fill (at most DIGEST_TIMEOUT_NS), or come out of a thread of its own (BMv2).
        """
        with told(SWITCH, "barrier", "barrier: what came before is done", behind=True):
            await self._barrier(timeout)

    async def _barrier(self, timeout: float) -> None:
        token = next(self._tokens)
        waiting = asyncio.get_running_loop().create_future()
        self._barriers[token] = waiting
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            while not waiting.done():
                if asyncio.get_running_loop().time() > deadline:
                    raise BarrierTimeout(f"switch {self.name} did not answer a barrier within {timeout:g} s")
                # A switch that is flooded may drop one on its way to us.
                await self.packets_out(Packets(OP_BARRIER, token, [(0, b"\0" * 14)]))
                await asyncio.wait({waiting}, timeout=_BARRIER_AGAIN_S)
            waiting.result()
        finally:
            self._barriers.pop(token, None)
        # finsy has put earlier digests into their queue before it saw the barrier; their reader was woken then.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    # ---- tables

    async def write(self, changes: Sequence[Change]) -> dict[int, str]:
        """Write changes in order, in requests of bounded size; return the refused ones with the reason."""
        with told(SWITCH, f"write {_summary(changes)}", "written"):
            return await self._write(changes)

    async def _write(self, changes: Sequence[Change]) -> dict[int, str]:
        switch, codec = self._connected(), self.codec
        refused: dict[int, str] = {}
        for start in range(0, len(changes), _BATCH):
            updates = [codec.update(change) for change in changes[start : start + _BATCH]]
            try:
                await switch.write(updates)
            except finsy.P4ClientError as ex:
                if ex.code in _AWAY:
                    raise SwitchNotReady(f"switch {self.name} was lost: {_reason(ex)}") from ex
                if not ex.details:
                    raise WriteRefused(f"switch {self.name} did not take a write: {_reason(ex)}") from ex
                refused |= {
                    start + at: f"{e.canonical_code.name} {e.message}" for at, e in ex.details.items()
                }
            except ValueError as ex:
                raise WriteRefused(f"switch {self.name} cannot hold this: {ex}") from ex
        return refused

    async def write_soon(self, changes: Sequence[Change], behind: Packets | None = None) -> None:
        """Write changes by a message on the stream, and send the packets `behind` them in the same.

        Only our switch takes it (see dataplane/switch/p4runtime/externs.py). Nothing says what became of them.
        """
        if changes:
            sent(SWITCH, f"write {_summary(changes)}")
        updates = [self.codec.update(change) for change in changes]
        if behind is not None:
            updates += [_extern_update(Op.INSERT, _PACKETS, packet) for packet in self._encode(behind)]
        await self._send(self._connected(), _request(updates))

    async def set_defaults(self, entries: Sequence[finsy.P4TableEntry]) -> None:
        """Set tables' default actions."""
        try:
            await self._connected().modify(entries)
        except finsy.P4ClientError as ex:
            raise WriteRefused(f"switch {self.name} refused a default action: {_reason(ex)}") from ex
        except ValueError as ex:
            raise ConfigError(f"switch {self.name}: {ex}") from ex

    async def read_rows(self) -> list[Row]:
        """Read every row of every table that may be written."""
        rows: list[Row] = []
        for table in self.codec.tables:
            rows += [
                self.codec.row(e)
                async for e in self._read(finsy.P4TableEntry(table))
                if not e.is_default_action
            ]
        return rows

    async def read_connection_counters(self) -> AsyncIterator[tuple[Row, int]]:
        """Read the pins with their packet counts."""
        wanted = finsy.P4TableEntry("connection", counter_data=finsy.P4CounterData())
        async for entry in self._read(wanted):
            count = entry.counter_data.packet_count if entry.counter_data is not None else 0
            yield self.codec.row(entry), count

    async def read_counters(self, name: str) -> dict[int, tuple[int, int]]:
        """Read an indirect counter: (packets, bytes) of every cell that is not zero."""
        return {
            entry.index or 0: (entry.packet_count, entry.byte_count)
            async for entry in self._read(finsy.P4CounterEntry(name))
            if entry.packet_count
        }

    # ---- externs: what P4Info does not have (see dataplane/switch/p4runtime/externs.py)

    async def write_extern(self, op: Op, id: int, fields: Mapping[str, Any]) -> None:
        """Write an extern entry; raises WriteRefused, which is what a switch without such an extern does."""
        try:
            await self._connected().write([_fields_update(op, id, fields)])
        except finsy.P4ClientError as ex:
            reasons = [detail.message for detail in ex.details.values()]
            raise WriteRefused(f"switch {self.name}: {', '.join(reasons) or _reason(ex)}") from ex

    def modifying_extern_soon(
        self, id: int, fields: Mapping[str, Any]
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Return what modifies an extern entry by a message on the stream, which is there before a Write would be.

        Nothing says what became of it: a Write of the same does, afterwards.
        """
        request = _request([_fields_update(Op.MODIFY, id, fields)])
        return lambda: self._send(self._connected(), request)

    async def read_externs(self, ids: Sequence[int]) -> list[tuple[int, dict[str, Any]]]:
        """Read extern entries, with the extern that each belongs to; raises SwitchError if they are not offered."""
        entries = [p4r.ExternEntry(extern_type_id=_EXTERN_TYPE, extern_id=id) for id in ids]
        found: list[tuple[int, dict[str, Any]]] = []
        try:
            for entity in await self._connected().read_plain([p4r.Entity(extern_entry=e) for e in entries]):
                struct = Struct()
                entity.extern_entry.entry.Unpack(struct)
                found.append((entity.extern_entry.extern_id, json_format.MessageToDict(struct)))
        except finsy.P4ClientError as ex:
            raise SwitchError(f"switch {self.name} did not answer a read: {_reason(ex)}") from ex
        return found

    async def _read(self, entity: Any) -> AsyncIterator[Any]:
        """Read with a pause now and then: decoding many entries must not stop the packets."""
        try:
            count = 0
            async for entry in self._connected().read(entity):  # type: ignore[attr-defined]
                yield entry
                count += 1
                if count % 256 == 0:
                    await asyncio.sleep(0)
        except finsy.P4ClientError as ex:
            raise SwitchError(f"switch {self.name} did not answer a read: {_reason(ex)}") from ex


class _Switch(finsy.Switch):  # type: ignore[misc]
    """finsy's switch, which else only logs why it could not set the pipeline, and cancels whoever waits for it.

    finsy marks the class as final; overriding one public method is still the least that gets at the reason. And it
    reads nothing that P4Info does not have.
    """

    failure: finsy.P4ClientError | None = None

    async def read_plain(self, entities: Sequence[p4r.Entity]) -> list[p4r.Entity]:
        """Read entities that P4Info does not describe, and which finsy therefore cannot decode."""
        assert self._p4client is not None
        request = p4r.ReadRequest(device_id=self.device_id, entities=entities)
        return [entity async for reply in self._p4client.request_iter(request) for entity in reply.entities]

    def create_task(
        self, coro: Coroutine[Any, Any, _T], *, background: bool = False, name: str | None = None
    ) -> asyncio.Task[_T]:
        """Remember why a task failed, unless the switch is just not there."""
        name = name or getattr(coro, "__qualname__", None)
        return super().create_task(self._watched(coro), background=background, name=name)

    async def _watched(self, coro: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await coro
        except finsy.P4ClientError as ex:
            if ex.code != finsy.GRPCStatusCode.UNAVAILABLE:
                self.failure = ex
            raise


@contextlib.asynccontextmanager
async def _running(work: Any) -> AsyncIterator[asyncio.Future[Any]]:
    """Run a coroutine beside the block, and end it with the block."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _request(updates: Sequence[p4r.Update]) -> p4r.StreamMessageRequest:
    """Return updates as a message on the stream."""
    request = p4r.StreamMessageRequest()
    request.other.Pack(updates[0] if len(updates) == 1 else p4r.WriteRequest(updates=updates))
    return request


def _fields_update(op: Op, id: int, fields: Mapping[str, Any]) -> p4r.Update:
    struct = Struct()
    struct.update(fields)
    return _extern_update(op, id, struct)


def _extern_update(op: Op, id: int, content: Message) -> p4r.Update:
    entry = p4r.ExternEntry(extern_type_id=_EXTERN_TYPE, extern_id=id)
    entry.entry.Pack(content)
    return p4r.Update(type=UPDATE_TYPE[op], entity=p4r.Entity(extern_entry=entry))


def _summary(changes: Sequence[Change]) -> str:
    """Say which tables are changed, and in how many rows."""
    counts = Counter(f"{change.op.value} {change.row.table}" for change in changes)
    return ", ".join(f"{what} ({count})" if count > 1 else what for what, count in counts.items())


def _reason(ex: Exception) -> str:
    if isinstance(ex, finsy.P4ClientError):
        return f"{ex.code.name} {ex.message}"
    return str(ex) or type(ex).__name__
