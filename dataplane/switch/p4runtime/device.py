"""The device: its pipelines, its controllers, and who may do what when.

At most two pipelines are loaded: the committed one, which handles packets, and one that was verified and saved and
waits for COMMIT. Writes and reads refer to the newest. A saved pipeline's maps exist already, so writes between
VERIFY_AND_SAVE and COMMIT go where they will be needed, and COMMIT only attaches.

Three locks, taken in this order: `_config_lock` (one SetForwardingPipelineConfig at a time; held while a program is
compiled), `_state_lock` (a batch of writes, a snapshot of a read, an arbitration, a change of pipeline: strictly one
after the other, which is the serializability that the specification asks for), and the pipeline's own.
Packets and digests take none of the first two.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from finsy.proto import p4i, p4r
from google.protobuf import any_pb2

from dataplane.switch.p4runtime import externs, packet_io
from dataplane.switch.p4runtime.arbitration import Arbitration, Notifications
from dataplane.switch.p4runtime.controller import Controller
from dataplane.switch.p4runtime.due import DueThread
from dataplane.switch.p4runtime.errors import (
    Code,
    RequestRefused,
    invalid,
    refusals,
    unimplemented,
)
from dataplane.switch.p4runtime.forwarding import Forwarding, Result
from dataplane.switch.p4runtime.schema import build_schema, parse_device_config
from dataplane.switch.p4runtime.serialized import SerializedPipeline
from dataplane.switch.pipeline import Engine, Pipeline, PipelineError

log = logging.getLogger(__name__)

IDLE_ENTRIES = 1024
"""Entries in one notification."""
IDLE_SWEEP_S = 0.05
"""Between two notifications, so that entries that fall silent together are told of together."""
# The wording is BMv2's; clients (finsy) recognise it.
NO_PIPELINE = "No forwarding pipeline config set for this device"

_SetConfig: TypeAlias = p4r.SetForwardingPipelineConfigRequest
_GetConfig: TypeAlias = p4r.GetForwardingPipelineConfigRequest


@dataclass
class _Configured:
    """A pipeline with the configuration that a client sent for it."""

    config: p4r.ForwardingPipelineConfig
    forwarding: Forwarding


class Device:
    """One P4Runtime device on one engine."""

    def __init__(self, device_id: int) -> None:
        """Start without engine and pipeline; `attach_engine` follows."""
        self.device_id = device_id
        self.arbitration = Arbitration(device_id)
        self._engine: Engine | None = None
        self._bare: Pipeline | None = None
        self._committed: _Configured | None = None
        self._saved: _Configured | None = None
        self._config_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._digests = DueThread("digests", self._next_digests, self._send_due_digests)
        self._silences = DueThread("idle-timeouts", self._next_silence, self._tell_of_silences)

    def attach_engine(self, engine: Engine) -> None:
        """Take the engine, which calls back `on_packet_in` and `on_digest`."""
        self._engine = engine

    def start_program(self, bmv2_json: bytes) -> None:
        """Run a program that came without P4Info: packets flow, P4Runtime still waits for a client's configuration."""
        assert self._engine is not None
        self._bare = self._engine.load(bmv2_json)
        self._bare.activate()

    def close(self) -> None:
        """End our threads and close all pipelines; the engine is the caller's to close."""
        self._digests.close()
        self._silences.close()
        with self._state_lock:
            for configured in (self._saved, self._committed):
                if configured is not None:
                    configured.forwarding.close()
            if self._bare is not None:
                self._bare.close()
            self._saved = self._committed = self._bare = None

    # ---- requests

    def check_device(self, device_id: int) -> None:
        """Raise RequestRefused unless a request is for this device."""
        if device_id != self.device_id:
            raise RequestRefused(
                Code.NOT_FOUND, f"device {device_id} is not known here: this is device {self.device_id}"
            )

    def write(self, request: p4r.WriteRequest) -> list[Result]:
        """Carry out a batch; raises RequestRefused when no update was attempted."""
        self.check_device(request.device_id)
        with self._state_lock:
            self._check_primary(request.role, request)
            forwarding = self._forwarding()
            match request.atomicity:
                case p4r.WriteRequest.CONTINUE_ON_ERROR:
                    results = forwarding.write(request.updates)
                case p4r.WriteRequest.DATAPLANE_ATOMIC if len(request.updates) > 1:
                    raise unimplemented("DATAPLANE_ATOMIC is offered for a single update only")
                case p4r.WriteRequest.ROLLBACK_ON_ERROR | p4r.WriteRequest.DATAPLANE_ATOMIC:
                    results = forwarding.write_or_roll_back(request.updates)
                case _:
                    raise invalid(f"atomicity {request.atomicity} is not known")
        self._wake_threads(request.updates)
        return results

    def _wake_threads(self, updates: Sequence[p4r.Update]) -> None:
        """Let our threads see what was written."""
        if any(update.entity.HasField("digest_entry") for update in updates):
            self._digests.wake()
        if any(update.entity.table_entry.idle_timeout_ns for update in updates):
            self._silences.start()

    def read(self, request: p4r.ReadRequest) -> tuple[list[Iterator[p4r.Entity]], list[Result]]:
        """Take snapshots of everything that is asked for; one result for each entity of the request."""
        self.check_device(request.device_id)
        if request.role:
            raise RequestRefused(Code.NOT_FOUND, f"role {request.role!r}: only the default role is offered")
        found: list[Iterator[p4r.Entity]] = []
        results: list[Result] = []
        with self._state_lock:
            forwarding = self._forwarding()
            for entity in request.entities:
                try:
                    found.append(forwarding.read(entity))
                    results.append(None)
                except RequestRefused as ex:
                    results.append(ex)
        return found, results

    def _forwarding(self) -> Forwarding:
        newest = self._saved or self._committed
        if newest is None:
            raise RequestRefused(Code.FAILED_PRECONDITION, NO_PIPELINE)
        return newest.forwarding

    def _check_primary(self, role: str, request: p4r.WriteRequest | _SetConfig) -> None:
        self.arbitration.check_primary(role, request.election_id if request.HasField("election_id") else None)

    # ---- pipelines

    def get_config(self, request: _GetConfig) -> p4r.ForwardingPipelineConfig | None:
        """Return the configuration that reads and writes refer to, with the fields that are asked for."""
        self.check_device(request.device_id)
        with self._state_lock:
            newest = self._saved or self._committed
        if newest is None:
            return None
        stored, kind = newest.config, request.response_type
        config = p4r.ForwardingPipelineConfig()
        if stored.HasField("cookie"):
            config.cookie.CopyFrom(stored.cookie)
        if kind in (_GetConfig.ALL, _GetConfig.P4INFO_AND_COOKIE):
            config.p4info.CopyFrom(stored.p4info)
        if kind in (_GetConfig.ALL, _GetConfig.DEVICE_CONFIG_AND_COOKIE):
            config.p4_device_config = stored.p4_device_config
        return config

    def set_config(self, request: _SetConfig) -> None:
        """Verify, save or commit a pipeline; on any refusal the old one runs on."""
        self.check_device(request.device_id)
        with self._config_lock:
            with self._state_lock:
                self._check_primary(request.role, request)
            if request.action == _SetConfig.COMMIT:
                self._commit_saved(request)
                return
            if request.action not in (
                _SetConfig.VERIFY,
                _SetConfig.VERIFY_AND_SAVE,
                _SetConfig.VERIFY_AND_COMMIT,
                _SetConfig.RECONCILE_AND_COMMIT,
            ):
                raise invalid("the action of SetForwardingPipelineConfig is unset or not known")
            if not request.HasField("config"):
                raise invalid("the request carries no pipeline config")
            if request.action == _SetConfig.RECONCILE_AND_COMMIT and self._is_running(request.config):
                return
            loaded = self._load(request.config)
            try:
                self._use(loaded, request)
            except RequestRefused:
                loaded.forwarding.close()
                raise

    def _load(self, config: p4r.ForwardingPipelineConfig) -> _Configured:
        assert self._engine is not None
        started = time.monotonic()
        program = parse_device_config(config.p4_device_config)
        if not config.HasField("p4info"):
            raise invalid("the pipeline config has no P4Info")
        schema = build_schema(_copy(config.p4info), program)
        with refusals():
            pipeline = self._engine.load(config.p4_device_config)
        log.info("pipeline loaded in %.0f ms", (time.monotonic() - started) * 1000)
        return _Configured(config, Forwarding(schema, SerializedPipeline(pipeline)))

    def _use(self, loaded: _Configured, request: _SetConfig) -> None:
        """Do with a verified pipeline what the request wants; raises RequestRefused without a trace."""
        with self._state_lock:
            # Compiling took a while: the primary may be another one by now.
            self._check_primary(request.role, request)
            match request.action:
                case _SetConfig.VERIFY:
                    loaded.forwarding.close()
                case _SetConfig.VERIFY_AND_SAVE:
                    self._drop_saved()
                    self._saved = loaded
                case _SetConfig.RECONCILE_AND_COMMIT:
                    if self._committed is not None:
                        loaded.forwarding.adopt(self._committed.forwarding)
                    self._commit(loaded)
                    self._drop_saved()
                case _:
                    self._commit(loaded)
                    self._drop_saved()

    def _commit_saved(self, request: _SetConfig) -> None:
        if request.HasField("config"):
            raise invalid("COMMIT takes no config: it commits the saved one")
        with self._state_lock:
            if self._saved is None:
                raise RequestRefused(Code.NOT_FOUND, "no config was saved with VERIFY_AND_SAVE")
            self._commit(self._saved)
            self._saved = None

    def _commit(self, loaded: _Configured) -> None:
        with refusals():
            loaded.forwarding.pipeline.activate()
        old, self._committed = self._committed, loaded
        bare, self._bare = self._bare, None
        self._silences.wake()
        log.info("pipeline committed")
        for pipeline in (old.forwarding.pipeline if old else None, bare):
            if pipeline is not None:
                self._close_quietly(pipeline)

    def _close_quietly(self, pipeline: Pipeline) -> None:
        try:
            pipeline.close()
        except PipelineError:
            log.exception("the old pipeline could not be closed")

    def _drop_saved(self) -> None:
        if self._saved is not None:
            self._close_quietly(self._saved.forwarding.pipeline)
            self._saved = None

    def _is_running(self, config: p4r.ForwardingPipelineConfig) -> bool:
        """Take just the cookie of a configuration that is the committed one."""
        with self._state_lock:
            running = self._committed
            if (
                running is None
                or self._saved is not None
                or running.config.p4_device_config != config.p4_device_config
                or running.config.p4info != config.p4info
            ):
                return False
            running.config = config
            return True

    # ---- controllers

    def arbitrate(self, controller: Controller, message: p4r.MasterArbitrationUpdate) -> None:
        """Take a controller's bid; raises RequestRefused, upon which its stream must end."""
        with self._state_lock:
            if controller.gone:
                raise RequestRefused(Code.ABORTED, "the stream has ended")
            before = self.arbitration.primary
            self._notify(self.arbitration.update(controller, message))
            if self.arbitration.primary is not before and self._committed is not None:
                self._committed.forwarding.digests.forget_unacknowledged()

    def leave(self, controller: Controller) -> None:
        """Forget a controller whose stream has ended."""
        with self._state_lock:
            controller.gone = True
            self._notify(self.arbitration.remove(controller))

    def _notify(self, notifications: Notifications) -> None:
        for client, message in notifications:
            assert isinstance(client, Controller)
            client.send(p4r.StreamMessageResponse(arbitration=message))

    def _primary(self) -> Controller | None:
        primary = self.arbitration.primary
        assert primary is None or isinstance(primary, Controller)
        return primary

    def packet_out(self, controller: Controller, message: p4r.PacketOut) -> None:
        """Send a controller's packet; raises RequestRefused."""
        if controller is not self.arbitration.primary:
            raise RequestRefused(Code.PERMISSION_DENIED, "only the primary may send packets")
        committed = self._committed
        if committed is None:
            raise RequestRefused(Code.FAILED_PRECONDITION, NO_PIPELINE)
        frame = packet_io.packet_out(committed.forwarding.schema.packet_out, message)
        with refusals():
            committed.forwarding.pipeline.packet_out(frame)

    def stream_updates(self, controller: Controller, message: any_pb2.Any) -> None:
        """Carry out what came on the stream, between the packets that were sent before and after it.

        Raises RequestRefused.
        """
        updates = externs.stream_updates(message)
        with self._state_lock:
            if controller is not self.arbitration.primary:
                raise RequestRefused(Code.PERMISSION_DENIED, "only the primary may write")
            results = self._forwarding().write(updates)
        self._wake_threads(updates)
        for result in results:
            if result is not None:
                raise result

    def acknowledge_digest(self, controller: Controller, ack: p4r.DigestListAck) -> None:
        """Take the acknowledgement of a digest list; raises RequestRefused."""
        if controller is not self.arbitration.primary:
            raise RequestRefused(Code.PERMISSION_DENIED, "only the primary may acknowledge digests")
        if self._committed is None:
            raise RequestRefused(Code.FAILED_PRECONDITION, NO_PIPELINE)
        self._committed.forwarding.digests.acknowledge(ack)

    # ---- what the engine reports, on threads of its own

    def on_packet_in(self, frame: bytes) -> None:
        """Give a frame from the CPU port to the primary."""
        primary, committed = self._primary(), self._committed
        if primary is None or committed is None:
            return
        try:
            message = packet_io.packet_in(committed.forwarding.schema.packet_in, frame)
        except RequestRefused as ex:
            log.warning("a packet-in is dropped: %s", ex)
            return
        primary.send_if_room(p4r.StreamMessageResponse(packet=message))

    def on_digest(self, name: str, values: tuple[int, ...]) -> None:
        """Collect a digest message for the primary."""
        primary, committed = self._primary(), self._committed
        if primary is None or committed is None:
            return
        digests = committed.forwarding.digests
        before = digests.next_deadline()
        try:
            full = digests.report(name, values, time.monotonic_ns())
        except RequestRefused as ex:
            log.warning("a digest is dropped: %s", ex)
            return
        if full is not None:
            primary.send_if_room(p4r.StreamMessageResponse(digest=full))
        elif digests.next_deadline() != before:
            self._digests.start()

    def _next_digests(self) -> int | None:
        committed = self._committed
        return committed.forwarding.digests.next_deadline() if committed else None

    def _send_due_digests(self) -> None:
        primary, committed = self._primary(), self._committed
        if committed is None:
            return
        try:
            lists = committed.forwarding.digests.due(time.monotonic_ns())
        except RequestRefused as ex:
            log.warning("digests are dropped: %s", ex)
            return
        for digest_list in lists:
            if primary is not None:
                primary.send_if_room(p4r.StreamMessageResponse(digest=digest_list))

    # ---- idle time-outs

    def _next_silence(self) -> int | None:
        with self._state_lock:
            at = self._committed.forwarding.pipeline.next_idle() if self._committed is not None else None
        return None if at is None else max(at, time.monotonic_ns() + int(IDLE_SWEEP_S * 1e9))

    def _tell_of_silences(self) -> None:
        """Tell the primary of entries that have been silent for their time-out; without one, they are told of later."""
        if (primary := self._primary()) is None:
            return
        with self._state_lock:
            if self._committed is None:
                return
            entries = self._committed.forwarding.tables.idle_entries(IDLE_ENTRIES)
        if entries:
            notification = p4r.IdleTimeoutNotification(table_entry=entries, timestamp=time.time_ns())
            primary.send(p4r.StreamMessageResponse(idle_timeout_notification=notification))
            time.sleep(IDLE_SWEEP_S)


def _copy(p4info: p4i.P4Info) -> p4i.P4Info:
    copy = p4i.P4Info()
    copy.CopyFrom(p4info)
    return copy
