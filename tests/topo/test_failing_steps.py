"""Every step of a migration fails, before and after it: the program runs on where it was, and can move then.

All on one network, whose program is wherever the test before has left it: what a failure spoils, the next ones meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.cells import STEPS
from tests.topo.clients import assert_clean
from tests.topo.machine import assert_as, leftovers
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.runs import clean_up
from topo.testbed import LoadBalancerNetwork, Testbed

pytestmark = pytest.mark.net
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
VIP = "10.0.0.100:7000"


@dataclass
class Failing:
    """Lets a step fail."""

    at: tuple[str, str] | None = None

    def __call__(self, step: str, when: str) -> None:
        if (step, when) == self.at:
            raise OSError(f"injected {when} {step}")


@pytest.fixture(scope="module")
def failing() -> Failing:
    """Let nothing fail yet."""
    return Failing()


@pytest.fixture(scope="module")
def net(failing: Failing) -> Iterator[Testbed]:
    """A network with a server on h2; at its end the machine is as before."""
    clean_up()
    before = leftovers()
    with Testbed(LoadBalancerNetwork(hosts=3), fault=failing) as bed:
        bed.run("echo", "h2", SERVER, service=VIP)
        for host in ("h3", "h2"):  # what the first moves make stays: the load balancer's queues, for example
            assert bed.migrate("echo", host).outcome == "completed"
        yield bed
    assert_as(before)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_leaves_the_program_running_at_its_source(
    net: Testbed, failing: Failing, step: str, when: str, tmp_path: Path
) -> None:
    """Connections intact, the switch as before, and the report says why."""
    (source,) = [app["host"] for app in net.apps()]
    target = "h3" if source == "h2" else "h2"
    before = leftovers()
    with MeasuringClient(net.host("h1").pid, VIP, Load(connections=4), tmp_path) as user:
        rows = _rows(net)
        failing.at = (step, when)
        report = net.migrate("echo", target)
        failing.at = None
        assert report.outcome == "rolled_back", report
        assert f"injected {when} {step}" in str(report.reason)
        assert [app["host"] for app in net.apps()] == [source]
        assert _rows(net) == rows
        assert net.migrate("echo", target).outcome == "completed"
        assert_clean(user.stop())
    assert_as(before)


def _rows(net: Testbed) -> set[object]:
    """Return every row that the controller believes to be on the load balancer."""
    return set(net.controller.tables["s1"].rows.values())
