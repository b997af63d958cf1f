"""A P4Runtime client as plain as can be: raw stubs, and builders for the messages that the tests send."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from finsy.proto import p4i, p4r, p4r_grpc, rpc_status

from tests.dataplane.p4runtime import programs

DEVICE_ID = 7
TIMEOUT = 5.0


class Stream:
    """A StreamChannel: what the switch sends is collected by a thread of gRPC's."""

    def __init__(self, stub: Any) -> None:
        self._out: queue.Queue[p4r.StreamMessageRequest | None] = queue.Queue()
        self._in: queue.Queue[p4r.StreamMessageResponse | grpc.RpcError | None] = queue.Queue()
        self.call = stub.StreamChannel(iter(self._out.get, None))
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        try:
            for message in self.call:
                self._in.put(message)
            self._in.put(None)
        except grpc.RpcError as ex:
            self._in.put(ex)

    def send(self, **update: Any) -> None:
        self._out.put(p4r.StreamMessageRequest(**update))

    def bid(self, election: int | None, device_id: int = DEVICE_ID, **fields: Any) -> None:
        message = p4r.MasterArbitrationUpdate(device_id=device_id, **fields)
        if election is not None:
            message.election_id.low = election
        self.send(arbitration=message)

    def receive(self, timeout: float = TIMEOUT) -> p4r.StreamMessageResponse:
        message = self._in.get(timeout=timeout)
        if isinstance(message, grpc.RpcError):
            raise message
        assert message is not None, "the stream has ended"
        return message

    def expect(self, kind: str, timeout: float = TIMEOUT) -> Any:
        """Return the next message, which must be of a kind."""
        message = self.receive(timeout)
        assert message.WhichOneof("update") == kind, message
        return getattr(message, kind)

    def failure(self) -> grpc.RpcError:
        """Return the error with which the stream ends."""
        while True:
            message = self._in.get(timeout=TIMEOUT)
            if isinstance(message, grpc.RpcError):
                return message
            assert message is not None, "the stream has ended without an error"

    def become_primary(self, election: int = 1) -> None:
        self.bid(election)
        assert self.expect("arbitration").status.code == 0

    def nothing_comes(self, seconds: float = 0.05) -> bool:
        try:
            self.receive(seconds)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self._out.put(None)
        self.call.cancel()


class Client:
    """A channel to the switch, with helpers for each RPC."""

    def __init__(self, address: str, device_id: int = DEVICE_ID) -> None:
        self.device_id = device_id
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_metadata_size", 64 << 10)])
        self.stub = p4r_grpc.P4RuntimeStub(self.channel)

    def stream(self) -> Stream:
        return Stream(self.stub)

    def write(self, *updates: p4r.Update, election: int = 1, **fields: Any) -> None:
        request = p4r.WriteRequest(device_id=self.device_id, updates=updates, **fields)
        request.election_id.low = election
        self.stub.Write(request, timeout=TIMEOUT)

    def read(self, *entities: p4r.Entity) -> list[p4r.Entity]:
        request = p4r.ReadRequest(device_id=self.device_id, entities=entities)
        return [
            entity for response in self.stub.Read(request, timeout=TIMEOUT) for entity in response.entities
        ]

    def read_table(self, table_id: int = 0, **fields: Any) -> list[p4r.TableEntry]:
        request = p4r.Entity(table_entry=p4r.TableEntry(table_id=table_id, **fields))
        return [entity.table_entry for entity in self.read(request)]

    def set_config(
        self,
        action: int = p4r.SetForwardingPipelineConfigRequest.VERIFY_AND_COMMIT,
        p4info: p4i.P4Info | None = None,
        device_config: bytes | None = None,
        election: int = 1,
        with_config: bool = True,
        cookie: int | None = None,
    ) -> None:
        request = p4r.SetForwardingPipelineConfigRequest(device_id=self.device_id, action=action)
        request.election_id.low = election
        if with_config:
            request.config.p4info.CopyFrom(p4info or programs.p4info())
            request.config.p4_device_config = (
                programs.device_config() if device_config is None else device_config
            )
            if cookie is not None:
                request.config.cookie.cookie = cookie
        self.stub.SetForwardingPipelineConfig(request, timeout=30)

    def get_config(self, response_type: int = 0) -> p4r.GetForwardingPipelineConfigResponse:
        request = p4r.GetForwardingPipelineConfigRequest(
            device_id=self.device_id, response_type=response_type
        )
        return self.stub.GetForwardingPipelineConfig(request, timeout=TIMEOUT)

    def close(self) -> None:
        self.channel.close()


def failure(call: Callable[[], object]) -> grpc.RpcError:
    """Return the error that a call ends with."""
    try:
        call()
    except grpc.RpcError as ex:
        return ex
    raise AssertionError("the call succeeded")


def codes(error: grpc.RpcError) -> list[int]:
    """Return the canonical codes of a failed batch."""
    return [detail.canonical_code for detail in details(error)]


def explanation(error: grpc.RpcError) -> str:
    """Return the message of an error."""
    return str(error.details())


def details(error: grpc.RpcError) -> list[p4r.Error]:
    """Return the p4.v1.Error messages of a failed batch."""
    trailing: Any = error.trailing_metadata()
    metadata = dict(trailing)
    status = rpc_status.Status.FromString(metadata["grpc-status-details-bin"])
    errors = []
    for packed in status.details:
        message = p4r.Error()
        assert packed.Unpack(message)
        errors.append(message)
    return errors


def exact(field_id: int, value: bytes) -> p4r.FieldMatch:
    return p4r.FieldMatch(field_id=field_id, exact=p4r.FieldMatch.Exact(value=value))


def lpm(field_id: int, value: bytes, length: int) -> p4r.FieldMatch:
    return p4r.FieldMatch(field_id=field_id, lpm=p4r.FieldMatch.LPM(value=value, prefix_len=length))


def ternary(field_id: int, value: bytes, mask: bytes) -> p4r.FieldMatch:
    return p4r.FieldMatch(field_id=field_id, ternary=p4r.FieldMatch.Ternary(value=value, mask=mask))


def ranged(field_id: int, low: bytes, high: bytes) -> p4r.FieldMatch:
    return p4r.FieldMatch(field_id=field_id, range=p4r.FieldMatch.Range(low=low, high=high))


def optional(field_id: int, value: bytes) -> p4r.FieldMatch:
    return p4r.FieldMatch(field_id=field_id, optional=p4r.FieldMatch.Optional(value=value))


def action(action_id: int, *params: bytes) -> p4r.TableAction:
    messages = [p4r.Action.Param(param_id=number, value=value) for number, value in enumerate(params, 1)]
    return p4r.TableAction(action=p4r.Action(action_id=action_id, params=messages))


def entry(
    table_id: int, match: Iterable[p4r.FieldMatch] = (), act: p4r.TableAction | None = None, **fields: Any
) -> p4r.TableEntry:
    return p4r.TableEntry(table_id=table_id, match=match, action=act, **fields)


def insert(message: p4r.TableEntry) -> p4r.Update:
    return p4r.Update(type=p4r.Update.INSERT, entity=p4r.Entity(table_entry=message))


def modify(message: p4r.TableEntry) -> p4r.Update:
    return p4r.Update(type=p4r.Update.MODIFY, entity=p4r.Entity(table_entry=message))


def delete(message: p4r.TableEntry) -> p4r.Update:
    return p4r.Update(type=p4r.Update.DELETE, entity=p4r.Entity(table_entry=message))


def exact_entry(number: int, **fields: Any) -> p4r.TableEntry:
    """Return the canonical row `number` of table `Ingress.exact`."""
    address = number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")
    return entry(
        programs.EXACT_ID,
        [exact(1, b"\x01"), exact(2, address)],
        action(programs.SEND_ID, b"\x02", b"\x0a"),
        **fields,
    )
