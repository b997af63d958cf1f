"""A switch that runs load_balancer.p4 in Python, behind the project's real P4Runtime server.

The apply block is written out line by line as in the P4 source, so what the controller's rows mean is tested without
a kernel. Frames go in with `inject` and are found in `out` as (port, frame); checksums are left alone.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from dataplane.switch.p4runtime.device import Device
from dataplane.switch.p4runtime.server import P4RuntimeServer
from dataplane.switch.pipeline import (
    ActionCall,
    BadEntry,
    CounterValue,
    Exact,
    HoldQueue,
    Lpm,
    Match,
    Pipeline,
    PipelineError,
    QueueState,
)
from tests.dataplane.p4runtime.model import ModelPipeline

CPU_PORT = 255
SYN, ACK, FIN, RST = 0x02, 0x10, 0x01, 0x04
_HEADER = struct.Struct("!HBI")

Digest = Callable[[str, tuple[int, ...]], None]


def frame(
    protocol: int, source: tuple[int, int], destination: tuple[int, int], flags: int = ACK, data: bytes = b""
) -> bytes:
    """Return an Ethernet frame with a TCP or UDP packet."""
    ports = struct.pack("!HH", source[1], destination[1])
    l4 = ports + (
        struct.pack("!IIBBHHH", 0, 0, 0x50, flags, 0, 0, 0) if protocol == 6 else struct.pack("!HH", 8, 0)
    )
    ip = struct.pack(
        "!BBHHHBBHII", 0x45, 0, 20 + len(l4 + data), 0, 0, 64, protocol, 0, source[0], destination[0]
    )
    return b"\0" * 12 + b"\x08\0" + ip + l4 + data


class BalancerPipeline(ModelPipeline):
    """The program's tables, and what it does with packets."""

    def __init__(
        self,
        program: dict[str, Any],
        on_packet_in: Callable[[bytes], None],
        on_digest: Digest,
        offers_queues: bool,
    ) -> None:
        super().__init__(program, {})
        self._on_packet_in = on_packet_in
        self._on_digest = on_digest
        self.out: list[tuple[int, bytes]] = []
        self.waiting: dict[int, list[tuple[int, bytes]]] = {}
        self.offers_queues = offers_queues

    def _look_up(self, table: str, *values: int) -> ActionCall | None:
        key: tuple[Match, ...] = tuple(Exact(value) for value in values)
        entry = self.tables[f"Ingress.{table}"].get((key, 0))
        return entry.action if entry is not None else None

    def packet_out(self, frame: bytes) -> None:
        port, operation, id = _HEADER.unpack_from(frame)
        body = frame[_HEADER.size :]
        if operation == 0:
            self.out.append((port, body))
        elif operation == 2:
            self._punt(port, 1, id, body)
        else:
            self.process(port, body, id)

    def _punt(self, port: int, reason: int, id: int, body: bytes) -> None:
        for number, state in self.held.items():
            if state.queue.packet_in == {"reason": reason, "id": id}:
                self._wait(number, state, port, body)
                return
        self._on_packet_in(_HEADER.pack(port, reason, id) + body)

    # ---- hold queues, unless this is to be a switch that has none

    def _wait(self, number: int, state: QueueState, port: int, body: bytes) -> None:
        if not state.holding:
            self.process(port, body, state.queue.packet_out["id"])
        elif state.waiting + len(body) > state.queue.budget:
            self.held[number] = replace(state, dropped=state.dropped + 1)
        else:
            sums = {name: getattr(state, name) + len(body) for name in ("bytes", "waiting")}
            self.held[number] = replace(state, packets=state.packets + 1, **sums)
            self.waiting.setdefault(number, []).append((port, body))

    def add_queue(self, number: int, queue: HoldQueue) -> None:
        if not self.offers_queues:
            raise BadEntry("this switch has no hold queues")
        super().add_queue(number, queue)

    def queues(self) -> Mapping[int, QueueState]:
        if not self.offers_queues:
            raise BadEntry("this switch has no hold queues")
        return super().queues()

    def release_queue(self, number: int, room: int | None = None) -> None:
        super().release_queue(number, room)
        for port, body in self.waiting.pop(number, ()):
            self.process(port, body, self.held[number].queue.packet_out["id"])

    # ---- packets

    def process(self, port: int, body: bytes, resume_id: int = 0) -> None:
        """Do what Ingress.apply does with an IPv4 packet."""
        protocol = body[23]
        src, dst, src_port, dst_port = struct.unpack_from("!IIHH", body, 26)
        flags = body[47] if protocol == 6 else 0
        as_addr, as_port, to_addr, to_port = src, src_port, dst, dst_port
        opens = protocol != 6 or flags & (SYN | ACK) == SYN
        service = backend = reason = id = 0
        stays = False
        speaks = self._look_up("connection_source", protocol, src, src_port, dst, dst_port)
        speaks = speaks or self._look_up("endpoint_source", protocol, src, src_port)
        if speaks is not None:
            as_addr, as_port = speaks.params
            stays = speaks.name == "Ingress.stay_as"
        key = (protocol, as_addr, as_port, dst, dst_port)
        pin = self._look_up("connection", *key)
        if pin is not None:
            exact: tuple[Match, ...] = tuple(Exact(value) for value in key)
            direct = self.direct["Ingress.connection"]
            old = direct.get((exact, 0), CounterValue())
            direct[exact, 0] = CounterValue(old.packets + 1, old.bytes + len(body))
            if pin.name == "Ingress.pin_to_backend":
                service, backend = pin.params
            else:
                to_addr, to_port = pin.params
                stays = stays or pin.name == "Ingress.stay_at"
        elif (where := self._look_up("destination", protocol, dst, dst_port)) is not None:
            name = where.name.removeprefix("Ingress.")
            if name == "send_to":
                to_addr, to_port = where.params
            elif name == "direct" and opens:
                reason, id = 4, where.params[0]
            elif name.startswith("serve"):
                service = where.params[0]
                packed = struct.pack("!BIHIH", protocol, as_addr, as_port, dst, dst_port)
                slot = zlib.crc32(packed) % 1021
                chosen = self._look_up("maglev", service, slot)
                if chosen is None:
                    return
                backend = chosen.params[0]
                if name == "serve_guarded" and opens:
                    reason, id = 3, service
        if backend and not reason:
            location = self._look_up("backend", backend)
            if location is None:
                return
            to_addr, to_port = location.params
        sends = self._look_up("hold_source", protocol, src, src_port)
        if not reason and sends is not None and not resume_id and not stays:
            reason, id = self._kept("holding_source", sends.params[0])
        held = self._look_up("hold", protocol, to_addr, to_port)
        if not reason and held is not None and held.params[0] != resume_id and not stays:
            reason, id = self._kept("holding", held.params[0])
        if reason:
            self._punt(port, reason, id, body)
            return
        if pin is None and service:
            self._on_digest("connection_event_t", (1, *key, service, backend, 0))
        if pin is not None and flags & (FIN | RST):
            self._on_digest("connection_event_t", (2, *key, service, backend, flags))
        addresses = struct.pack("!IIHH", as_addr, to_addr, as_port, to_port)
        self._route(to_addr, body[:26] + addresses + body[38:])

    def _kept(self, table: str, id: int) -> tuple[int, int]:
        keep = self._look_up(table, id)
        return (keep.params[0] if keep is not None else 0), id

    def _route(self, to_addr: int, body: bytes) -> None:
        best: tuple[int, ActionCall] | None = None
        for (match, _), entry in self.tables["Ingress.route"].items():
            lpm = match[0]
            assert isinstance(lpm, Lpm)
            if (to_addr ^ lpm.value) >> (32 - lpm.prefix_len) == 0 and (
                best is None or lpm.prefix_len > best[0]
            ):
                best = (lpm.prefix_len, entry.action)
        if best is not None and best[1].name == "Ingress.forward":
            self.out.append((best[1].params[0], body))


@dataclass
class BalancerEngine:
    """Makes such pipelines."""

    on_packet_in: Callable[[bytes], None]
    on_digest: Digest
    offers_queues: bool = True
    loaded: list[BalancerPipeline] = field(default_factory=list)

    def add_port(self, port: int, interface: str) -> None:
        raise PipelineError(f"{interface}: a model has no ports")

    def remove_port(self, port: int) -> None:
        raise PipelineError(f"there is no port {port}")

    def load(self, bmv2_json: bytes) -> Pipeline:
        program = json.loads(bmv2_json)
        self.loaded.append(BalancerPipeline(program, self.on_packet_in, self.on_digest, self.offers_queues))
        return self.loaded[-1]

    def close(self) -> None:
        pass


@dataclass
class ModelSwitch:
    """A served switch."""

    device: Device
    engine: BalancerEngine
    address: str

    @property
    def running(self) -> BalancerPipeline:
        """Return the pipeline that was loaded last."""
        return self.engine.loaded[-1]

    def inject(self, packet: bytes, port: int = 1) -> None:
        """Let a frame come in."""
        self.running.process(port, packet)

    def taken(self) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
        """Return what went out since the last call: (port, source, destination)."""
        out, self.running.out[:] = list(self.running.out), []
        found = []
        for port, body in out:
            src, dst, src_port, dst_port = struct.unpack_from("!IIHH", body, 26)
            found.append((port, (src, src_port), (dst, dst_port)))
        return found


@contextmanager
def served(device_id: int = 1, port: int = 0, offers_queues: bool = True) -> Iterator[ModelSwitch]:
    """Serve a model switch on a port of the loopback device."""
    device = Device(device_id)
    engine = BalancerEngine(device.on_packet_in, device.on_digest, offers_queues)
    device.attach_engine(engine)
    with P4RuntimeServer(device, f"127.0.0.1:{port}") as server:
        yield ModelSwitch(device, engine, f"127.0.0.1:{server.port}")
    device.close()
    engine.close()
