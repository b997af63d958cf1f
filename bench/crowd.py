"""How a move grows with the threads and the processes of a program, and how much of that is waiting for CRIU.

The sizes take turns, move by move. Of each step one sees its time; of all together, how long CRIU's two workers were
waited for, by which the rest is our own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from bench.statistics import machine, median, percentile
from migration.criu import Worker
from migration.report import Outcome, Report
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed
from topo.waiting import wait_until

THREADS = (1, 25, 100, 400)
PROCESSES = (10, 20, 40, 100)
PROGRAM = """
import os, sys, threading, time
threads, processes = map(int, sys.argv[1:])
for _ in range(processes - 1):
    if os.fork() == 0:
        time.sleep(1e6)
for _ in range(threads - 1):
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
print("ready", flush=True)
time.sleep(1e6)
"""
FROZEN = ("checkpoint", "rewrite", "transfer", "restore", "switch over", "release")
"""The steps between which the program stands still."""


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench crowd")
    parser.add_argument("--threads", type=int, nargs="*", default=list(THREADS), metavar="N")
    parser.add_argument("--processes", type=int, nargs="*", default=list(PROCESSES), metavar="N")
    parser.add_argument("--migrations", type=int, default=10, help="of each size")
    parser.add_argument("--mode", default="stop")
    options = parser.parse_args(arguments)
    sizes = [(count, 1) for count in options.threads] + [(1, count) for count in options.processes]
    found: dict[tuple[int, int], list[tuple[Report, float]]] = {size: [] for size in sizes}
    with Testbed(LoadBalancerNetwork(hosts=3)) as bed, waits() as waited:
        for threads, processes in sizes:
            name = name_of(threads, processes)
            bed.run(name, "h2", ["/usr/bin/python3", "-c", PROGRAM, str(threads), str(processes)])
            if not wait_until(lambda name=name: "ready" in bed.output(name), 30.0):  # type: ignore[misc]
                raise SystemExit(f"bench crowd: {name} does not start")
        for number in range(options.migrations):
            for size, moves in found.items():
                waited.clear()
                report = bed.migrate(name_of(*size), "h2" if number % 2 else "h3", mode=options.mode)
                if report.outcome is not Outcome.COMPLETED:
                    raise SystemExit(f"bench crowd: {report.outcome.value}: {report.reason}")
                moves.append((report, sum(waited) * 1000))
    result = {"sizes": [summary(*size, moves) for size, moves in found.items()], "machine": machine()}
    print(json.dumps(result, indent=2))
    return result


def name_of(threads: int, processes: int) -> str:
    """Name a program."""
    return f"t{threads}p{processes}"


@contextmanager
def waits() -> Iterator[list[float]]:
    """Collect for how long CRIU's workers are waited for, in seconds, from the freeze on."""
    waited: list[float] = []
    wait_for = Worker.wait_for

    def timed(worker: Worker, script: str, *others: Any) -> int:
        began = time.monotonic()
        try:
            return wait_for(worker, script, *others)
        finally:
            if script != "pre-dump":  # the program runs until then
                waited.append(time.monotonic() - began)

    with mock.patch.object(Worker, "wait_for", timed):
        yield waited


def summary(threads: int, processes: int, moves: Sequence[tuple[Report, float]]) -> dict[str, Any]:
    """Sum up the moves of one size."""
    steps = [{step.name: step.ms for step in report.steps} for report, _ in moves]
    still = [sum(one[name] for name in FROZEN) for one in steps]
    return {
        "threads": threads,
        "processes": processes,
        "still_ms": {"p50": round(median(still), 1), "p99": round(percentile(still, 99), 1)},
        "waiting_for_criu_ms": round(median([waited for _, waited in moves]), 1),
        "steps_ms": {name: round(median([one[name] for one in steps]), 1) for name in steps[0]},
    }
