"""Ports and pipelines: what is attached where.

An engine has one active pipeline. A new one is made ready beside it (compiled, verified, filled) and then takes its
place on every port in turn; on each the kernel exchanges the two programs in one step. All that an engine makes (tc
filters, hooks, the CPU port's veth pair) it removes on `close`; after a kill -9 the filters go on forwarding, and the
next engine on the same interfaces takes their place.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
from pathlib import Path
from types import TracebackType

from dataplane.switch.engine.cells import Cells
from dataplane.switch.engine.clang import Compiler, default_cache
from dataplane.switch.engine.cpu_port import CpuPort
from dataplane.switch.engine.hold_queues import HoldQueues
from dataplane.switch.engine.libbpf import EGRESS, INGRESS, Object, TcFilter, VerifierRejected
from dataplane.switch.engine.running import EbpfPipeline
from dataplane.switch.engine.source import Options, Source, generate
from dataplane.switch.engine.verifier import summary
from dataplane.switch.pipeline import DigestHandler, PacketInHandler, PipelineError, PipelineRejected

log = logging.getLogger(__name__)

MAX_PORT = 510
"""Port numbers have 9 bits; the highest usually means "drop"."""


def _exists(ifindex: int) -> bool:
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


class _Port:
    """A port, and our filter on its interface."""

    def __init__(self, interface: str, ifindex: int, direction: int = INGRESS) -> None:
        self.interface = interface
        self.ifindex = ifindex
        self.filter = TcFilter(ifindex, direction)


class EbpfEngine:
    """The `Engine` of dataplane/switch/pipeline.py on tc and eBPF."""

    def __init__(
        self,
        device_id: int,
        cpu_port: int = 255,
        drop_port: int = 511,
        *,
        on_packet_in: PacketInHandler = lambda frame: None,
        on_digest: DigestHandler = lambda name, values: None,
        cache: Path | None = None,
        mtu: int = 1500,
        event_bytes: int = 1 << 24,
    ) -> None:
        """Make the CPU port. `mtu` is that of the ports, for the segmentation of packet-outs."""
        self.on_packet_in = on_packet_in
        self.on_digest = on_digest
        self._options = Options(cpu_port, drop_port, event_bytes)
        self._compiler = Compiler(cache or default_cache())
        self._lock = threading.RLock()
        self._pipelines: list[EbpfPipeline] = []
        self._active: EbpfPipeline | None = None
        self._cpu = CpuPort(device_id, mtu)
        self.queues = HoldQueues(self._cpu)
        self._ports: dict[int, _Port] = {cpu_port: _Port(self._cpu.name, self._cpu.ifindex, EGRESS)}

    def __enter__(self) -> EbpfEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- ports

    def add_port(self, port: int, interface: str) -> None:
        """Bind a port number to an existing network interface; raises PipelineError when it is not there."""
        with self._lock:
            if not 0 <= port <= MAX_PORT or port == self._options.drop_port:
                raise PipelineError(f"port {port} is not 0 to {MAX_PORT}")
            if port in self._ports:
                raise PipelineError(f"port {port} is bound to {self._ports[port].interface} already")
            try:
                ifindex = socket.if_nametoindex(interface)
            except OSError as ex:
                raise PipelineError(f"port {port}: there is no interface {interface}") from ex
            for other, known in self._ports.items():
                if known.ifindex == ifindex:
                    raise PipelineError(f"port {port}: {interface} is port {other} already")
            bound = _Port(interface, ifindex)
            if self._active is not None:
                self._active.set_port(port, ifindex)
                self._attach(port, bound, self._active)
            self._ports[port] = bound

    def _attach(self, number: int, port: _Port, pipeline: EbpfPipeline) -> None:
        try:
            port.filter.attach(pipeline.object.program_fd)
        except OSError as ex:
            raise PipelineError(f"port {number}: cannot attach to {port.interface}: {ex.strerror}") from ex

    def remove_port(self, port: int) -> None:
        """Unbind a port, and detach from its interface."""
        with self._lock:
            if port not in self._ports or port == self._options.cpu_port:
                raise PipelineError(f"port {port} is not bound")
            bound = self._ports.pop(port)
            bound.filter.detach()
            if self._active is not None:
                self._active.clear_port(port, bound.ifindex)

    # ---- pipelines

    def load(self, bmv2_json: bytes) -> EbpfPipeline:
        """Generate, compile and let the kernel verify; nothing is attached. Raises PipelineRejected."""
        source = generate(bmv2_json, self._options)
        data = self._compiler.compile(source.text)
        try:
            loaded = Object(data)
        except VerifierRejected as ex:
            raise self._rejected(source, ex) from ex
        try:
            pipeline = EbpfPipeline(self, source, loaded)
        except BaseException:
            loaded.close()
            raise
        with self._lock:
            self._pipelines.append(pipeline)
        return pipeline

    def _rejected(self, source: Source, error: VerifierRejected) -> PipelineRejected:
        """Keep the verifier's log, and say what matters of it."""
        if not error.log.strip():
            return PipelineRejected(
                f"the kernel does not load the program: {error} (root and a BPF-enabled kernel are needed)"
            )
        name = hashlib.sha256(source.text.encode()).hexdigest()[:12]
        path = self._compiler.cache / f"verifier-{name}.log"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{error.log}\n\n{source.text}")
            kept = f"; full log: {path}"
        except OSError:
            kept = ""
        return PipelineRejected(
            f"the kernel's verifier rejects the program: {summary(error.log, source.text)}{kept}"
        )

    def activate(self, pipeline: EbpfPipeline) -> None:
        """Put a pipeline in the place of the active one, on every port; on failure the old one stays."""
        with self._lock:
            before = self._active
            if pipeline is before:
                return
            for number, port in self._ports.items():
                pipeline.set_port(number, port.ifindex)
            done: list[_Port] = []
            try:
                for number, port in self._ports.items():
                    if not _exists(port.ifindex):
                        log.warning("port %d: the interface %s is gone", number, port.interface)
                        continue
                    self._attach(number, port, pipeline)
                    done.append(port)
            except PipelineError:
                for port in done:
                    if before is None:
                        port.filter.detach()
                    else:
                        port.filter.attach(before.object.program_fd)
                raise
            self._active = pipeline
            self.queues.attach(pipeline.holds)
            pipeline.events.start()

    def forget(self, pipeline: EbpfPipeline) -> None:
        """Detach a pipeline if it is the active one, and free it."""
        with self._lock:
            if pipeline not in self._pipelines:
                return
            self._pipelines.remove(pipeline)
            if pipeline is self._active:
                self._active = None
                self.queues.attach(None)
                for port in self._ports.values():
                    port.filter.detach()
        pipeline.release()

    def send(self, pipeline: EbpfPipeline, cells: Cells, front: bytes, frame: bytes) -> None:
        """Send a packet-out, if the pipeline is the active one."""
        with self._lock:  # so that nobody frees the pipeline meanwhile
            if pipeline is not self._active:
                raise PipelineError("packet-out needs an active pipeline")
            with cells.memory as cell:
                self._cpu.send(cell, front, frame)

    def queues_of(self, pipeline: EbpfPipeline) -> HoldQueues:
        """Return the hold queues, if the pipeline is the active one; raises PipelineError."""
        if pipeline is not self._active:
            raise PipelineError("hold queues need an active pipeline")
        return self.queues

    def close(self) -> None:
        """Close the pipelines and remove everything that the engine made."""
        with self._lock:
            pipelines, ports = list(self._pipelines), list(self._ports.values())
            self._ports = {}
        for port in ports:
            port.filter.detach()
        for pipeline in pipelines:
            self.forget(pipeline)
        self.queues.close()
        self._cpu.close()
