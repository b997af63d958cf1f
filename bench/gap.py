"""The pause that a client sees when its server moves: hold on and, as control arm, hold off, in turns.

Two loads: one connection at 1,000 requests a second (the headline figure), and several connections, where the control
arm shows that the measurement notices lost packets. Each arm is a testbed of its own; their runs alternate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.statistics import machine, median, percentile
from migration.report import Outcome, Report
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed

VIP = "10.0.0.100:7000"
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
PAUSE = 0.2  # seconds between migrations


@dataclass
class Arm:
    """One way to migrate, and what came of it."""

    name: str
    hold: bool
    load: Load
    topology: str = "single"
    reports: list[Report] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Sum up."""
        clients = [r.client for r in self.reports if r.client]
        gaps = [c["gap_ms"] for c in clients]
        criu = [r.criu.frozen_ms + r.criu.restore_ms for r in self.reports]
        return {
            "arm": self.name,
            "migrations": len(self.reports),
            "completed": sum(r.outcome is Outcome.COMPLETED for r in self.reports),
            "gap_ms": {"p50": median(gaps), "p99": percentile(gaps, 99), "max": max(gaps)},
            "criu_ms": {"p50": round(median(criu), 2)},
            "retransmits": sum(c["retransmits"] for c in clients),
            "loss_probes": sum(c["loss_probes"] for c in clients),
            "lost_bytes": sum(c["lost_bytes"] for c in clients),
            "resets": sum(c["resets"] for c in clients),
            "steps_ms": {
                step: round(median([s.ms for r in self.reports for s in r.steps if s.name == step]), 2)
                for step in [s.name for s in self.reports[0].steps]
            },
        }


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench gap")
    parser.add_argument("--rounds", type=int, default=5, help="of each arm")
    parser.add_argument("--migrations", type=int, default=6, help="of each round")
    options = parser.parse_args(arguments)
    arms = [
        Arm("hold, 1 connection", True, Load(1)),
        Arm("hold, 1 connection, triangle", True, Load(1), "triangle"),
        Arm("hold, 16 connections", True, Load(16)),
        Arm("hold, 64 connections", True, Load(64)),
        Arm("no hold, 16 connections", False, Load(16)),
    ]
    for _ in range(options.rounds):
        for arm in arms:
            run(arm, options.migrations)
    result = {"rounds": options.rounds, "arms": [arm.summary() for arm in arms], "machine": machine()}
    print(json.dumps(result, indent=2))
    return result


def run(arm: Arm, migrations: int) -> None:
    """Do some migrations of one arm."""
    network = LoadBalancerNetwork(hosts=3, topology=arm.topology)
    with Testbed(network, hold=arm.hold) as bed:
        bed.run("echo", "h2", SERVER, service=VIP)
        with MeasuringClient(bed.host("h1").pid, VIP, arm.load, bed.folder) as client:
            bed.measure = client.measure
            for number in range(migrations):
                time.sleep(PAUSE)
                arm.reports.append(bed.migrate("echo", "h2" if number % 2 else "h3"))
