"""Settings of the machine that several migrations need at once: made by the first, taken back after the last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Shared:
    """A setting, by what makes it and what takes it back."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def use(self) -> Iterator[None]:
        """Have it made as long as the block runs; raises what `begin` raises."""
        with self._lock:
            if self._users == 0:
                self._begin()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._end()
