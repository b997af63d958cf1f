"""How long each step of a migration may take.

One Deadline belongs to one migration. Whatever waits in a step (for CRIU, for a file, for another process) asks how
much time is left; a step that has overrun fails, and is undone like any other failure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .errors import StepTimeout
from .slowness import scaled

DEFAULT_TIMEOUT = scaled(300.0)
UNDO = "undo"


@dataclass
class Timeouts:
    """Seconds by step, and for those that are not named; may be changed between migrations."""

    default: float = DEFAULT_TIMEOUT
    steps: dict[str, float] = field(default_factory=dict)

    def of(self, step: str) -> float:
        """Return a step's time; going back always has the default's, but never less than the usual."""
        if step == UNDO:
            return max(self.default, DEFAULT_TIMEOUT)
        return self.steps.get(step, self.default)


class Deadline:
    """When the step under way must have ended."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        self.step = UNDO
        self._allowed = self._timeouts.of(UNDO)
        self._end = time.monotonic() + self._allowed

    def start(self, step: str) -> None:
        """Begin a step."""
        self.step, self._allowed = step, self._timeouts.of(step)
        self._end = time.monotonic() + self._allowed

    def left(self) -> float:
        """Return the seconds that are left; raises StepTimeout when there are none."""
        self.check()
        return self._end - time.monotonic()

    def is_over(self) -> bool:
        """Say whether none is left."""
        return time.monotonic() >= self._end

    def check(self) -> None:
        """Raise StepTimeout if the step has taken too long."""
        if self.is_over():
            raise StepTimeout(f"the step {self.step!r} took longer than {self._allowed:g} s")
