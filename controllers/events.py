"""What happens in the controller, as a stream that any number of readers follow.

Every event has a number, so that a reader who comes back can ask for what it missed (as far as the history goes).
A reader that does not keep up loses the oldest of what it has not read, never slows anybody down.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

_HISTORY = 512
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `time` is seconds since the epoch."""

    id: int
    type: str
    time: float
    data: Mapping[str, Any]


class EventBus:
    """Takes events from any thread; hands them to readers on one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ids = itertools.count(1)
        self._history: deque[Event] = deque(maxlen=_HISTORY)
        self._readers: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    def publish(self, type: str, data: Mapping[str, Any]) -> None:
        """Tell everybody; may be called from any thread."""
        now, copy = time.time(), dict(data)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._number, type, now, copy)

    def _number(self, type: str, now: float, data: Mapping[str, Any]) -> None:
        """Number an event where events are handed out, so that nobody reads 6 before 5 and asks on from 6."""
        event = Event(next(self._ids), type, now, data)
        self._history.append(event)
        self._deliver(event)

    def _deliver(self, event: Event | None) -> None:
        for queue in self._readers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    @property
    def readers(self) -> int:
        """Return how many follow."""
        return len(self._readers)

    def close(self) -> None:
        """End every reader's stream; call it on the loop."""
        self._closed = True
        self._deliver(None)

    async def follow(self, after: int | None = None) -> AsyncIterator[Event]:
        """Yield the events after a number (None: only what is still to come) until the bus is closed."""
        queue = asyncio.Queue[Event | None](_BACKLOG)
        if after is not None:
            for event in self._history:
                if event.id > after:
                    queue.put_nowait(event)
        self._readers.add(queue)
        try:
            while not self._closed or not queue.empty():
                got = await queue.get()
                if got is None:
                    return
                yield got
        finally:
            self._readers.discard(queue)
