"""Events that are told a little later, so that telling them takes nothing from a program that stands still.

Each one wakes threads of this interpreter (the API's, the display's), which then share it with the migration: some
0.2 ms a step. So what happens between the beginning of the hold and the end of the release is told when that is over,
in its order; or at once when something has failed, or when a step takes so long that it does not matter any more.
"""

from __future__ import annotations

import threading

from .report import Event, OnEvent, Phase

FIRST, LAST = "hold", "release"
PATIENCE = 0.25  # seconds for which events are kept


class Quiet:
    """A listener that passes events on to another one; called by the threads of one migration."""

    def __init__(self, listener: OnEvent, patience: float = PATIENCE) -> None:
        self._listener = listener
        self._patience = patience
        self._kept: list[Event] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def __call__(self, event: Event) -> None:
        """Take an event."""
        with self._lock:
            self._kept.append(event)
        is_over = (event.step, event.phase) == (LAST, Phase.ENDED)
        if self._timer is None or is_over or event.phase in (Phase.FAILED, Phase.UNDONE):
            self.flush()
        if (event.step, event.phase) == (FIRST, Phase.STARTED):
            self._timer = threading.Timer(self._patience, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Tell what was kept, and whatever comes now at once."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            kept, self._kept = self._kept, []
            for event in kept:
                self._listener(event)
