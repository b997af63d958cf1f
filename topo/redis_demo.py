"""`--demo redis`: Redis, its producer, and a backend move between hosts, one after another and two at the same time.

    h2  Redis behind 10.0.0.100:6379
    h1  a producer that increments `counter`; a backend behind 10.0.0.101:8080 that asks Redis
    h4  a poller of the backend. (Not on h1: a kernel takes no packet from outside that has its own address as its
        source, so no client reaches a VIP's backend that lives on the client's host.)

Every program has exactly one connection of its own that it never makes anew. What must hold is asserted from what the
programs say of themselves: no acknowledged increment is lost, neither counter nor Redis's uptime goes back, Redis has
the clients that it had, nobody has connected again. The figures of a migration are the producer's, or the poller's
when the backend moves.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

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

REDIS, BACKEND = "10.0.0.100:6379", "10.0.0.101:8080"
APPS = paths.CHECKOUT / "apps"
PYTHON = "/usr/bin/python3"  # the one that has Debian's python3-redis
ROUND = ("h3", "h4", "h2")  # Redis starts on h2
START_TIMEOUT = 15.0  # seconds until every program has had its first replies
LINE_TIMEOUT = 1.5  # the poller prints a line a second


class Programs:
    """The programs of the scenario, and what they say of themselves."""

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed
        self._status = {name: bed.folder / f"{name}.status" for name in ("producer", "poller")}
        self._before: dict[str, dict[str, Any]] = {}
        self._lines = 0
        self.measuring = "producer"
        """Whose figures the next migrations' are."""

    def start(self) -> None:
        """Start all four; returns when they work."""
        bed = self._bed
        if bed.uses_images:  # the two that measure write their figures to the run's folder, and stay outside
            bed.run("redis", "h2", [], service=REDIS, image="redis")
            bed.run("app", "h1", ["--redis", REDIS], service=BACKEND, image="app")
        elif shutil.which("redis-server") is None:
            raise TestbedError("redis-server is not installed: type make setup")
        else:
            bed.run("redis", "h2", redis_server(bed.scratch), service=REDIS)
            bed.run("app", "h1", [PYTHON, str(APPS / "app.py"), "--redis", REDIS], service=BACKEND)
        for name, host, target in (("producer", "h1", REDIS), ("poller", "h4", BACKEND)):
            status = self._status[name]
            status.unlink(missing_ok=True)
            script = str(APPS / f"{name}.py")
            bed.run(name, host, [PYTHON, script, "--connect", target, "--status", str(status)])
            if not wait_until(lambda name=name: self.status(name).get("replies", 0) >= 10, START_TIMEOUT):  # type: ignore[misc]
                raise TestbedError(
                    f"the {name} got no replies within {scaled(START_TIMEOUT):.0f} s: {bed.output(name).strip()}"
                )
        self.mark()

    def status(self, name: str) -> dict[str, Any]:
        """Return what a program has last said of itself."""
        return read_status(self._status[name])

    def mark(self) -> None:
        """Let the figures of the next migrations begin here."""
        self._before = {name: self.status(name) for name in self._status}

    def measure(self, started: float, ended: float) -> dict[str, Any]:
        """Return what the measuring program noticed between two times; two migrations at once get the same."""
        name = self.measuring
        started, ended = started + clocks_apart(), ended + clocks_apart()
        wait_until(lambda: self.status(name).get("time", 0.0) > ended + SETTLE or self._is_over(name), 5.0)
        now = self.status(name)
        figures = client_figures(now, self._before[name], gap_between(now, started, ended + SETTLE))
        if now.get("wrong_replies") or now.get("errors"):
            figures |= {
                "lost_bytes": None,
                "duplicated_bytes": None,
            }  # every reply is checked, not every byte
        return {**figures, "measured_by": name, "reconnects": now.get("reconnects", 0)}

    def _is_over(self, name: str) -> bool:
        return bool(self.status(name).get("done"))

    def line(self) -> str | None:
        """Return the poller's next line."""

        def lines() -> list[str]:
            return self._bed.output("poller").splitlines()

        self._lines = len(lines())
        wait_until(lambda: len(lines()) > self._lines, LINE_TIMEOUT)
        return lines()[-1] if len(lines()) > self._lines else None

    def stop(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """End the producer, let the poller see the last value, end it, too; return the results of both.

        Redis's clients are those of the time when both ran.
        """
        together = self.status("poller")
        self._bed.stop("producer")
        producer = self.status("producer")
        seen = self.status("poller").get("replies", 0)
        wait_until(lambda: self.status("poller").get("replies", 0) >= seen + 10, 5.0)
        self._bed.stop("poller")
        poller = {**self.status("poller"), **{k: together.get(k) for k in ("clients_min", "clients_max")}}
        return producer, poller


def redis_server(folder: Path, *options: str) -> list[str]:
    """Return the command of a Redis that keeps its data in memory only."""
    data = folder / "redis"
    data.mkdir(exist_ok=True)
    # fmt: off
    return ["redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "",
            "--appendonly", "no", "--dir", str(data), *options]
    # fmt: on


def redis_demo(bed: Testbed, count: int) -> bool:
    """Play the scenario with `count` moves of Redis alone; says whether everything was as it must be."""
    programs = Programs(bed)
    programs.start()
    print(
        f"redis serves {REDIS} from h2; on h1 a producer increments `counter` 1,000 times a second,\n"
        f"a backend serves {BACKEND}; on h4 a client polls it 100 times a second",
        flush=True,
    )
    reports: list[Report] = []
    bed.measure = programs.measure
    moves: list[dict[str, str]] = [{"redis": ROUND[number % len(ROUND)]} for number in range(count)]
    moves += [{"producer": "h4"}, {"app": "h3"}]
    moves += [{"redis": ROUND[count % len(ROUND)], "producer": "h1"}]
    wanted = sum(map(len, moves))
    try:
        for together in moves:
            reports += move(bed, programs, together)
            if any(report.outcome is not Outcome.COMPLETED for report in reports):
                break
    finally:
        bed.measure = None
    producer, poller = programs.stop()
    problems = list(find_problems(reports, wanted, producer, poller))
    _show(reports, wanted, producer, poller)
    for problem in problems:
        print(f"  WRONG: {problem}", flush=True)
    return not problems


def move(bed: Testbed, programs: Programs, together: Mapping[str, str]) -> list[Report]:
    """Move one program, or several at the same time; print what came of it."""
    line = programs.line()  # between migrations everything runs undisturbed for a moment
    if line:
        print(f"    {line}", flush=True)
    programs.measuring = "poller" if "app" in together else "producer"
    programs.mark()
    if len(together) > 1:
        print(f"  {' and '.join(together)} at the same time:", flush=True)
    started = [bed.queue_migration(app, to) for app, to in together.items()]
    try:
        reports = [bed.wait_for_migration(id) for id in started]
    except KeyboardInterrupt:
        for id in started:
            bed.cancel_migration(id)
        for id in started:
            bed.wait_for_migration(id)
        raise
    for report in reports:
        say(report, report.app, programs.measuring)
    return reports


def find_problems(
    reports: list[Report], wanted: int, producer: Mapping[str, Any], poller: Mapping[str, Any]
) -> list[str]:
    """Return a sentence for everything that is not as it must be."""
    found = [
        f"{r.app} {r.source} -> {r.destination}: {r.outcome.value}, {r.connections.broken} connections broken"
        for r in reports
        if r.outcome is not Outcome.COMPLETED or r.connections.broken
    ]
    if len(reports) != wanted:
        found.append(f"{wanted - len(reports)} migrations did not take place")
    if not producer.get("done") or not poller.get("done"):
        return [*found, "producer or poller left no result"]
    if producer["acknowledged"] != poller["counter"]:
        found.append(
            f"Redis counts {poller['counter']}, but {producer['acknowledged']} increments were acknowledged"
        )
    if len(producer["runs"]) != 1:
        found.append(f"the acknowledged values have gaps: {producer['runs']}")
    must_be_zero = {
        "producer": (producer, ("wrong_replies", "reconnects", "resets")),
        "poller": (
            poller,
            (
                "counter_went_back",
                "uptime_went_back",
                "bad_answers",
                "new_connections",
                "backend_reconnects",
                "resets",
            ),
        ),
    }
    for name, (result, keys) in must_be_zero.items():
        found += [f"{name}: {key} is {result[key]}" for key in keys if result[key]]
        found += [f"{name}: {error}" for error in result["errors"]]
    if (poller["clients_min"], poller["clients_max"]) != (2, 2):
        found.append(
            f"Redis had {poller['clients_min']} to {poller['clients_max']} clients instead of 2 all the time"
        )
    return found


def _show(reports: list[Report], wanted: int, producer: Mapping[str, Any], poller: Mapping[str, Any]) -> None:
    """Print the programs' view."""
    done = sum(report.outcome is Outcome.COMPLETED for report in reports)
    broken = sum(report.connections.broken for report in reports)
    kept = sum(report.connections.kept for report in reports)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("migrations", f"{done} of {wanted} completed, {kept} connections carried, {broken} broken")
    table.add_row(
        "counter", f"{poller.get('counter')}; {producer.get('acknowledged')} increments acknowledged"
    )
    table.add_row(
        "uptime", f"{poller.get('uptime_in_seconds')} s, went back {poller.get('uptime_went_back')} times"
    )
    table.add_row(
        "Redis's clients",
        f"{poller.get('clients_min')} to {poller.get('clients_max')}, {poller.get('new_connections')} new ones",
    )
    again = [producer.get("reconnects"), poller.get("reconnects"), poller.get("backend_reconnects")]
    table.add_row("reconnects", "{} producer, {} poller, {} backend".format(*again))
    for name, result in (("producer", producer), ("poller", poller)):
        table.add_row(
            name,
            f"longest gap {result.get('gap_ms') or 0:.1f} ms, {result.get('resets')} resets, "
            f"{result.get('retransmits')} retransmits, {result.get('loss_probes')} probes",
        )
    Console().print(table)
