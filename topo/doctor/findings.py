"""A check's answer, and running the commands that checks try."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from migration.slowness import scaled
from topo import paths

SETUP = "type: make setup"
_TIMEOUT = scaled(30.0)  # seconds for any child


class Status(Enum):
    """How a check ended."""

    FINE = "fine"
    OPTIONAL = "optional"
    NEEDED = "needed"


@dataclass(frozen=True)
class Finding:
    """A check's answer: one line for people, and what was measured (JSON values) for programs."""

    status: Status
    detail: str
    measured: Mapping[str, Any] = field(default_factory=dict)


Checks = Mapping[str, Callable[[], Finding]]


def fine(detail: str, **measured: Any) -> Finding:
    """Answer that all is well."""
    return Finding(Status.FINE, detail, measured)


def optional(detail: str, lost: str, **measured: Any) -> Finding:
    """Answer that something is missing which one can do without."""
    return Finding(Status.OPTIONAL, f"{detail}; lost: {lost}", measured)


def needed(detail: str, remedy: str, **measured: Any) -> Finding:
    """Answer that something is missing which one cannot do without."""
    return Finding(Status.NEEDED, f"{detail}; {remedy}", measured)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command; whoever calls looks at its status."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT,
        check=False,
        cwd=paths.CHECKOUT,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of what a command has said."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def first_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the first line of what a command has printed."""
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else last_line(done)


def milliseconds_since(begin: float) -> float:
    """Return the time since time.perf_counter() was `begin`."""
    return round((time.perf_counter() - begin) * 1000, 1)
