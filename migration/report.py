"""What a migration tells: events while it runs, a report when it is over (design: "Contracts")."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from .steering import HeldStats


class Outcome(str, Enum):
    """How a migration ended."""

    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"  # runs at the source again
    FAILED = "failed"  # could not even be brought back; the reason says where it is
    REFUSED = "refused"  # never touched


class Phase(str, Enum):
    """What an event says about its step."""

    STARTED = "started"
    ENDED = "ended"
    FAILED = "failed"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a migration's progress; `ms` and `bytes` are known when the step has ended.

    `at` is when it happened, by CLOCK_MONOTONIC in seconds: it may be told later (quiet.py).
    """

    migration: str
    step: str
    phase: Phase
    ms: float | None = None
    bytes: int | None = None
    reason: str | None = None
    at: float = field(default_factory=time.monotonic, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        return {**asdict(self), "phase": self.phase.value}


OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step that was done, and how long it took."""

    name: str
    ms: float


@dataclass(slots=True)
class Connections:
    """Connections in the image, those that live on, and those that do not."""

    established: int = 0
    kept: int = 0
    broken: int = 0


@dataclass(slots=True)
class CriuFigures:
    """CRIU's share: from the freeze to the complete image, from there to the running copy, and the size."""

    frozen_ms: float = 0.0
    restore_ms: float = 0.0
    image_bytes: int = 0


def ending(status: int | None) -> dict[str, Any]:
    """Describe how a program has ended (negative: by that signal, None: unknown), as the report's "ended"."""
    if status is None or status >= 0:
        return {"status": status, "signal": None}
    return {"status": None, "signal": signal.Signals(-status).name}


@dataclass(slots=True)
class Report:
    """The sum of a migration; `client` is filled in by whoever runs a measuring client."""

    id: str
    app: str
    source: str
    destination: str
    runtime: str
    outcome: Outcome = Outcome.FAILED
    reason: str | None = None
    connections: Connections = field(default_factory=Connections)
    client: dict[str, Any] | None = None
    criu: CriuFigures = field(default_factory=CriuFigures)
    held: HeldStats = field(default_factory=HeldStats)
    transfer: dict[str, Any] | None = None
    """How the memory moved: mode, via, why so, bytes, rounds of pre-copy, and when post-copy's last page was there."""
    steps: list[StepTime] = field(default_factory=list)
    ended: dict[str, Any] | None = None
    """How a program ended that came to its end by itself right after its arrival: {"status": 0, "signal": null}. Of
    programs that moved together, this of each that did, by its name."""
    warnings: list[str] = field(default_factory=list)
    """What the program has lost on its way, a sentence each (docs/fidelity.md)."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values, as the design fixes them."""
        return {**asdict(self), "outcome": self.outcome.value}
