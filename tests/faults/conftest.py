"""Says at the end of the full matrix what every cell came to."""

from __future__ import annotations

import os
from typing import Any

from tests.faults import cells
from tests.faults.results import RESULTS

FULL = os.environ.get("P4FERRY_FAULT_MATRIX") == "full"
LETTERS = {cells.COMPLETED: "C", cells.ROLLED_BACK: "R"}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table: a row for each fault, a column for each point, and the sum."""
    if not FULL or not RESULTS:
        return
    write = terminalreporter.write_line
    write("")
    write("fault matrix, before and after each step: C completed, R rolled back, F failed, . nothing to hit")
    width = max(map(len, cells.FAULTS)) + 2
    write(" " * width + "".join(f"{step[:9]:<10}" for step in cells.STEPS) + "during")
    for fault in cells.FAULTS:
        row = ""
        for step in cells.STEPS:
            marks = [_mark(cells.Cell(fault, step, when)) for when in ("before", "after")]
            row += f"{' '.join(marks):<10}"
        during = [
            _mark(cell)
            for cell in RESULTS
            if (cell.fault, cell.when, cell.crew) == (fault, cells.DURING, cells.ECHO)
        ]
        write(f"{fault:<{width}}{row}{' '.join(during)}")
    write("")
    for crew in cells.CREWS:
        for fault in cells.KILLS_OF_A_CREW:
            own = [cell for cell in RESULTS if (cell.fault, cell.crew) == (fault, crew)]
            write(f"{fault}, {crew}: {' '.join(map(_mark, own))}")
    failed = [cell for cell, result in RESULTS.items() if result is None]
    for cell in failed:
        write(f"failed: {cell}")
    hit = sum(result is not None and bool(result[1]) for result in RESULTS.values())
    write(
        f"{len(RESULTS) - len(failed)} passed, {len(failed)} failed; in {hit} cells there was something to hit"
    )


def _mark(cell: cells.Cell) -> str:
    if cell not in RESULTS:
        return " "
    result = RESULTS[cell]
    if result is None:
        return "F"
    outcome, struck = result
    return LETTERS[outcome] if struck else "."
