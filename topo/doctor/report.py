"""Running the checks; their findings as a table and as JSON.

The JSON form: {"version": 1, "machine": {"kernel", "distribution", "architecture", "python", "processors",
"memory_bytes", "slowness"}, "checks": [{"name", "status": "fine" | "optional" | "needed", "detail", "measured"}]}.
"measured" has "ms", the time that the check took, and what the check adds.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from topo.doctor import machine
from topo.doctor.findings import SETUP, Checks, Finding, Status, milliseconds_since, needed
from topo.errors import TestbedError

VERSION = 1
STANDARD_OUTPUT = ("-", "/dev/stdout")
PIPE_WIDTH = 200  # columns where nobody looks directly
_SHOWN_MS = 10  # below that a check has only looked
_COLOURS = {Status.FINE: "green", Status.OPTIONAL: "yellow", Status.NEEDED: "red"}


def examine(checks: Checks) -> dict[str, Finding]:
    """Run checks; one that cannot even run is a finding, too."""
    findings = {}
    for name, check in checks.items():
        begin = time.perf_counter()
        try:
            found = check()
        except (
            OSError,
            ValueError,
            LookupError,
            ImportError,
            subprocess.SubprocessError,
            TestbedError,
        ) as ex:
            found = needed(f"the check itself failed: {ex}", SETUP)
        findings[name] = replace(found, measured={**found.measured, "ms": milliseconds_since(begin)})
    return findings


def print_table(findings: Mapping[str, Finding]) -> None:
    """Print a line for each finding."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, finding in findings.items():
        colour = _COLOURS[finding.status]
        took = finding.measured["ms"]
        shown = f" ({took:.0f} ms)" if took >= _SHOWN_MS else ""
        table.add_row(name, f"[{colour}]{finding.status.value}[/]", escape(finding.detail) + shown)
    lines, is_seen = io.StringIO(), sys.stdout.isatty()
    Console(file=lines, force_terminal=is_seen, width=None if is_seen else PIPE_WIDTH).print(table)
    print_out(lines.getvalue())


def print_out(text: str) -> None:
    """Print it at once; raises TestbedError where that is a file on a full disk, say."""
    try:
        print(text, end="", flush=True)
    except OSError as ex:
        sys.stdout = None  # or Python tries once more when it ends, and complains
        raise TestbedError(f"standard output cannot be written: {ex.strerror}") from ex


def as_json(findings: Mapping[str, Finding]) -> dict[str, Any]:
    """Return findings in the JSON form."""
    return {
        "version": VERSION,
        "machine": machine.describe(),
        "checks": [
            {
                "name": name,
                "status": found.status.value,
                "detail": found.detail,
                "measured": dict(found.measured),
            }
            for name, found in findings.items()
        ],
    }


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write findings to a file, or print them; raises TestbedError."""
    text = json.dumps(content, indent=2) + "\n"
    if path is None:
        print_out(text)
        return
    try:
        path.write_text(text)
    except OSError as ex:
        raise TestbedError(f"--json {path}: it cannot be written: {ex.strerror}") from ex
