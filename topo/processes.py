"""Processes that may be nobody's children any more: found again after their parent was killed.

A process is named by its PID and start time (field 22 of /proc/PID/stat), which no later process can share.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from migration import tree


def start_time(pid: int) -> str:
    """Return a process's start time in clock ticks since boot, or "" if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return fields[19] if tree.is_running(pid) else ""


@dataclass(frozen=True)
class ProcessName:
    """A process that ran once; written as PID-START."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessName:
        """Name a process that runs now."""
        return cls(pid, start_time(pid))

    @classmethod
    def parse(cls, text: str) -> ProcessName:
        """Read what str() wrote; what is no name is that of a process that is gone."""
        pid, _, started = text.partition("-")
        return cls(int(pid), started) if pid.isdigit() else cls(0, "")

    @property
    def is_alive(self) -> bool:
        """Say whether this very process runs."""
        return self.started != "" and start_time(self.pid) == self.started

    def __str__(self) -> str:
        return f"{self.pid}-{self.started}"


class AdoptedProcess:
    """A running process that somebody else has started, with the part of Popen's interface that is used here."""

    def __init__(self, name: ProcessName) -> None:
        """Take hold of it; raises ProcessLookupError if it has ended."""
        self.pid = name.pid
        self._fd = os.pidfd_open(name.pid)
        self.returncode: int | None = None
        if not name.is_alive:
            os.close(self._fd)
            raise ProcessLookupError(f"process {name} has ended")

    def poll(self) -> int | None:
        """Return None while it runs, then -1: how it ended is known to its parent only."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises subprocess.TimeoutExpired."""
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return status

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            try:
                signal.pidfd_send_signal(self._fd, number)
            except ProcessLookupError:
                return

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            if not poller.poll(None if timeout is None else timeout * 1000):
                return None
            os.close(self._fd)
            self.returncode = -1
        return self.returncode
