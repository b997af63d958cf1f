"""How the pause grows: with the connections of one program, and with programs that move at the same time.

connections: one process serves N idle connections, all established, and one at 1,000 requests a second, whose longest
gap is the figure; afterwards every connection must still answer. together: five servers with a client each move one
after another, then all at once; the sums of their gaps are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from bench.statistics import machine, median, percentile
from migration.report import Outcome, Report
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed

PAUSE = 0.3
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
SERVERS = 5
RATE = 200.0  # requests a second of each of the five clients: two cores carry them and the migrations


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench scale")
    parser.add_argument("--connections", type=int, nargs="*", default=[0, 100, 300, 999], metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--migrations", type=int, default=10, help="of each round and arm")
    options = parser.parse_args(arguments)
    idle: dict[int, list[Report]] = {count: [] for count in options.connections}
    together: list[dict[str, float]] = []
    for _ in range(options.rounds):
        for count, reports in idle.items():
            reports += with_idle(count, options.migrations)
        together += at_once(options.migrations // 2)
    result: dict[str, Any] = {"connections": [summary(count, reports) for count, reports in idle.items()]}
    if len(idle) > 1:
        points = [(count, r.client["gap_ms"]) for count, rs in idle.items() for r in rs if r.client]
        slope = statistics.linear_regression([p[0] for p in points], [p[1] for p in points]).slope
        result["growth_us_per_connection"] = round(slope * 1000, 1)
    serial = [pair["serial"] for pair in together]
    ratios = [pair["at_once"] / pair["serial"] for pair in together]
    result["together"] = {
        "programs": SERVERS,
        "runs": len(together),
        "sum_of_gaps_serial_ms": round(median(serial), 1),
        "sum_of_gaps_at_once_ms": round(median([pair["at_once"] for pair in together]), 1),
        "ratio": {"p50": round(median(ratios), 2), "max": round(max(ratios), 2)},
    }
    result["machine"] = machine()
    print(json.dumps(result, indent=2))
    return result


def with_idle(count: int, migrations: int) -> list[Report]:
    """Move a server with some idle connections; every one of them is used again at the end."""
    reports = []
    vip = "10.0.0.100:7000"
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed, ExitStack() as stack:
        bed.run("echo", "h2", SERVER, service=vip, cwd=bed.scratch)
        others = None
        if count:
            folder = bed.folder / "idle"
            folder.mkdir()
            # Each is used once in ten seconds, so the programs have something to lose on every connection.
            load = Load(count, rate=count / 10)
            others = stack.enter_context(MeasuringClient(bed.host("h4").pid, vip, load, folder))
        client = stack.enter_context(MeasuringClient(bed.host("h1").pid, vip, Load(1), bed.folder))
        bed.measure = client.measure
        for number in range(migrations):
            time.sleep(PAUSE)
            report = bed.migrate("echo", "h2" if number % 2 else "h3")
            if report.outcome is not Outcome.COMPLETED or report.connections.broken:
                raise SystemExit(f"bench scale: {report.outcome.value}: {report.reason}")
            reports.append(report)
        bed.measure = None
        if others is not None:
            result = others.stop()
            wrong = {k: result[k] for k in ("lost_bytes", "duplicated_bytes", "resets") if result[k]}
            if wrong or result["errors"]:
                raise SystemExit(f"bench scale: {count} connections: {wrong} {result['errors']}")
    return reports


def summary(count: int, reports: Sequence[Report]) -> dict[str, Any]:
    """Sum up the migrations with some idle connections."""
    gaps = [r.client["gap_ms"] for r in reports if r.client]
    names = [step.name for step in reports[0].steps]
    return {
        "connections": count + 1,
        "migrations": len(gaps),
        "gap_ms": {"p50": median(gaps), "p99": percentile(gaps, 99), "max": max(gaps)},
        "steps_ms": {
            name: round(median([s.ms for r in reports for s in r.steps if s.name == name]), 2)
            for name in names
        },
    }


def at_once(rounds: int) -> list[dict[str, float]]:
    """Move five servers one by one and then together, some times; return the sums of gaps of each."""
    sums = []
    names = [f"echo{number}" for number in range(SERVERS)]
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed, ExitStack() as stack:
        clients = {}
        for number, name in enumerate(names):
            vip = f"10.0.0.{110 + number}:{7000 + number}"
            bed.run(name, "h2", [*SERVER, "--port", str(7000 + number)], service=vip, cwd=bed.scratch)
            folder = bed.folder / name
            folder.mkdir()
            clients[name] = stack.enter_context(
                MeasuringClient(bed.host("h1").pid, vip, Load(1, rate=RATE), folder)
            )
        for _ in range(rounds):
            pair = {}
            for arm, workers, to in (("serial", 1, "h3"), ("at_once", SERVERS, "h2")):
                time.sleep(PAUSE)
                began = time.monotonic()
                with ThreadPoolExecutor(workers) as pool:
                    reports = list(pool.map(lambda name, to=to: bed.migrate(name, to), names))  # type: ignore[misc]
                ended = time.monotonic()
                failed = [r for r in reports if r.outcome is not Outcome.COMPLETED]
                if failed:
                    raise SystemExit(f"bench scale: {failed[0].app}: {failed[0].reason}")
                gaps = [client.longest_gap(began, ended) for client in clients.values()]
                pair[arm] = sum((gap[1] - gap[0]) * 1000 for gap in gaps if gap)
            sums.append(pair)
    return sums
