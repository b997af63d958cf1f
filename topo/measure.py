"""The measuring client of demos and benchmarks: starts it, asks it about each migration, and takes its final word.

All figures are the client's own (its monotonic clock, its kernel's counters); this module only starts
`apps/tcp_echo.py client` in a host and attributes what it says to migrations, by time.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from apps.echo.client import gap_between
from migration.slowness import scaled
from topo import paths
from topo.errors import TestbedError
from topo.waiting import wait_until

TCP_ECHO = paths.CHECKOUT / "apps" / "tcp_echo.py"
START_TIMEOUT = 15.0  # seconds until the first reply
SETTLE = 0.3  # seconds after a migration in which a gap or a retransmit may still belong to it
STOP_TIMEOUT = scaled(90.0)
COUNTERS = ("lost_bytes", "duplicated_bytes", "resets", "retransmits", "loss_probes")


@dataclass(frozen=True)
class Load:
    """What the client sends: `rate` requests a second over all `connections`, or as much as it can (`bulk`)."""

    connections: int = 1
    rate: float = 1000.0
    bulk: bool = False


class MeasuringClient:
    """An echo client in a host; a context manager that ends it."""

    def __init__(self, host_pid: int, target: str, load: Load, folder: Path) -> None:
        """Take the host by a process in its namespaces, and the server as HOST:PORT."""
        self.load = load
        self._status_file = folder / "client.status"
        self._result_file = folder / "client.json"
        self._errors = folder / "client.err"
        # fmt: off
        self._command = [
            "nsenter", "--target", str(host_pid), "--net", "--",
            sys.executable, str(TCP_ECHO), "client", "--connect", target,
            "--connections", str(load.connections), "--json", str(self._result_file), "--wait", "10",
            *(["--bulk"] if load.bulk else ["--rate", str(load.rate), "--status", str(self._status_file)]),
        ]
        # fmt: on
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[str, Any] = {}
        self.result: dict[str, Any] | None = None

    def __enter__(self) -> MeasuringClient:
        for path in (self._status_file, self._result_file):
            path.unlink(missing_ok=True)
        with self._errors.open("wb") as errors:
            self._process = _start(self._command, errors)
        try:
            self._wait_for_traffic()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            self._kill()
        elif self.result is None:
            self.stop()

    def measure(self, started: float, ended: float) -> dict[str, Any] | None:
        """Return what the client noticed between two times (CLOCK_MONOTONIC); None in bulk mode, until `stop`."""
        if self.load.bulk:
            return None
        wait_until(lambda: self._status().get("time", 0.0) > ended + SETTLE, 5.0)
        status = self._status()
        client = client_figures(status, self._before, gap_between(status, started, ended + SETTLE))
        self._before = status
        return client

    def longest_gap(self, started: float, ended: float) -> tuple[float, float] | None:
        """Return when the longest gap that touches a time window began and ended (CLOCK_MONOTONIC)."""
        wait_until(lambda: self._status().get("time", 0.0) > ended + SETTLE, 5.0)
        gaps = [g for g in self._status()["gaps"] if g["end"] >= started and g["start"] <= ended + SETTLE]
        longest = max(gaps, key=lambda gap: gap["ms"], default=None)
        return (longest["start"], longest["end"]) if longest else None

    def wait_for_reply(self, timeout: float) -> None:
        """Return when the client has had replies that it had not had yet; raises TestbedError if none come."""
        before = self._status().get("replies", 0)
        if not wait_until(lambda: self._status().get("replies", 0) > before + 10, timeout):
            raise TestbedError(f"the measuring client has had no reply for {timeout:g} s")

    def stop(self) -> dict[str, Any]:
        """End the client and return its result; raises TestbedError when there is none."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._kill()
        try:
            self.result = json.loads(self._result_file.read_text())
        except (OSError, ValueError) as ex:
            raise TestbedError(f"the measuring client left no result: {self._last_words()}") from ex
        return self.result

    def _wait_for_traffic(self) -> None:
        """Wait for the first replies (bulk: a moment of streaming)."""

        def flows() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise TestbedError(f"the measuring client ended at once: {self._last_words()}")
            if self.load.bulk:
                return time.monotonic() > started + 0.5
            replies = self._status().get("replies", 0)
            return bool(replies >= max(10, self.load.connections))

        started = time.monotonic()
        if not wait_until(flows, START_TIMEOUT):
            raise TestbedError(f"the measuring client got no replies within {scaled(START_TIMEOUT):.0f} s")
        self._before = self._status()

    def _status(self) -> dict[str, Any]:
        return read_status(self._status_file)

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _start(command: list[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C at the terminal is for the main program, which then ends this one.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )


def read_status(file: Path) -> dict[str, Any]:
    """Return what a measuring program has last said of itself, {} if it has not yet."""
    try:
        status: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return status


def client_figures(now: dict[str, Any], before: dict[str, Any], gap_ms: float | None) -> dict[str, Any]:
    """Return design.md's `client` object: what grew between two statuses, and the longest gap."""
    grown = {name: now.get(name, 0) - before.get(name, 0) for name in ("requests", *COUNTERS)}
    return {"gap_ms": gap_ms, **grown}


def bulk_client(result: dict[str, Any], migrations: int) -> dict[str, Any]:
    """Return the `client` object of a bulk run; it has no gaps, and its counters are those of the whole run."""
    wrong = 0 if result["hashes_equal"] else None
    return {
        "gap_ms": None,
        "requests": None,
        "lost_bytes": wrong,
        "duplicated_bytes": wrong,
        "resets": result["resets"],
        "retransmits": result["retransmits"],
        "loss_probes": result["loss_probes"],
        "hashes_equal": result["hashes_equal"],
        "bytes": result["bytes_sent"] + result["bytes_received"],
        "whole_run_of": migrations,
    }
