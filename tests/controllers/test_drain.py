"""Waiting for packets under way: the backlogs of the CPUs, and a tap in a namespace."""

from __future__ import annotations

import asyncio
import os
import socket
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from controllers.drain import Drainer, flush_backlogs
from controllers.frames import marker
from controllers.hosts import Host
from migration.steering import SteeringError
from tests.controllers.network import _host, inside


def test_a_flush_visits_every_cpu_and_comes_back() -> None:
    """And the thread may run everywhere again."""
    before = os.sched_getaffinity(0)
    flush_backlogs()
    assert os.sched_getaffinity(0) == before


def test_a_host_that_is_gone_is_named() -> None:
    """Opening a tap at a host without a process says so."""
    drainer = Drainer()
    gone = Host("h2", 2**22 + 1, IPv4Address("10.0.2.2"), "", "s1", 2)
    with pytest.raises(SteeringError, match="cannot listen in the network of h2: No such file"):
        asyncio.run(drainer.open(gone))
    drainer.close()


@pytest.mark.net
def test_a_tap_sees_markers_only() -> None:
    """Other packets do not reach it; a closed drainer leaves no socket."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with _host(9) as host:
        drainer = Drainer()

        async def scenario() -> tuple[bool, bool]:
            await drainer.open(host)
            tap = drainer._taps["h9"]
            before = await tap.wait_for(b"token", 0.05)
            inside(host.pid, lambda: _send(marker(host.address, b"token")))
            return before, await tap.wait_for(b"token", 2)

        assert asyncio.run(scenario()) == (False, True)
        drainer.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def _send(frame: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("lo", 0))
        raw.send(frame)
