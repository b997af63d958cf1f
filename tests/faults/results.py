"""What the cells that were played have come to; None for one that failed."""

from __future__ import annotations

from tests.faults.cells import Cell

RESULTS: dict[Cell, tuple[str, str] | None] = {}
