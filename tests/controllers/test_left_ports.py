"""Whose a port is that a program leaves: the program's as long as it may come back, ours afterwards."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from controllers.controller import Controller
from migration.steering import Move, MovedListener
from tests.controllers.conftest import controller_config, eventually, tcp
from tests.controllers.model_switch import ModelSwitch
from tests.controllers.network import _host, inside
from tests.controllers.test_steering import HOSTS, AtOnce

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("offers_queues")]
OLD, NEW = tcp("10.0.9.9"), tcp("10.0.3.3")
MOVE = Move("m1", "h9", "h3", [MovedListener(OLD, NEW)])


@pytest.fixture
def home() -> Iterator[int]:
    """Make the network of the host that a program leaves; return its PID."""
    with _host(9) as host:
        yield host.pid


def running(program: tuple[Path, Path], switch: ModelSwitch, home: int) -> Controller:
    """Run a controller that knows the host."""
    hosts = {**HOSTS, "h9": replace(HOSTS["h2"], name="h9", pid=home, address=OLD.address, port=9)}
    controller = Controller(controller_config(program, switch.address), hosts, drainer=AtOnce())
    controller.start(10)
    return controller


def is_free(home: int) -> bool:
    """Say whether a program could listen there that is restored by CRIU, which sets SO_REUSEADDR."""

    def listen() -> bool:
        with socket.socket() as made, suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((str(OLD.address), OLD.port))
            made.listen()
            return True
        return False

    return inside(home, listen)


def is_kept(controller: Controller, home: int) -> bool:
    """Say whether the port is somebody's, once the controller has done what its rows ask for."""

    async def follow() -> None:
        async with controller.steering.left_ports._working:
            await controller.steering.left_ports._follow()

    controller.call(follow())
    return not is_free(home)


def test_the_place_of_an_original_that_has_ended_is_free_until_the_move_is_over(
    program: tuple[Path, Path], switch: ModelSwitch, home: int
) -> None:
    """Its copy may die before it runs; then it is restored there from its image."""
    controller = running(program, switch, home)
    steering = controller.steering
    try:
        for step in (steering.prepare, steering.hold, steering.extend, steering.switch_over):
            step(MOVE)
            assert not is_kept(controller, home)
        steering.disown(MOVE)
        assert not is_kept(controller, home)
        steering.switch_back(MOVE)
        steering.release(MOVE)
        assert not is_kept(controller, home)
        for step in (steering.prepare, steering.hold, steering.extend, steering.switch_over):
            step(MOVE)
        steering.release(MOVE)
        assert not is_kept(controller, home)
        steering.finish(MOVE)
        eventually(lambda: not is_free(home), "keeping the port")
    finally:
        controller.stop()


def test_a_controller_that_finds_a_move_gives_the_place_back(
    program: tuple[Path, Path], switch: ModelSwitch, home: int
) -> None:
    """It was killed behind the switch-over, and the next one cannot know at first that the program will return."""
    first = running(program, switch, home)
    try:
        for step in (first.steering.prepare, first.steering.hold, first.steering.extend):
            step(MOVE)
        first.steering.switch_over(MOVE)
    finally:
        first.stop()
    second = running(program, switch, home)
    try:
        eventually(lambda: not is_free(home), "keeping the port")
        second.steering.disown(MOVE)
        assert not is_kept(second, home)
        second.steering.switch_back(MOVE)
        second.steering.release(MOVE)
        assert not is_kept(second, home)
        assert second.steering._returning == {}
    finally:
        second.stop()
