"""A thread that does something whenever it is due: lists of digests go out, silent entries are told of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class DueThread:
    """Looks when it is next due, waits until then, and does it; it is started when it is first needed."""

    def __init__(self, name: str, next_due: Callable[[], int | None], act: Callable[[], None]) -> None:
        """`next_due` says when, as time.monotonic_ns() tells it (None: not before `wake`); `act` does what is due."""
        self._name, self._next_due, self._act = name, next_due, act
        self._wakeup = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_over = False

    def start(self) -> None:
        """Run, if it does not yet, and look again when it is next due."""
        with self._lock:
            if self._thread is None and not self._is_over:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Look again when it is next due, if it runs."""
        self._wakeup.set()

    def close(self) -> None:
        """End it, and wait until it has ended."""
        with self._lock:
            self._is_over = True
        self.wake()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over:
            self._wakeup.clear()
            due = self._next_due()
            self._wakeup.wait(None if due is None else max(0.0, (due - time.monotonic_ns()) / 1e9))
            self._act()
