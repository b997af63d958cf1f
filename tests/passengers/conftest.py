"""Says at the end of a full run how each passenger has moved."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

FULL = os.environ.get("P4FERRY_PASSENGERS") == "full"
MOVED: dict[str, tuple[int, float, float, int]] = {}
"""By passenger: moves, median and longest time that it stood still in ms, bytes of its last image."""


RANDOM: Counter[str] = Counter()
"""How many random moves there were, by their outcomes."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    write = terminalreporter.write_line
    if RANDOM:
        write("random moves: " + ", ".join(f"{count} {outcome}" for outcome, count in RANDOM.items()))
    if not FULL or not MOVED:
        return
    write(f"{'passenger':12}{'moves':>6}{'frozen, p50':>14}{'longest':>12}{'image':>12}")
    for name, (moves, median, longest, size) in MOVED.items():
        write(f"{name:12}{moves:6}{median:11.1f} ms{longest:9.1f} ms{size / 1e6:9.1f} MB")
