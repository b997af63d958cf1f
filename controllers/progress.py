"""A migration's steps as they end: a table that grows on a terminal, plain lines elsewhere.

    with Progress(console, "m1: echo to h3") as progress:
        progress.show(event)            # a migration.report.Event as JSON values, as often as there is one

Drawing takes milliseconds, and if both happen in one process they are taken from the migration while its program stands
still. Such a display is `gentle`: between the beginning of the hold and the end of the release it only notes what it is
told, unless `refresh` is called because nothing was heard for long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

_FIRST_DELICATE, _LAST_DELICATE = "hold", "release"
_MARKS = {
    "started": ("…", "cyan"),
    "ended": ("✓", "green"),
    "failed": ("✗", "red"),
    "undone": ("↩", "yellow"),
}


@dataclass
class Step:
    """What is known of a step."""

    name: str
    phase: str = "started"
    ms: float | None = None
    bytes: int | None = None
    reason: str | None = None

    @property
    def facts(self) -> str:
        """Return time and size, or what went wrong, as a line's end."""
        parts = [f"{self.ms:9.1f} ms" if self.ms is not None else "", size(self.bytes)]
        if self.phase in ("failed", "undone"):
            parts.append(f"{self.phase}: {self.reason}" if self.reason else self.phase)
        return "  ".join(part for part in parts if part)


class Progress:
    """A context manager; for one thread, except for `say` once it has begun (rich locks the console)."""

    def __init__(self, console: Console, title: str, *, gentle: bool = False) -> None:
        self.steps: list[Step] = []
        self._console = console
        self._title = title
        self._gentle = gentle
        self._delicate = False
        self._begun = False
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None and self._begun:
            self.refresh()
            self._live.stop()

    def begin(self) -> None:
        """Show the title, once; what comes first does this, too."""
        if self._begun:
            return
        self._begun = True
        if self._live is not None:
            self._live.start()
            self.refresh()
        else:
            self._print(f"{self._title}:")

    def show(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        self.begin()
        name, phase = str(event["step"]), str(event["phase"])
        step = next((s for s in self.steps if s.name == name and s.phase == "started"), None)
        if step is None:
            self.steps.append(step := Step(name))
        step.phase, step.ms = phase, event.get("ms")
        step.bytes, step.reason = event.get("bytes"), event.get("reason")
        if name == _FIRST_DELICATE and phase == "started":
            self._delicate = True
        elif (name == _LAST_DELICATE and phase == "ended") or phase in ("failed", "undone"):
            self._delicate = False
        if self._live is None:
            if phase != "started":
                self._print(f"  {name:12}{step.facts}")
        elif not (self._gentle and self._delicate):
            self.refresh()

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        self.begin()
        self._print(text)

    def refresh(self) -> None:
        """Draw what is known."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _table(self) -> RenderableType:
        table = Table(box=None, show_header=False, pad_edge=False)
        for step in self.steps:
            mark, style = _MARKS.get(step.phase, ("?", ""))
            table.add_row(Text(mark, style), step.name, Text(step.facts))
        return Group(Text(self._title), table)


def size(count: int | None) -> str:
    """Return a number of bytes as people read it."""
    if count is None:
        return ""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
