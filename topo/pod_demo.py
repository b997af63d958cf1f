"""`--demo pod`, or topo/pods.py: Redis and a backend in one pod move together, connected over localhost.

    h2  a pod of two containers: Redis, and a backend that asks it at 127.0.0.1:6379 and serves 10.0.0.101:8080
    h1  a client that polls the backend, over one connection that it never makes anew

What must hold is what the client says: neither the counter nor Redis's uptime goes back, Redis and the backend have had
no other connections than at first, no answer is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.echo.client import gap_between
from migration.report import Outcome, Report
from migration.slowness import scaled
from topo import paths
from topo.clocks import clocks_apart
from topo.demo import say
from topo.errors import TestbedError
from topo.measure import SETTLE, client_figures, read_status
from topo.testbed import Testbed
from topo.waiting import wait_until

BACKEND = "10.0.0.101:8080"
POD = ("redis", "app")
ROUND = ("h3", "h2")  # the pod's containers start on h2
COUNTER = "42"
PYTHON = "/usr/bin/python3"
POLLER = paths.CHECKOUT / "apps" / "poller.py"
START_TIMEOUT = 15.0  # seconds
WRONG = (
    "counter_went_back",
    "uptime_went_back",
    "bad_answers",
    "new_connections",
    "backend_reconnects",
    "resets",
)


class Client:
    """The poller on h1, and what it says of itself."""

    def __init__(self, bed: Testbed) -> None:
        """Start it; returns when it has had answers."""
        self._bed = bed
        self._file = Path(bed.folder / "poller.status")
        self._before: dict[str, Any] = {}
        self._file.unlink(missing_ok=True)
        command = [PYTHON, str(POLLER), "--connect", BACKEND, "--status", str(self._file)]
        bed.run("poller", "h1", command)
        if not wait_until(lambda: self.status().get("replies", 0) >= 10, START_TIMEOUT):
            raise TestbedError(
                f"the poller got no answers within {scaled(START_TIMEOUT):.0f} s: {bed.output('poller').strip()}"
            )
        self._before = self.status()

    def status(self) -> dict[str, Any]:
        """Return what it has last said."""
        return read_status(self._file)

    def measure(self, started: float, ended: float) -> dict[str, Any]:
        """Return what it noticed between two times (CLOCK_MONOTONIC)."""
        started, ended = started + clocks_apart(), ended + clocks_apart()
        wait_until(lambda: self.status().get("time", 0.0) > ended + SETTLE or self.is_over(), 5.0)
        now = self.status()
        figures = client_figures(now, self._before, gap_between(now, started, ended + SETTLE))
        self._before = now
        return {**figures, "measured_by": "poller"}

    def is_over(self) -> bool:
        """Say whether it has ended, as it does when its connection is lost."""
        return bool(self.status().get("done"))

    def stop(self) -> dict[str, Any]:
        """End it and return its result."""
        self._bed.stop("poller")
        return self.status()


def pod_demo(bed: Testbed, count: int) -> bool:
    """Move what is in the pod to and fro under the client; says whether nothing at all went wrong."""
    start_pod(bed, "h2")
    client = Client(bed)
    print(
        f"in the pod h2 Redis and a backend talk over localhost; the backend serves {BACKEND},\n"
        "a client on h1 polls it 100 times a second",
        flush=True,
    )
    reports: list[Report] = []
    bed.measure = client.measure
    try:
        for number in range(count):
            report = bed.migrate(POD, ROUND[number % len(ROUND)])
            reports.append(report)
            say(report, " and ".join(POD))
            if report.outcome is not Outcome.COMPLETED:
                break
    finally:
        bed.measure = None
    result = client.stop()
    problems = find_problems(reports, count, result)
    print(f"  {result.get('replies', 0)} answers", "none missing" if not problems else "", flush=True)
    for problem in problems:
        print(f"  WRONG: {problem}", flush=True)
    return not problems


def start_pod(bed: Testbed, host: str) -> None:
    """Start both containers in a host's pod; returns when the backend has its connection to Redis."""
    pod = bed.host(host)
    bed.run("redis", host, [], image="redis")
    if not wait_until(
        lambda: "OK" in pod.run_in("redis", "redis-cli", "set", "counter", COUNTER), START_TIMEOUT
    ):
        raise TestbedError(f"Redis does not answer in the pod {host}: {bed.output('redis').strip()}")
    bed.run("app", host, ["--redis", "127.0.0.1:6379"], service=BACKEND, image="app")


def find_problems(reports: list[Report], count: int, result: dict[str, Any]) -> list[str]:
    """Return a sentence for everything that is not as it must be."""
    found = [
        f"{r.source} -> {r.destination}: {r.outcome.value}, {r.connections.broken} connections broken"
        for r in reports
        if r.outcome is not Outcome.COMPLETED or r.connections.broken
    ]
    if len(reports) != count:
        found.append(f"{count - len(reports)} migrations did not take place")
    if not result.get("done"):
        return [*found, "the client left no result"]
    found += [f"{key} is {result[key]}" for key in WRONG if result[key]]
    if result["bad_answers"]:
        found.append(f"the last bad answer was {result['last_bad_answer']}")
    if str(result["counter"]) != COUNTER:
        found.append(f"the counter is {result['counter']} instead of {COUNTER}")
    return found + [str(error) for error in result["errors"]]
