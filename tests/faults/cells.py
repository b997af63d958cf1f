"""The cells of the fault matrix: which fault, at which point of a migration, and how it may end.

Generated: every step, before and after it, with every fault; and workers killed at random moments within the two
steps in which CRIU has the program in its hands.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

STEPS = (
    "prepare",
    "hold",
    "checkpoint",
    "rewrite",
    "transfer",
    "restore",
    "switch over",
    "release",
    "verify",
)
CONTROLLER = "controller killed"
DUMPER = "dump worker killed"
RESTORER = "restore worker killed"
PAGES = "page server killed"
SWITCH = "switch killed"
DISK = "disk full"
TIMEOUT = "time-out"
STALLED = "stalled target"
FAULTS = (DUMPER, RESTORER, PAGES, SWITCH, DISK, TIMEOUT, STALLED, CONTROLLER)
DURING = "during"
KILLS_DURING = {DUMPER: ("checkpoint", 12), RESTORER: ("restore", 8)}
LONGEST = {"checkpoint": 0.012, "restore": 0.010}  # seconds within which a kill during a step comes

COMPLETED, ROLLED_BACK = "completed", "rolled_back"
# Who moves: an echo server of one thread with one connection, or a crew, each member with a connection of its own.
ECHO = "echo"
CREWS = ("1 thread", "8 threads", "250 threads", "8 processes")
KILLS_OF_A_CREW = {DUMPER: ("checkpoint", 25), RESTORER: ("restore", 5)}
LONGEST_OF_A_CREW = {  # seconds within which a kill during the two steps comes
    "1 thread": (0.010, 0.010),
    "8 threads": (0.012, 0.010),
    "250 threads": (0.080, 0.040),
    "8 processes": (0.030, 0.020),
}


@dataclass(frozen=True)
class Cell:
    """One fault at one point; `delay` is how long after the step's beginning, for those during it."""

    fault: str
    step: str
    when: str
    delay: float = 0.0
    crew: str = ECHO

    def __str__(self) -> str:
        point = f"{self.delay * 1000:.1f} ms into" if self.when == DURING else self.when
        return f"{self.fault}, {point} {self.step}" + (f" of {self.crew}" if self.crew != ECHO else "")

    @property
    def at(self) -> int:
        """Number the points in their order."""
        return STEPS.index(self.step) * 2 + (self.when == "after")

    @property
    def outcomes(self) -> set[str]:
        """Say how the migration may end. Lost is never among it, nor is an outcome that nobody reports."""
        if self.fault == TIMEOUT:
            return {ROLLED_BACK}
        if self.fault in (DUMPER, RESTORER, STALLED, DISK) and self.when != DURING:
            return {ROLLED_BACK} if self.at <= self._last_that_fails else {COMPLETED}
        return {COMPLETED, ROLLED_BACK}

    @property
    def _last_that_fails(self) -> int:
        """Return the last point at which what the fault takes away is still needed.

        A dump worker has done its work when the image is complete, a restore worker when the copy runs, and nothing
        is written any more when the copy has been built.
        """
        step, when = {
            DUMPER: ("checkpoint", "before"),
            RESTORER: ("release", "before"),
            STALLED: ("release", "before"),
            DISK: ("checkpoint", "before"),
        }[self.fault]
        return Cell(self.fault, step, when).at


def every_cell() -> list[Cell]:
    """Return the whole matrix; those that share a testbed come first."""
    cells = []
    for fault in FAULTS:
        cells += [Cell(fault, step, when) for step in STEPS for when in ("before", "after")]
        if fault in KILLS_DURING:
            step, count = KILLS_DURING[fault]
            numbers = random.Random(fault)
            cells += [Cell(fault, step, DURING, numbers.uniform(0, LONGEST[step])) for _ in range(count)]
    return cells


def cells_of_crews() -> list[Cell]:
    """Return the cells in which it matters how many threads, processes and connections a program has."""
    cells = []
    for crew in CREWS:
        points = [
            (DUMPER, "checkpoint", "after"),
            (RESTORER, "restore", "after"),
            (TIMEOUT, "verify", "before"),
        ]
        cells += [Cell(fault, step, when, crew=crew) for fault, step, when in points]
        for (fault, (step, count)), longest in zip(
            KILLS_OF_A_CREW.items(), LONGEST_OF_A_CREW[crew], strict=True
        ):
            numbers = random.Random(f"{fault} {crew}")
            cells += [Cell(fault, step, DURING, numbers.uniform(0, longest), crew) for _ in range(count)]
    return cells


def chosen_cells_of_crews() -> list[Cell]:
    """Return of each crew some kills in the middle of its dump, and one with its image complete."""
    cells = []
    for crew in CREWS:
        own = [cell for cell in cells_of_crews() if cell.crew == crew and cell.fault == DUMPER]
        cells += own[:4]
    return cells


_CHOSEN = {
    DUMPER: [
        "prepare before",
        "checkpoint before",
        "checkpoint after",
        "switch over before",
        "release before",
    ],
    RESTORER: ["hold after", "transfer before", "restore after", "release before"],
    PAGES: ["prepare before", "checkpoint before"],
    SWITCH: ["prepare after", "switch over before", "release before"],
    DISK: ["checkpoint before"],
    TIMEOUT: ["hold after", "verify before"],
    STALLED: ["restore before", "release before"],
    CONTROLLER: ["hold after", "checkpoint after", "restore after", "release before", "release after"],
}


def chosen_cells() -> list[Cell]:
    """Return the reduced matrix: where the rules change from one point to the next."""
    cells = []
    for cell in every_cell():
        if cell.when == DURING:
            is_chosen = cell.fault == DUMPER and DURING not in [c.when for c in cells]
        else:
            is_chosen = f"{cell.step} {cell.when}" in _CHOSEN[cell.fault]
        if is_chosen:
            cells.append(cell)
    return cells
