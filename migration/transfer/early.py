"""Image files that go ahead while the dump still writes others.

When the dump is complete, the program stands still for whatever is left to be sent. Most files are complete long
before, so each is sent as soon as CRIU has closed it. What changes after that, or has to be rewritten, is sent again
with the rest: the last one counts.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ..images import FILES_IMAGE, INVENTORY_IMAGE, is_needed
from . import wire
from .closings import Closings

# Bytes that never have to wait for the other end, whose network may be stalled: they fit into the socket's buffer.
BUDGET = 128 << 10
BUFFER = 192 << 10
_LATE = (FILES_IMAGE, INVENTORY_IMAGE)


class Early:
    """Sends the image files of one folder as they are closed; a descriptor that can be polled."""

    def __init__(self, images: Path, end: socket.socket) -> None:
        """Begin to watch; raises OSError."""
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._images, self._end = images, end
        self._closings = Closings(images)
        self._left = BUDGET
        self._sent: dict[str, tuple[int, int]] = {}

    def fileno(self) -> int:
        """Return what is readable when there is something to do."""
        return self._closings.fileno()

    def go_on(self) -> None:
        """Send what has been closed since the last time; raises WireError."""
        batch: dict[str, wire.Content] = {}
        for name in self._closings.take():
            if not is_needed(name) or name in _LATE:
                continue
            try:
                stat, content = wire.read_small(self._images / name, self._left)
            except FileNotFoundError:  # CRIU takes back files that turn out to be empty
                continue
            if content is None:
                continue
            batch[name] = content
            self._left -= stat.st_size
            self._sent[name] = _state(stat)
        if batch:
            wire.send(self._end, batch, more=True)

    def rest(self) -> tuple[dict[str, wire.Content], int]:
        """Return the files that are still to be sent, and how many bytes need not be."""
        rest: dict[str, wire.Content] = {}
        ahead = 0
        with os.scandir(self._images) as entries:
            for entry in entries:
                if not is_needed(entry.name):
                    continue
                state = _state(entry.stat())
                if self._sent.get(entry.name) == state:
                    ahead += state[0]
                else:
                    rest[entry.name] = Path(entry.path)
        return rest, ahead

    def close(self) -> None:
        """End watching."""
        self._closings.close()


def _state(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns
