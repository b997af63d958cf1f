"""The pause of Redis when it moves: empty, under 20,000 operations a second, and with 1 GiB of data under writes.

  a  one connection, 1,000 increments a second
  b  50 connections, 20,000 increments a second
  r  as a, in a container that runc has started from the image `redis` (make images)
  d  as a, in a container of Docker's, on hosts that are its pods (needs a daemon: scripts/dockerd)
  p  as a, in a container of Podman's, likewise
  c  50 connections, 10,000 writes a second, in turns: to an empty Redis; to one with 1 GiB in lazy mode (post-copy);
     to the same in stop mode (cold stop-and-copy)

The load is bench/load/redis_load.c on h1. A gap is the longest time between two replies on any one connection from
shortly before the migration to shortly after it (the load's period included: 1 ms in a, 2.5 in b, 5 in c). After each
run every key that was written is compared with the acknowledged writes. The runs of all but c alternate in fresh
testbeds; those of c alternate in one testbed a round, where both Redis are there and one is written to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.load.redis import RedisLoad, Writes, compile_load
from bench.statistics import machine, median, percentile
from migration.report import Outcome, Report
from topo.plan import LoadBalancerNetwork
from topo.redis_demo import redis_server
from topo.testbed import Testbed

EMPTY, BIG = "10.0.0.100:6379", "10.0.0.101:6380"
ROUND = ("h3", "h4", "h2")  # every Redis starts on h2
PAUSE = 0.2  # seconds between migrations
SETTLE = 0.3  # seconds after a migration in which a gap may still belong to it
WARM_UP = 1.0  # seconds of load before the first migration
VALUE = 1024  # bytes of a value of the large Redis
CHUNK = 50_000  # keys that one script fills in: Redis answers nobody meanwhile
FAILURES = ("errors", "resets", "wrong_replies", "lost", "unknown")


@dataclass
class Arm:
    """One way to migrate under one load, and what came of it."""

    name: str
    writes: Writes
    app: str = "redis"
    target: str = EMPTY
    prefix: str = "load:"
    options: dict[str, str] = field(default_factory=dict)
    """Of Testbed.migrate."""
    image: str | None = None
    hosts: str = "process"
    reports: list[Report] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Sum up."""
        gaps = [seen["gap_ms"] for seen in self.seen]
        rates = [memory / 1e6 / seconds for memory, seconds in zip(self.memory, self.seconds, strict=True)]
        criu = [r.criu.frozen_ms + r.criu.restore_ms for r in self.reports]
        return {
            "arm": self.name,
            "migrations": len(self.reports),
            "gap_ms": {"p50": median(gaps), "p99": percentile(gaps, 99), "max": max(gaps)},
            "gap_median_of_connections_ms": median([seen["gap_median_ms"] for seen in self.seen]),
            "criu_ms": {"p50": round(median(criu), 2)},
            "seconds": {"p50": round(median(self.seconds), 3), "max": round(max(self.seconds), 3)},
            "memory_bytes": round(median(self.memory)),
            "megabytes_per_second": {"p50": round(median(rates)), "min": round(min(rates))},
            "replies": sum(seen["replies"] for seen in self.seen),
            "acknowledged": sum(verdict["acknowledged"] for verdict in self.verdicts),
            "keys_checked": sum(verdict["keys_checked"] for verdict in self.verdicts),
            "retransmits": sum(verdict["retransmits"] for verdict in self.verdicts),
            **{name: sum(verdict[name] for verdict in self.verdicts) for name in FAILURES},
            "steps_ms": {
                step: round(median([s.ms for r in self.reports for s in r.steps if s.name == step]), 2)
                for step in dict.fromkeys(s.name for r in self.reports for s in r.steps)
            },
        }


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench redis")
    add = parser.add_argument
    add("--parts", default="abc", help="which of a, r, d, p, b and c (abc)")
    add(
        "--image",
        default="redis",
        help="of r, d and p: a name of `make images`, or a root file system's folder (redis)",
    )
    add("--rounds", type=int, default=5, help="of all but c (5)")
    add("--migrations", type=int, default=6, help="of each round of all but c (6)")
    add("--big-rounds", type=int, default=3, help="of c (3)")
    add("--big-migrations", type=int, default=2, help="of each arm in each round of c (2)")
    add("--gib", type=float, default=1.0, help="data of the large Redis (1)")
    add("--json", type=Path, metavar="FILE", help="write the result to FILE as well")
    options = parser.parse_args(arguments)
    result: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        program = compile_load(Path(folder))
        if set(options.parts) & set("abrdp"):
            arms = small(program, options.parts, options.rounds, options.migrations, options.image)
            result["small"] = [arm.summary() for arm in arms]
        if "c" in options.parts:
            arms = large(program, options.gib, options.big_rounds, options.big_migrations)
            result["large"] = [arm.summary() for arm in arms]
            gaps = {arm.name: median([seen["gap_ms"] for seen in arm.seen]) for arm in arms}
            result["gap_to_empty"] = {name: round(gap / gaps["empty"], 2) for name, gap in gaps.items()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    show([*result.get("small", []), *result.get("large", [])])  # type: ignore[misc]
    return result


def small(program: Path, parts: str, rounds: int, migrations: int, image: str) -> list[Arm]:
    """Measure all but c."""
    arms = {
        "a": Arm("1 connection, 1,000/s", Writes(1, 1000)),
        "r": Arm("1 connection, 1,000/s, in a container", Writes(1, 1000), image=image),
        "d": Arm("1 connection, 1,000/s, Docker", Writes(1, 1000), image=image, hosts="docker"),
        "p": Arm("1 connection, 1,000/s, Podman", Writes(1, 1000), image=image, hosts="podman"),
        "b": Arm("50 connections, 20,000/s", Writes(50, 20_000)),
    }
    chosen = [arm for part, arm in arms.items() if part in parts]
    for _ in range(rounds):
        for arm in chosen:
            with Testbed(LoadBalancerNetwork(hosts=4), hosts=arm.hosts) as bed:
                start(bed, arm)
                run(bed, program, arm, migrations)
    return chosen


def start(bed: Testbed, arm: Arm) -> None:
    """Start Redis as a process, or in a container."""
    command = redis_server(bed.scratch)
    if arm.image is None:
        bed.run("redis", "h2", command, service=EMPTY)
        return
    command[command.index("--dir") + 1] = "/var/lib/redis"
    is_folder = Path(arm.image).is_absolute()  # of which nobody says what is to run
    bed.run("redis", "h2", command[0 if is_folder else 1 :], service=EMPTY, image=arm.image)


def large(program: Path, gib: float, rounds: int, migrations: int) -> list[Arm]:
    """Measure c."""
    keys = max(1000, int(gib * (1 << 30) / VALUE))
    few, many = (Writes(50, 10_000, "set", number, VALUE) for number in (1000, keys))
    arms = [
        Arm("empty", few, "empty", EMPTY, "key:", {"mode": "stop"}),
        Arm("lazy", many, "big", BIG, "key:", {"mode": "lazy", "transfer": "shared"}),
        Arm("stop", many, "big", BIG, "key:", {"mode": "stop", "transfer": "shared"}),
    ]
    for _ in range(rounds):
        with two_redis(keys) as bed:
            for arm in arms:
                run(bed, program, arm, migrations)
    return arms


@contextmanager
def two_redis(keys: int) -> Iterator[Testbed]:
    """Run a testbed with an empty Redis and one with that many keys."""
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed:
        for name, more in (("empty", ()), ("big", ("--port", BIG.split(":")[1]))):
            data = bed.scratch / name
            data.mkdir()
            bed.run(name, "h2", redis_server(data, *more), service=BIG if more else EMPTY)
        fill(bed, BIG, keys)
        yield bed


def fill(bed: Testbed, target: str, keys: int) -> None:
    """Let Redis make its own data, so that it takes seconds."""
    script = (
        "for i = ARGV[1], ARGV[2] do "
        f"redis.call('SET', 'key:' .. string.format('%d', i), string.rep('x', {VALUE})) end"
    )
    host, port = target.split(":")
    enter = [*inside(bed), "redis-cli", "-h", host, "-p", port]
    for first in range(0, keys, CHUNK):
        last = min(first + CHUNK, keys) - 1
        command = [*enter, "eval", script, "0", str(first), str(last)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    done = subprocess.run([*enter, "dbsize"], check=True, capture_output=True, text=True, timeout=60)
    if done.stdout.strip() != str(keys):
        raise SystemExit(f"bench redis: Redis has {done.stdout.strip()} keys instead of {keys}")


def inside(bed: Testbed) -> list[str]:
    """Return the command that enters the network of the load's host."""
    return ["nsenter", "--target", str(bed.host("h1").pid), "--net", "--"]


def run(bed: Testbed, program: Path, arm: Arm, migrations: int) -> None:
    """Do some migrations of one arm under its load, then compare the data with what was acknowledged."""
    with RedisLoad(program, arm.target, arm.writes, arm.prefix, inside(bed)) as load:
        time.sleep(WARM_UP)
        for _ in range(migrations):
            time.sleep(PAUSE)
            move(bed, arm, load)
        arm.verdicts.append(load.stop())


def move(bed: Testbed, arm: Arm, load: RedisLoad) -> None:
    """Migrate once, and note what the load saw."""
    app = next(app for app in bed.apps() if app["name"] == arm.app)
    arm.memory.append(resident(app["pid"]))
    to = ROUND[(ROUND.index(app["host"]) + 1) % len(ROUND)]
    load.mark()
    started = time.monotonic()
    report = bed.migrate(arm.app, to, **arm.options)  # type: ignore[arg-type]
    arm.seconds.append(time.monotonic() - started)
    if report.outcome is not Outcome.COMPLETED:
        raise SystemExit(f"bench redis: {arm.name}: {report.outcome.value}: {report.reason}")
    time.sleep(SETTLE)
    arm.seen.append(load.mark())
    arm.reports.append(report)


def resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def show(arms: Sequence[dict[str, Any]]) -> None:
    """Print the short table."""
    table = Table(
        "arm", "n", "gap p50", "p99", "max", "s", "MB/s", "acknowledged", "lost", "errors", box=None
    )
    for arm in arms:
        gap = arm["gap_ms"]
        figures = [f"{gap[name]:.1f}" for name in ("p50", "p99", "max")]
        more = [arm["seconds"]["p50"], arm["megabytes_per_second"]["p50"], arm["acknowledged"], arm["lost"]]
        failures = sum(arm[name] for name in FAILURES if name != "lost")
        table.add_row(arm["arm"], *map(str, (arm["migrations"], *figures, *more, failures)))
    Console(width=120).print(table)
