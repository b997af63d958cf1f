"""What a container has printed, on its way to its twin: `docker logs` and `podman logs` go on where they were.

The engine keeps a file of lines for each container. What the original has printed by the time that its twin is started
is put into the twin's file before the engine opens it. For what it prints from then on until it stands still:

  - Podman's conmon appends to its file, so we may as well;
  - Docker since 25 goes by its own count of what it has written: what others append is not shown, and is overwritten.
    It gets those lines where it gets all others, by the stream of the copy, before the copy has run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path

from .driver import Contained

_STREAMS = {"stdout": 1, "stderr": 2}
_TIMEOUT = 1.0  # seconds for an engine that does not read


class Log:
    """The log of one container, twice."""

    def __init__(self, original: Contained, twin: Contained) -> None:
        """Let the twin's file begin with what the original's has; the engine has not opened it yet."""
        self._original, self._twin = original.log, twin.log
        self._begun = b""
        if self._original is not None and self._twin is not None:
            self._begun = _whole_lines(self._original)
            self._twin.write_bytes(self._begun)
            self._twin.chmod(self._original.stat().st_mode & 0o777 if self._begun else 0o640)

    @property
    def size(self) -> int:
        """Return how many bytes there were at the beginning."""
        return len(self._begun)

    def append(self) -> None:
        """Add to the twin's file what the original has printed since."""
        if self._twin is not None and (rest := self._rest()):
            with self._twin.open("ab") as file:
                file.write(rest)

    def say(self, copy: int, streams: Sequence[str]) -> str | None:
        """Print what the original has printed since by the streams of its copy, a process that stands still.

        `streams` are those of the original, as runc names them. Returns what could not be done.
        """
        for line in self._rest().splitlines():
            said = json.loads(line)
            number = _STREAMS[said["stream"]]
            # Only a pipe is the engine's own: what leads elsewhere has never led to the log.
            if not streams[number].startswith("pipe:"):
                return "lines that it printed while it got ready to move are lost from its log"
            try:
                _write(Path(f"/proc/{copy}/fd/{number}"), said["log"].encode())
            except OSError as ex:
                return (
                    f"lines that it printed while it got ready to move are lost from its log ({ex.strerror})"
                )
        return None

    def _rest(self) -> bytes:
        return b"" if self._original is None else _whole_lines(self._original)[len(self._begun) :]


def _whole_lines(path: Path) -> bytes:
    """Read a log; the engine may be writing its last line."""
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes()
        return content[: content.rfind(b"\n") + 1]
    return b""


def _write(pipe: Path, content: bytes) -> None:
    fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    poller, deadline = select.poll(), time.monotonic() + _TIMEOUT
    poller.register(fd, select.POLLOUT)
    try:
        while content:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "its engine does not read")
            with contextlib.suppress(BlockingIOError):  # there is room, but not for all of it
                content = content[os.write(fd, content[:4096]) :]
    finally:
        os.close(fd)
