"""Each passenger moves again and again; its clients find nothing wrong, and none loses its connection.

`make passengers` moves each twenty times, and prints a table; without P4FERRY_PASSENGERS=full they move three times.
"""

from __future__ import annotations

import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from migration.report import Outcome, Report
from tests.passengers import replication
from tests.passengers.conftest import FULL, MOVED
from tests.passengers.passenger import PATH, Client, Load, Passenger, under_load
from tests.passengers.passengers import PASSENGERS
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed
from topo.waiting import wait_until

pytestmark = pytest.mark.net

MOVES = 20 if FULL else 3
TRIES = 100
ROUNDS = 5
"""What each client does between two moves, at least."""


@pytest.fixture(scope="module")
def net() -> Iterator[Testbed]:
    with Testbed(LoadBalancerNetwork(hosts=5)) as built:
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
    if passenger.is_large and not FULL:
        pytest.skip(f"{passenger.name} takes part in a full run only (P4FERRY_PASSENGERS=full)")
    with passenger.at_home():
        command = passenger.prepare(folder)
        net.run(passenger.name, host="h2", argv=command, env={**os.environ, "PATH": PATH})
        try:
            client = Client(net.hosts["h1"].pid, (str(net.hosts["h2"].address), passenger.port), folder)
            assert wait_until(lambda: passenger.is_ready(client), 60), f"{passenger.name} does not answer"
            choice, places = random.Random(passenger.name), ["h2"]
            for _ in range(MOVES):
                places.append(choice.choice([host for host in ("h2", "h3", "h4") if host != places[-1]]))
            _move(net, passenger, client, [(passenger.name, host) for host in places[1:]])
        except BaseException:
            print(net.output(passenger.name)[-4000:])
            raise
        finally:
            net.stop(passenger.name)


def _move(net: Testbed, passenger: Passenger, client: Client, moves: Sequence[tuple[str, str]]) -> None:
    """Move what a passenger consists of under load, and note how it went."""
    reports: list[Report] = []
    with under_load(passenger, client.pid, client.address, client.folder) as load:
        wait_for_rounds(load)
        for name, host in moves:
            report = net.migrate(name, to=host)
            for _ in range(TRIES):
                if report.outcome is Outcome.COMPLETED or not re.search(
                    passenger.passing, report.reason or ""
                ):
                    break
                report = net.migrate(name, to=host)
            assert report.outcome is Outcome.COMPLETED, report.reason
            assert report.connections is not None
            assert report.connections.broken == 0
            reports.append(report)
            wait_for_rounds(load)
            assert load.errors == []
    assert load.errors == []
    frozen = [report.criu.frozen_ms for report in reports]
    size = reports[-1].criu.image_bytes
    MOVED[passenger.name] = (len(reports), statistics.median(frozen), max(frozen), size)


@pytest.mark.parametrize("is_group", [False, True], ids=["apart", "together"])
def test_redis_with_a_replica(net: Testbed, folder: Path, is_group: bool) -> None:
    """Each end moves, or both as a group: what is written at one arrives at the other, over the first connection."""
    name = f"redis {'and' if is_group else '+'} replica"
    group = "pair" if is_group else None
    homes = ("h2", "h2") if is_group else ("h2", "h4")
    addresses = [str(net.hosts[home].address) for home in homes]
    replica = Client(net.hosts["h1"].pid, (addresses[1], replication.REPLICA_PORT), folder)

    def counting(client: Client) -> None:
        replication.counting(client, replica)

    passenger = Passenger(
        name, "redis-server", "redis-server", replication.PORT, replication.prepare, (counting,)
    )
    if (reason := passenger.missing) is not None:
        pytest.skip(reason)
    first = Client(replica.pid, (addresses[0], passenger.port), folder)
    of = ["--replicaof", addresses[0], str(replication.PORT)]
    commands = {"first": passenger.prepare(folder), "replica": replication.prepare_replica(folder, of)}
    try:
        for (app, command), home in zip(commands.items(), homes, strict=True):
            net.run(app, host=home, argv=command, env={**os.environ, "PATH": PATH}, group=group)
        assert wait_until(lambda: replication.is_in_step(first, replica), 60), "the replica does not come up"
        if is_group:
            moves = [("pair", ("h3", "h2")[number % 2]) for number in range(MOVES)]
        else:
            ways = [("first", "h3"), ("replica", "h5"), ("replica", "h4"), ("first", "h2")]
            moves = [ways[number % 4] for number in range(MOVES)]
        _move(net, passenger, first, moves)
    except BaseException:
        print(*(net.output(app)[-2000:] for app in commands))
        raise
    finally:
        for app in {running["name"] for running in net.apps()} & set(commands):
            net.stop(app)
