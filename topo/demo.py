"""The scripted scenarios of `--demo`."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.table import Table

from migration.report import Outcome, Report
from topo.measure import TCP_ECHO, Load, MeasuringClient, bulk_client
from topo.testbed import Testbed

SERVICE = "10.0.0.100:7000"
ROUND = ("h3", "h2")  # the server starts on h2
PAUSE = 0.2  # seconds of undisturbed traffic before each migration


def echo_demo(bed: Testbed, count: int, connections: int, bulk: bool) -> bool:
    """Move an echo server to and fro under its measuring client; says whether nothing at all went wrong."""
    arguments = ["server", *(["--bulk"] if bulk else [])]
    if bed.uses_images:
        bed.run("echo", "h2", arguments, service=SERVICE, image="tcp-echo")
    else:
        command = ["/usr/bin/python3", str(TCP_ECHO), *arguments]
        bed.run("echo", "h2", command, service=SERVICE, cwd=bed.scratch)
    load = Load(connections, bulk=bulk)
    what = "streams at full speed both ways" if bulk else f"sends {load.rate:g} requests a second"
    print(
        f"echo serves {SERVICE} from h2; a client on h1 {what} over {connections} connection(s)", flush=True
    )
    reports: list[Report] = []
    with MeasuringClient(bed.host("h1").pid, SERVICE, load, bed.folder) as client:
        bed.measure = client.measure
        try:
            for number in range(count):
                time.sleep(PAUSE)
                report = bed.migrate("echo", ROUND[number % len(ROUND)])
                reports.append(report)
                say(report)
                if report.outcome is not Outcome.COMPLETED:
                    break
        finally:
            bed.measure = None
        result = client.stop()
    if bulk:
        for report in reports:
            report.client = bulk_client(result, len(reports))
    _show(reports, result)
    return len(reports) == count and _is_clean(reports, result)


def say(report: Report, who: str = "", client: str = "client") -> None:
    """Print a migration in a line; `who` names the program where there are several."""
    gap = ""
    if report.client and report.client["gap_ms"] is not None:
        gap = f", the {client}'s longest gap {report.client['gap_ms']:.1f} ms"
    way = (
        f"  {who} {report.source} -> {report.destination}"
        if who
        else f"  {report.source} -> {report.destination}"
    )
    if report.outcome is Outcome.COMPLETED:
        frozen = f"frozen {report.criu.frozen_ms:.1f} ms, restored in {report.criu.restore_ms:.1f} ms"
        print(f"{way}: {frozen}{gap}", flush=True)
    else:
        print(f"{way}: {report.outcome.value}: {report.reason}", flush=True)


def _is_clean(reports: list[Report], result: dict[str, Any]) -> bool:
    """Say whether every migration was completed and the client noticed nothing but the pauses."""
    wrong = ("lost_bytes", "duplicated_bytes", "corrupt_bytes", "resets", "errors")
    return (
        all(r.outcome is Outcome.COMPLETED and r.connections.broken == 0 for r in reports)
        and not any(result.get(name) for name in wrong)
        and result.get("hashes_equal", True) is True
    )


def _show(reports: list[Report], result: dict[str, Any]) -> None:
    """Print the client's view."""
    table = Table(box=None, show_header=False, pad_edge=False)
    done = sum(r.outcome is Outcome.COMPLETED for r in reports)
    table.add_row("migrations", f"{done} of {len(reports)} completed")
    table.add_row(
        "connections", f"{result['connections']}, {sum(r.connections.broken for r in reports)} broken"
    )
    if result["mode"] == "bulk":
        total = (result["bytes_sent"] + result["bytes_received"]) / 1e9
        table.add_row(
            "streamed", f"{total:.2f} GB, {result['megabits_per_second']:.0f} Mbit/s, pauses included"
        )
        table.add_row("hashes", "equal at both ends" if result["hashes_equal"] else "[red]DIFFERENT[/]")
    else:
        table.add_row("requests", f"{result['requests']} sent, {result['replies']} answered")
        table.add_row("bytes", f"{result['lost_bytes']} lost, {result['duplicated_bytes']} duplicated")
        table.add_row("longest gap", f"{result['gap_ms']:.1f} ms")
    table.add_row("resets", str(result["resets"]))
    table.add_row("retransmits", f"{result['retransmits']}, and {result['loss_probes']} tail loss probes")
    Console().print(table)
