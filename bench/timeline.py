"""Where every millisecond of a migration goes: a picture of its steps beside the pause that the client saw.

Some migrations of the echo server under one connection at 1,000 requests a second; the one whose pause is the median
is drawn, as SVG. Times are CLOCK_MONOTONIC, of the events that the migration sends and of the client's own clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.statistics import machine
from migration.report import Outcome, Report
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed

VIP = "10.0.0.100:7000"
PAUSE = 0.3
WIDTH, LEFT, ROW = 900, 130, 26  # pixels
MARGIN_MS = 3.0
COLOURS = {"checkpoint": "#c0504d", "restore": "#4f81bd", "client": "#f0ad4e"}
OTHER = "#8c8c8c"


@dataclass(frozen=True)
class Bar:
    """Something that took time; `start` and `end` are milliseconds from the beginning of the hold."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Run:
    """One migration: its bars, and the client's pause."""

    report: Report
    bars: tuple[Bar, ...]
    gap: Bar


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, draw, and return the figures."""
    parser = argparse.ArgumentParser(prog="bench timeline")
    parser.add_argument("--migrations", type=int, default=31, metavar="N")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture to FILE")
    options = parser.parse_args(arguments)
    runs = measure(options.migrations)
    chosen = sorted(runs, key=lambda run: run.gap.end - run.gap.start)[len(runs) // 2]
    if options.svg:
        options.svg.write_text(draw(chosen, options.migrations))
    result = {
        "gap_ms": round(chosen.gap.end - chosen.gap.start, 2),
        "bars_ms": {bar.name: [round(bar.start, 2), round(bar.end, 2)] for bar in (*chosen.bars, chosen.gap)},
        "criu_ms": {"frozen": chosen.report.criu.frozen_ms, "restore": chosen.report.criu.restore_ms},
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    return result


def measure(count: int) -> list[Run]:
    """Do some migrations and note when each step began and ended."""
    runs = []
    with Testbed(LoadBalancerNetwork(hosts=3)) as bed:
        bed.run("echo", "h2", ["/usr/bin/python3", str(TCP_ECHO), "server"], service=VIP, cwd=bed.scratch)
        with MeasuringClient(bed.host("h1").pid, VIP, Load(1), bed.folder) as client:
            for number in range(count):
                time.sleep(PAUSE)
                events: list[Mapping[str, Any]] = []
                began = time.monotonic()
                report = bed.migrate(
                    "echo",
                    "h2" if number % 2 else "h3",
                    events.append,
                )
                if report.outcome is not Outcome.COMPLETED:
                    raise SystemExit(f"bench timeline: {report.outcome.value}: {report.reason}")
                pause = client.longest_gap(began, time.monotonic())
                if pause is not None:
                    runs.append(arrange(report, events, pause))
    return runs


def arrange(report: Report, events: Sequence[Mapping[str, Any]], pause: tuple[float, float]) -> Run:
    """Put all times on one axis, whose zero is the beginning of the hold."""
    started = {event["step"]: event["at"] for event in events if event["phase"] == "started"}
    zero = started["hold"]
    bars = [
        Bar(event["step"], (started[event["step"]] - zero) * 1000, (event["at"] - zero) * 1000)
        for event in events
        if event["phase"] == "ended" and event["step"] in started
    ]
    begin, end = ((at - zero) * 1000 for at in pause)
    return Run(report, tuple(sorted(bars, key=lambda bar: bar.start)), Bar("client", begin, end))


def draw(run: Run, count: int) -> str:
    """Return the picture."""
    shown = [bar for bar in run.bars if bar.end > -MARGIN_MS]
    bars = [*shown, run.gap]
    low, high = -MARGIN_MS, max(bar.end for bar in bars) + MARGIN_MS

    def x(ms: float) -> float:
        return LEFT + (max(ms, low) - low) / (high - low) * (WIDTH - LEFT - 20)

    height = ROW * (len(bars) + 3)
    gap = run.gap.end - run.gap.start
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="18">One migration of an echo server: the median pause ({gap:.1f} ms) of {count}</text>',
    ]
    bottom = ROW * (len(bars) + 1) + 10
    for ms in range(0, int(high) + 1, 5):
        parts.append(f'<line x1="{x(ms):.1f}" y1="{ROW}" x2="{x(ms):.1f}" y2="{bottom}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{x(ms):.1f}" y="{bottom + 16}" text-anchor="middle">{ms} ms</text>')
    for number, bar in enumerate(bars, 1):
        y = ROW * number + 6
        colour = COLOURS.get(bar.name, OTHER)
        width = max(1.0, x(bar.end) - x(bar.start))
        name = "client waits" if bar.name == "client" else bar.name
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{x(bar.start):.1f}" y="{y}" width="{width:.1f}" height="{ROW - 8}" fill="{colour}"/>'
        )
        label = f"{bar.end - bar.start:.1f} ms"
        inside = width > 60
        at = x(bar.start) + 4 if inside else x(bar.end) + 4
        parts.append(
            f'<text x="{at:.1f}" y="{y + 13}" fill="{"white" if inside else "black"}">{label}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
