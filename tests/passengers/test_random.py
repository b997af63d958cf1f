"""All passengers at once, each moved at random: another one, another place and another mode every time.

`make passengers RANDOM=1000` makes so many moves, without it there are ten. Each is completed, or refused before the
program was touched; no client finds anything wrong, and no connection breaks.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration.report import Outcome, Report
from migration.transfer.modes import Mode, Via, Wish
from tests.passengers.conftest import FULL, RANDOM
from tests.passengers.passenger import PATH, Client, Load, Passenger, under_load
from tests.passengers.passengers import PASSENGERS
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed
from topo.waiting import wait_until

pytestmark = pytest.mark.net

MOVES = int(os.environ.get("P4FERRY_RANDOM_MOVES", "10"))
HOSTS = ("h2", "h3", "h4", "h5")
WISHES = [Wish(mode=mode, via=via) for mode in (None, Mode.STOP, Mode.LAZY) for via in Via]
TAKEN = r"port \d+ is taken on"
"""Two passengers have the same port, and one is there already."""
NOT_SO = r"cannot be moved in mode lazy: it holds file locks; ask for mode stop"
"""The mode was drawn; who leaves it open gets the one that fits."""


@pytest.fixture
def aboard() -> Iterator[list[Passenger]]:
    """Those that can be run here; the large ones in a full run only."""
    found = [one for one in PASSENGERS if one.missing is None and (FULL or not one.is_large)]
    if not found:
        pytest.skip("no passenger is installed (make passengers)")
    with contextlib.ExitStack() as stack:
        for one in found:
            stack.enter_context(one.at_home())
        yield found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user comes to."""
    with tempfile.TemporaryDirectory(prefix="p4ferry-passenger-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.timeout(300 + 10 * MOVES)
def test_random_moves(aboard: list[Passenger], folder: Path) -> None:
    """Whatever moves wherever by whatever way, nothing is wrong at any client."""
    with Testbed(LoadBalancerNetwork(hosts=5)) as net, contextlib.ExitStack() as stack:
        places, loads = {}, {}
        taken: set[tuple[str, int]] = set()
        for number, one in enumerate(aboard):
            turned = HOSTS[number % len(HOSTS) :] + HOSTS[: number % len(HOSTS)]
            home = next(host for host in turned if (host, one.port) not in taken)
            taken.add((home, one.port))
            (own := folder / one.name).mkdir()
            own.chmod(0o755)
            net.run(one.name, host=home, argv=one.prepare(own), env={**os.environ, "PATH": PATH})
            client = Client(net.hosts["h1"].pid, (str(net.hosts[home].address), one.port), own)
            assert wait_until(lambda one=one, client=client: one.is_ready(client), 60), one.name  # type: ignore[misc]
            pid, address = client.pid, client.address
            loads[one.name] = stack.enter_context(under_load(one, pid, address, own))
            places[one.name] = home
        _move_at_random(net, aboard, places, loads)
    assert {name: load.errors for name, load in loads.items() if load.errors} == {}
    assert all(min(load.rounds) > 1 for load in loads.values())


def _move_at_random(
    net: Testbed, aboard: list[Passenger], places: dict[str, str], loads: dict[str, Load]
) -> None:
    choice, counted = random.Random(MOVES), RANDOM
    for _ in range(MOVES):
        one = choice.choice(aboard)
        host = choice.choice([host for host in HOSTS if host != places[one.name]])
        wish = choice.choice(WISHES)
        report = net.migrate(one.name, to=host, mode=wish.mode, transfer=wish.via)
        counted[report.outcome.value] += 1
        _check(one, report, counted)
        if report.outcome is Outcome.COMPLETED:
            places[one.name] = host
        assert {name: load.errors for name, load in loads.items() if load.errors} == {}


def _check(one: Passenger, report: Report, counted: Counter[str]) -> None:
    """A move is completed, or the program was not touched."""
    if report.outcome is Outcome.REFUSED:
        assert report.criu.frozen_ms == 0
        assert re.search(f"{TAKEN}|{NOT_SO}|{one.passing}", report.reason or ""), report.reason
    elif report.outcome is Outcome.ROLLED_BACK and re.search(one.passing, report.reason or ""):
        counted["for a moment not movable"] += 1
    else:
        assert report.outcome is Outcome.COMPLETED, report.reason
        assert report.connections is not None
        assert report.connections.broken == 0
