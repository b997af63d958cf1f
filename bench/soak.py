"""Many migrations in a row over four programs: nothing may break, nothing may be left.

An echo server with its measuring client, Redis, Redis's producer (a client) and a backend that is both server and
client (the programs of `--demo redis`) move from host to host, one after the other. At the end: the outcomes, what the
programs say of their connections, what the kernels of all hosts have counted (the management links' transfers
and what CRIU tries out over loopback included), and what has grown in this process and on the machine between the first
tenth and the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.statistics import machine, median, percentile
from migration.model import Host
from migration.netstat import counters
from migration.report import Outcome, Report
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.plan import LoadBalancerNetwork
from topo.redis_demo import Programs, find_problems
from topo.testbed import Testbed

ECHO = "10.0.0.102:7000"
SLOW = 150.0  # milliseconds; the report of a migration with a longer gap is printed
TABLE = "p4ferry_soak"
PAUSE = 0.1  # seconds between migrations
KERNEL = (
    "Tcp.RetransSegs",
    "TcpExt.TCPLossProbes",
    "TcpExt.TCPTimeouts",
    "TcpExt.TCPFastRetrans",
    "TcpExt.TCPSlowStartRetrans",
    "TcpExt.TCPLostRetransmit",
    "Tcp.EstabResets",
    "Tcp.OutRsts",
    "TcpExt.TCPAbortOnTimeout",
)
# Where each program goes in turn. Clients of a VIP and its backend cannot share a host.
ROUNDS = {
    "echo": ("h3", "h4", "h2"),
    "redis": ("h3", "h4", "h2"),
    "producer": ("h4", "h2", "h1"),
    "app": ("h2", "h3", "h1"),
}


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench soak")
    parser.add_argument("--migrations", type=int, default=200, metavar="N", help="in all (default: 200)")
    options = parser.parse_args(arguments)
    reports: list[Report] = []
    sizes: list[dict[str, int]] = []
    with Testbed(LoadBalancerNetwork(hosts=5)) as bed:
        programs = Programs(bed)
        programs.start()
        bed.run("echo", "h2", ["/usr/bin/python3", str(TCP_ECHO), "server"], service=ECHO, cwd=bed.scratch)
        with MeasuringClient(bed.host("h5").pid, ECHO, Load(1), bed.folder) as client:
            for host in bed.hosts.values():
                watch_resets(host)
            before = kernel(bed)
            measures = {"echo": client.measure, "app": programs.measure}
            for number in range(options.migrations):
                time.sleep(PAUSE)
                app, to = place(number)
                programs.measuring = "poller" if app == "app" else "producer"
                programs.mark()
                bed.measure = measures.get(app, programs.measure)
                report = bed.migrate(app, to)
                reports.append(report)
                if report.client and (report.client["gap_ms"] or 0) > SLOW:
                    print(f"{number}: {json.dumps(report.to_json())}", flush=True)
                if report.outcome is not Outcome.COMPLETED:
                    print(f"{number}: {app} -> {to}: {report.outcome.value}: {report.reason}", flush=True)
                if number % max(1, options.migrations // 10) == 0:
                    sizes.append(size(bed))
            bed.measure = None
            after = kernel(bed)
            resets = sum(resets_on_the_wire(host) for host in bed.hosts.values())
            sizes.append(size(bed))
            echo = client.stop()
        producer, poller = programs.stop()
        problems = list(find_problems(reports, options.migrations, producer, poller))
    result = {
        "migrations": len(reports),
        "outcomes": dict(Counter(report.outcome.value for report in reports)),
        "connections_broken": sum(report.connections.broken for report in reports),
        "held_dropped": sum(report.held.dropped for report in reports),
        "resets_on_the_wire": resets,
        "kernel": {name: after[name] - before[name] for name in KERNEL},
        "echo": {k: echo[k] for k in ("requests", "replies", "lost_bytes", "duplicated_bytes", "resets")},
        "clients": {
            name: {k: seen[k] for k in ("retransmits", "loss_probes", "resets")}
            for name, seen in (("echo", echo), ("producer", producer), ("poller", poller))
        },
        "problems": problems,
        "gap_ms": {app: gaps(reports, app) for app in ROUNDS},
        "sizes": sizes,
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    return result


def place(number: int) -> tuple[str, str]:
    """Say which program goes where in the given migration."""
    names = list(ROUNDS)
    app = names[number % len(names)]
    return app, ROUNDS[app][number // len(names) % len(ROUNDS[app])]


def kernel(bed: Testbed) -> Counter[str]:
    """Add up what the kernels of all hosts have counted."""
    total: Counter[str] = Counter()
    for host in bed.hosts.values():
        counted = counters(host.pid)
        total.update({name: counted.get(name, 0) for name in KERNEL})
    return total


def watch_resets(host: Host) -> None:
    """Let a host count the RST segments that leave by its interface.

    The kernel's own counters (Tcp.OutRsts, Tcp.EstabResets) also count sockets that close in repair mode without a
    word, and what CRIU tries out over loopback at each start.
    """
    rule = 'oifname != "lo" tcp flags & rst == rst counter'
    table = f"table ip {TABLE} {{ chain output {{ type filter hook output priority 0; {rule}; }}; }}"
    subprocess.run([*enter(host), "nft", "-f", "-"], input=table, text=True, check=True, timeout=10)


def resets_on_the_wire(host: Host) -> int:
    """Return what `watch_resets` has counted."""
    listing = subprocess.run(
        [*enter(host), "nft", "list", "table", "ip", TABLE],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return int(listing.stdout.split("packets ")[1].split()[0])


def enter(host: Host) -> list[str]:
    """Return the words that run a command in a host's network namespace."""
    return ["nsenter", "--target", str(host.pid), "--net", "--"]


def size(bed: Testbed) -> dict[str, int]:
    """Say how large this process and what it keeps on the machine are."""
    own = Path("/proc/self")
    resident = int((own / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return {
        "descriptors": len(list((own / "fd").iterdir())),
        "threads": len(list((own / "task").iterdir())),
        "resident_kib": resident,
        "processes": sum(entry.name.isdigit() for entry in Path("/proc").iterdir()),
        "images": sum(1 for _ in Path("/dev/shm").rglob("*")),
        "run_files": sum(1 for _ in bed.folder.rglob("*")),
    }


def gaps(reports: Sequence[Report], app: str) -> dict[str, float | int]:
    """Sum up the gaps of one program's migrations."""
    values = [r.client["gap_ms"] for r in reports if r.app == app and r.client and r.client["gap_ms"]]
    if not values:
        return {"n": 0}
    return {"n": len(values), "p50": median(values), "p99": percentile(values, 99), "max": max(values)}
