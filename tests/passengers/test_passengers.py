"""Each passenger moves again and again; its clients find nothing wrong, and none loses its connection.

`make passengers` moves each twenty times, and prints a table; without P4FERRY_PASSENGERS=full they move three times.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration.report import Outcome, Report
from tests.passengers.conftest import FULL, MOVED
from tests.passengers.passenger import PATH, Client, Load, Passenger, under_load
from tests.passengers.servers import PASSENGERS
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed
from topo.waiting import wait_until

pytestmark = pytest.mark.net

MOVES = 20 if FULL else 3
ROUNDS = 5
"""What each client does between two moves, at least."""


@pytest.fixture(scope="module")
def net() -> Iterator[Testbed]:
    with Testbed(LoadBalancerNetwork(hosts=4)) as built:
        yield built


def wait_for_rounds(load: Load) -> None:
    """Let each client do some more rounds; the slow ones have three seconds. Stops where something is wrong."""
    before, end = load.rounds, time.monotonic() + 3

    def is_enough() -> bool:
        each = all(now >= then + ROUNDS for now, then in zip(load.rounds, before, strict=True))
        return bool(load.errors) or each or time.monotonic() > end

    assert wait_until(is_enough, 60)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user comes to; pytest's own are root's."""
    with tempfile.TemporaryDirectory(prefix="p4ferry-passenger-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("passenger", PASSENGERS, ids=lambda one: one.name)
def test_passenger(net: Testbed, passenger: Passenger, folder: Path) -> None:
    """Nothing is wrong at any client, in any move, and the server does not notice."""
    if (reason := passenger.missing) is not None:
        pytest.skip(reason)
    command = passenger.prepare(folder)
    net.run(passenger.name, host="h2", argv=command, env={**os.environ, "PATH": PATH})
    try:
        pid = net.hosts["h1"].pid
        address = (str(net.hosts["h2"].address), passenger.port)
        client = Client(pid, address, folder)
        assert wait_until(lambda: passenger.is_ready(client), 60), f"{passenger.name} does not answer"
        reports = _move(net, passenger, pid, address, folder)
    except BaseException:
        print(net.output(passenger.name)[-4000:])
        raise
    finally:
        net.stop(passenger.name)
    frozen = [report.criu.frozen_ms for report in reports]
    MOVED[passenger.name] = (
        len(reports),
        statistics.median(frozen),
        max(frozen),
        reports[-1].criu.image_bytes,
    )


def _move(
    net: Testbed, passenger: Passenger, pid: int, address: tuple[str, int], folder: Path
) -> list[Report]:
    """Move a passenger under load; return the reports."""
    choice = random.Random(passenger.name)
    here, reports = "h2", []
    with under_load(passenger, pid, address, folder) as load:
        wait_for_rounds(load)
        for _ in range(MOVES):
            here = choice.choice([host for host in ("h2", "h3", "h4") if host != here])
            report = net.migrate(passenger.name, to=here)
            assert report.outcome is Outcome.COMPLETED, report.reason
            assert report.connections is not None
            assert report.connections.broken == 0
            reports.append(report)
            wait_for_rounds(load)
            assert load.errors == []
    assert load.errors == []
    return reports
