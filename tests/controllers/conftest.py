"""A controller on a model switch, over real gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from controllers import rows
from controllers.config import SwitchConfig
from controllers.controller import Controller, ControllerConfig, ServiceConfig
from controllers.loadbalancer import BalancerOptions
from migration.steering import Endpoint, IpProtocol
from tests.controllers.model_switch import ModelSwitch, served
from tests.controllers.program import write_program

VIP = Endpoint(IpProtocol.TCP, IPv4Address("10.0.0.100"), 7000)


def tcp(address: str, port: int = 7000) -> Endpoint:
    """Return a TCP endpoint."""
    return Endpoint(IpProtocol.TCP, IPv4Address(address), port)


def eventually(condition: Callable[[], object], what: str, timeout: float = 5.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:g} s"
        time.sleep(0.005)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write the program's files."""
    return write_program(tmp_path_factory.mktemp("program"))


@pytest.fixture(params=[True, False], ids=["queues", "packets"])
def offers_queues(request: pytest.FixtureRequest) -> bool:
    """Say whether held packets can wait in the switch; else they come to the controller, as from BMv2."""
    return bool(request.param)


@pytest.fixture
def switch(request: pytest.FixtureRequest) -> Iterator[ModelSwitch]:
    """Serve a model switch; of both kinds, for a test that asks for `offers_queues`."""
    both = "offers_queues" in request.fixturenames
    with served(offers_queues=request.getfixturevalue("offers_queues") if both else True) as model:
        yield model


def switch_config(program: tuple[Path, Path], address: str) -> SwitchConfig:
    """Return the configuration of a switch that routes 10.0.N.0/24 to port N."""
    routes = [
        rows.route(IPv4Network(f"10.0.{n}.0/24"), n, 0x0800000000FE, 0x080000000000 | n << 8 | n)
        for n in range(1, 6)
    ]
    return SwitchConfig(1, "s1", address, program[0], program[1], master=True, rows=tuple(routes))


def controller_config(
    program: tuple[Path, Path], address: str, poll: float = 60.0, http_port: int | None = None
) -> ControllerConfig:
    """Return the configuration of a controller with one service; the HTTP API has tests of its own."""
    return ControllerConfig(
        [switch_config(program, address)],
        services=[ServiceConfig("echo", VIP)],
        http_port=http_port,
        balancer=BalancerOptions(poll=poll),
    )


@pytest.fixture
def controller(program: tuple[Path, Path], switch: ModelSwitch) -> Iterator[Controller]:
    """Run a controller on the model switch."""
    running = Controller(controller_config(program, switch.address))
    running.start(10)
    yield running
    running.stop()
