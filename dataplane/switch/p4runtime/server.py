"""The listening end: a gRPC server for one device, started and stopped."""

from __future__ import annotations

from concurrent import futures

import grpc
from finsy.proto import p4r_grpc

from dataplane.switch.p4runtime.arbitration import MAX_CLIENTS
from dataplane.switch.p4runtime.device import Device
from dataplane.switch.p4runtime.service import P4RuntimeService

MAX_MESSAGE = 64 << 20
"""A configuration of a large program, or a batch of a hundred thousand updates."""
STOP_GRACE = 0.2  # seconds


class AddressInUse(Exception):
    """The server cannot listen where it should."""


class P4RuntimeServer:
    """Serves P4Runtime on an address; a context manager."""

    def __init__(self, device: Device, address: str) -> None:
        """Bind, but do not serve yet; raises AddressInUse."""
        # A stream occupies a thread as long as it is open; the others are for short calls.
        pool = futures.ThreadPoolExecutor(max_workers=MAX_CLIENTS + 16, thread_name_prefix="p4runtime")
        self._server = grpc.server(
            pool,
            options=[
                ("grpc.so_reuseport", 0),  # else two switches could listen on one port, unnoticed
                # A controller whose machine vanished must not stay primary for ever.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
            ],
        )
        p4r_grpc.add_P4RuntimeServicer_to_server(P4RuntimeService(device), self._server)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as ex:
            raise AddressInUse(
                f"cannot listen on {address}: in use by another program, or no such address"
            ) from ex
        if self.port == 0:
            raise AddressInUse(f"cannot listen on {address}: in use by another program, or no such address")

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()

    def stop(self) -> None:
        """Stop serving; open streams end."""
        self._server.stop(STOP_GRACE).wait()

    def __enter__(self) -> P4RuntimeServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
