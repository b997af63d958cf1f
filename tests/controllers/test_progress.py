"""The display of a migration's steps, on a terminal and off it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from controllers.progress import Progress, size

HOLD = {"step": "hold", "phase": "started"}
HELD = {"step": "hold", "phase": "ended", "ms": 0.94}
RESTORE = {"step": "restore", "phase": "started"}
SWITCHED = {"step": "switch over", "phase": "started"}
SENT = {"step": "transfer", "phase": "ended", "ms": 12.0, "bytes": 2_900_000}
BROKEN = {"step": "restore", "phase": "failed", "ms": 3.0, "reason": "no room"}
RELEASED = {"step": "release", "phase": "ended", "ms": 2.0}


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    """Make a console that writes to memory."""
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=60, color_system=None), out


def test_plain_lines_where_there_is_no_terminal() -> None:
    """One for each step that has ended, in the order of the ends; no control characters."""
    screen, out = console(False)
    with Progress(screen, "m1: echo to h3") as progress:
        for event in (HOLD, HELD, SENT, RESTORE, SWITCHED):
            progress.show(event)
        progress.say("cancelling m1")
        progress.show(BROKEN)
    assert out.getvalue().splitlines() == [
        "m1: echo to h3:",
        "  hold              0.9 ms",
        "  transfer         12.0 ms  2.9 MB",
        "cancelling m1",
        "  restore           3.0 ms  failed: no room",
    ]


def test_a_table_on_a_terminal() -> None:
    """What is there at the end shows every step once, overlapping ones included."""
    screen, out = console(True)
    with Progress(screen, "m1: echo to h3") as progress:
        for event in (HOLD, HELD, RESTORE, SWITCHED, {**SWITCHED, "phase": "ended", "ms": 1.5}, BROKEN):
            progress.show(event)
    last = out.getvalue().rpartition("m1: echo to h3")[2]
    assert [line.split() for line in last.splitlines()[1:4]] == [
        ["✓", "hold", "0.9", "ms"],
        ["✗", "restore", "3.0", "ms", "failed:", "no", "room"],
        ["✓", "switch", "over", "1.5", "ms"],
    ]


def test_a_gentle_display_is_still_while_the_program_is() -> None:
    """Nothing is drawn between hold and release, unless it takes long; then all of it is."""
    screen, out = console(True)
    with Progress(screen, "m1", gentle=True) as progress:
        progress.show(HOLD)
        before = out.getvalue()
        for event in (HELD, SENT, RESTORE):
            progress.show(event)
        assert out.getvalue() == before
        progress.refresh()
        assert "2.9 MB" in out.getvalue()
        before = out.getvalue()
        progress.show({**RESTORE, "phase": "ended", "ms": 7.25})
        assert out.getvalue() == before
        progress.show(RELEASED)
        assert "7.2 ms" in out.getvalue()


@pytest.mark.parametrize(
    ("count", "text"), [(None, ""), (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (3 << 30, "3.2 GB")]
)
def test_sizes(count: int | None, text: str) -> None:
    """In the largest unit of which there is one."""
    assert size(count) == text
