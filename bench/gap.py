"""The pause that a client sees when its server moves; as control arms hold off, and the plain order; in turns.

Loads: one connection at 1,000 requests a second (the headline figure, with a long run for its 99th percentile), and
several connections, where "hold off" shows that the measurement notices lost packets. "plain order" is what a script
with command-line tools does (bench/baseline/plain.py). Each arm is a testbed of its own; their runs alternate.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.baseline.plain import deafen, migrate_plainly
from bench.statistics import machine, median, percentile
from migration.model import App
from migration.report import Outcome, Report
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed

VIP = "10.0.0.100:7000"
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
KEEP_ALIVE = ["setpriv", "--pdeathsig", "clear"]
PAUSE = 0.2  # seconds between migrations
RECOVERY = 10.0  # seconds in which a client must have its answers again after the plain order


@dataclass
class Arm:
    """One way to migrate, and what came of it."""

    name: str
    hold: bool
    load: Load
    topology: str = "single"
    plain: bool = False
    reports: list[Report] = field(default_factory=list)
    criu_own: list[float] = field(default_factory=list)
    """CRIU's frozen_time + restore_time by its own statistics (plain order), in milliseconds."""

    def summary(self) -> dict[str, Any]:
        """Sum up."""
        clients = [r.client for r in self.reports if r.client]
        gaps = [c["gap_ms"] for c in clients]
        criu = self.criu_own or [r.criu.frozen_ms + r.criu.restore_ms for r in self.reports]
        return {
            "arm": self.name,
            "migrations": len(self.reports),
            "completed": sum(r.outcome is Outcome.COMPLETED for r in self.reports),
            "gap_ms": {"p50": median(gaps), "p99": percentile(gaps, 99), "max": max(gaps)},
            "criu_ms": {"p50": round(median(criu), 2)},
            "gap_to_criu": {"p50": round(median([g / c for g, c in zip(gaps, criu, strict=True)]), 2)},
            "retransmits": sum(c["retransmits"] for c in clients),
            "loss_probes": sum(c["loss_probes"] for c in clients),
            "lost_bytes": sum(c["lost_bytes"] for c in clients),
            "resets": sum(c["resets"] for c in clients),
            "steps_ms": {
                step: round(median([s.ms for r in self.reports for s in r.steps if s.name == step]), 2)
                for step in dict.fromkeys(s.name for r in self.reports for s in r.steps)
            },
        }


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench gap")
    parser.add_argument("--rounds", type=int, default=5, help="of each arm")
    parser.add_argument("--migrations", type=int, default=6, help="of each round")
    parser.add_argument(
        "--long", type=int, default=0, metavar="N", help="then N migrations of the headline arm"
    )
    options = parser.parse_args(arguments)
    headline = Arm("hold, 1 connection", True, Load(1))
    arms = [
        headline,
        Arm("no hold, 1 connection", False, Load(1)),
        Arm("plain order, 1 connection", True, Load(1), plain=True),
        Arm("hold, 1 connection, triangle", True, Load(1), "triangle"),
        Arm("hold, 16 connections", True, Load(16)),
        Arm("hold, 64 connections", True, Load(64)),
        Arm("no hold, 16 connections", False, Load(16)),
    ]
    for _ in range(options.rounds):
        for arm in arms:
            run(arm, options.migrations)
    result = {"rounds": options.rounds, "arms": [arm.summary() for arm in arms], "machine": machine()}
    result["plain_to_ours"] = round(gap_of(arms[2]) / gap_of(headline), 1)
    if options.long:
        long = Arm("hold, 1 connection, long run", True, Load(1))
        run(long, options.long)
        result["long"] = long.summary()
    print(json.dumps(result, indent=2))
    return result


def gap_of(arm: Arm) -> float:
    """Return the median gap."""
    return median([r.client["gap_ms"] for r in arm.reports if r.client])


def run(arm: Arm, migrations: int) -> None:
    """Do some migrations of one arm."""
    network = LoadBalancerNetwork(hosts=3, topology=arm.topology)
    with Testbed(network, hold=arm.hold) as bed:
        server = bed.run(
            "echo", "h2", [*(KEEP_ALIVE if arm.plain else ()), *SERVER], service=VIP, cwd=bed.scratch
        )
        if arm.plain:
            deafen(bed.hosts["h1"], [bed.hosts["h2"], bed.hosts["h3"]])
        with MeasuringClient(bed.host("h1").pid, VIP, arm.load, bed.folder) as client:
            for number in range(migrations):
                time.sleep(PAUSE)
                to = "h2" if number % 2 else "h3"
                if arm.plain:
                    arm.reports.append(move_plainly(bed, server.app, to, client, arm.criu_own))
                    continue
                bed.measure = client.measure
                report = bed.migrate("echo", to)
                if report.outcome is not Outcome.COMPLETED:
                    raise SystemExit(f"bench gap: {arm.name}: {report.outcome.value}: {report.reason}")
                arm.reports.append(report)


def move_plainly(bed: Testbed, app: App, to: str, client: MeasuringClient, times: list[float]) -> Report:
    """Do one migration of the arm "plain order", and wait until the client has its answers again."""
    report = Report("plain", app.name, app.host.name, to, "process", Outcome.COMPLETED)
    assert bed.url is not None
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        planned = next(host for host in bed.plan.hosts if host.name == to)
        node = {"dmac": planned.mac, "eport": str(planned.port)}
        own = migrate_plainly(bed.runtime, bed.url, app, bed.hosts[to], node, Path(folder))
    client.wait_for_reply(RECOVERY)
    report.client = client.measure(started, time.monotonic())
    times.append(own.frozen_ms + own.restore_ms)
    return report
