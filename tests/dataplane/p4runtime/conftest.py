"""A switch on the reference model, served over real gRPC on a port of the kernel's choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from dataplane.switch.p4runtime.device import Device
from dataplane.switch.p4runtime.server import P4RuntimeServer
from tests.dataplane.p4runtime.client import DEVICE_ID, Client, Stream
from tests.dataplane.p4runtime.model import ModelEngine


@dataclass
class ModelSwitch:
    """The parts of a served switch."""

    device: Device
    engine: ModelEngine
    address: str


@pytest.fixture
def switch() -> Iterator[ModelSwitch]:
    """Serve a device on the model, without a pipeline."""
    device = Device(DEVICE_ID)
    engine = ModelEngine(device.on_packet_in, device.on_digest)
    device.attach_engine(engine)
    with P4RuntimeServer(device, "127.0.0.1:0") as server:
        yield ModelSwitch(device, engine, f"127.0.0.1:{server.port}")
    device.close()
    engine.close()


@pytest.fixture
def client(switch: ModelSwitch) -> Iterator[Client]:
    """Connect a client that has not said anything yet."""
    connected = Client(switch.address)
    yield connected
    connected.close()


@pytest.fixture
def primary(client: Client) -> Iterator[Stream]:
    """Make the client primary with election id 1."""
    stream = client.stream()
    stream.become_primary()
    yield stream
    stream.close()


@pytest.fixture
def ready(client: Client, primary: Stream) -> Client:
    """Return a primary client of a switch with the test program."""
    client.set_config()
    return client
