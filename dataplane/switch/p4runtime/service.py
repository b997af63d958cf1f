"""The gRPC service p4.v1.P4Runtime: each method hands over to the device and puts its refusals on the wire.

Synchronous, on a thread pool. Measured beside asyncio, both take the same time for a call and for a stream's
messages, and the engine's side is blocking and thread-based: with asyncio every compile and every large batch would
have to leave the loop again.
"""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NoReturn, TypeVar

import grpc
from finsy.proto import p4r, p4r_grpc

from dataplane.switch.p4runtime.controller import Controller
from dataplane.switch.p4runtime.device import Device
from dataplane.switch.p4runtime.errors import RequestRefused
from dataplane.switch.p4runtime.status import DETAILS_KEY, SPACE, batch_status

log = logging.getLogger(__name__)

API_VERSION = "1.4.0"
ENTITIES_PER_MESSAGE = 1000

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_T = TypeVar("_T")


class P4RuntimeService(p4r_grpc.P4RuntimeServicer):  # type: ignore[misc]  # generated without types
    """The methods of p4.v1.P4Runtime."""

    def __init__(self, device: Device) -> None:
        """Serve one device."""
        self.device = device

    def Capabilities(
        self, request: p4r.CapabilitiesRequest, context: grpc.ServicerContext
    ) -> p4r.CapabilitiesResponse:
        """Say which version of P4Runtime this is."""
        return p4r.CapabilitiesResponse(p4runtime_api_version=API_VERSION)

    def SetForwardingPipelineConfig(
        self, request: p4r.SetForwardingPipelineConfigRequest, context: grpc.ServicerContext
    ) -> p4r.SetForwardingPipelineConfigResponse:
        """Verify, save or commit a pipeline."""
        try:
            self.device.set_config(request)
        except RequestRefused as ex:
            _refuse(context, ex)
        return p4r.SetForwardingPipelineConfigResponse()

    def GetForwardingPipelineConfig(
        self, request: p4r.GetForwardingPipelineConfigRequest, context: grpc.ServicerContext
    ) -> p4r.GetForwardingPipelineConfigResponse:
        """Return the pipeline's configuration."""
        try:
            config = self.device.get_config(request)
        except RequestRefused as ex:
            _refuse(context, ex)
        # "If [...] the forwarding-pipeline config is not known, the top-level config field will be unset"
        return p4r.GetForwardingPipelineConfigResponse(config=config)

    def Write(self, request: p4r.WriteRequest, context: grpc.ServicerContext) -> p4r.WriteResponse:
        """Carry out a batch of updates."""
        try:
            results = self.device.write(request)
        except RequestRefused as ex:
            _refuse(context, ex)
        if any(results):
            _refuse_batch(context, results, "update")
        return p4r.WriteResponse()

    def Read(self, request: p4r.ReadRequest, context: grpc.ServicerContext) -> Iterator[p4r.ReadResponse]:
        """Stream the entities that a request selects."""
        try:
            found, results = self.device.read(request)
        except RequestRefused as ex:
            _refuse(context, ex)
        for entities in _chunks(chain.from_iterable(found), ENTITIES_PER_MESSAGE):
            yield p4r.ReadResponse(entities=entities)
        if any(results):
            _refuse_batch(context, results, "request")

    def StreamChannel(
        self, requests: Iterator[p4r.StreamMessageRequest], context: grpc.ServicerContext
    ) -> Iterator[p4r.StreamMessageResponse]:
        """Hold a controller's session: arbitration, packets, digests."""
        controller = Controller(context.peer())
        if not context.add_callback(controller.end):
            controller.end()  # it has ended already
        reader = threading.Thread(
            target=self._take_requests, args=(controller, requests), name="controller", daemon=True
        )
        reader.start()
        try:
            yield from controller.messages()
        except RequestRefused as ex:
            _refuse(context, ex)
        finally:
            self.device.leave(controller)

    def _take_requests(self, controller: Controller, requests: Iterator[p4r.StreamMessageRequest]) -> None:
        """Handle what a controller sends, until its stream ends."""
        reason: RequestRefused | None = None
        try:
            for request in requests:
                self._take_request(controller, request)
        except RequestRefused as ex:
            reason = ex
        except grpc.RpcError:
            log.debug("controller %s has gone", controller.peer)
        finally:
            controller.end(reason)

    def _take_request(self, controller: Controller, request: p4r.StreamMessageRequest) -> None:
        match request.WhichOneof("update"):
            case "arbitration":
                # "client arbitration errors are never reported using the StreamError message": they end the stream.
                self.device.arbitrate(controller, request.arbitration)
            case "packet":
                try:
                    self.device.packet_out(controller, request.packet)
                except RequestRefused as ex:
                    error = _stream_error(ex)
                    error.packet_out.packet_out.CopyFrom(request.packet)
                    controller.send(p4r.StreamMessageResponse(error=error))
            case "digest_ack":
                try:
                    self.device.acknowledge_digest(controller, request.digest_ack)
                except RequestRefused as ex:
                    error = _stream_error(ex)
                    error.digest_list_ack.digest_list_ack.CopyFrom(request.digest_ack)
                    controller.send(p4r.StreamMessageResponse(error=error))
            case _:
                try:
                    self.device.stream_updates(controller, request.other)
                except RequestRefused as ex:
                    error = _stream_error(ex)
                    error.other.other.CopyFrom(request.other)
                    controller.send(p4r.StreamMessageResponse(error=error))


def _stream_error(ex: RequestRefused) -> p4r.StreamError:
    return p4r.StreamError(canonical_code=ex.code, message=ex.message, space=SPACE)


def _refuse(context: grpc.ServicerContext, ex: RequestRefused) -> NoReturn:
    log.info("refused: %s: %s", ex.code.name, ex.message)
    context.abort(_CODES[ex.code], ex.message)
    raise AssertionError("abort does not return")


def _refuse_batch(context: grpc.ServicerContext, results: list[RequestRefused | None], what: str) -> NoReturn:
    status = batch_status(results, what)
    log.info("refused: %s", status.message)
    if status.details:
        context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, status.message)
    raise AssertionError("abort does not return")


def _chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
