"""Driving redis_load.c: compile it, run it in a host, set marks, and take its verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topo.errors import TestbedError

SOURCE = Path(__file__).with_name("redis_load.c")
ANSWER_TIMEOUT = 90.0  # seconds; while Redis is frozen marks are answered all the same


@dataclass(frozen=True)
class Writes:
    """What is written: `rate` a second over all `connections`."""

    connections: int
    rate: float
    command: str = "incr"
    keys: int = 1000
    size: int = 64


def compile_load(folder: Path) -> Path:
    """Compile the generator into a folder; return the program."""
    compiler = shutil.which("cc") or shutil.which("clang")
    if compiler is None:
        raise TestbedError("there is no C compiler (cc or clang): type make setup")
    program = folder / "redis_load"
    command = [compiler, "-O2", "-Wall", "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise TestbedError(f"{SOURCE.name} cannot be compiled: {done.stderr.strip()}")
    return program


class RedisLoad:
    """A running load; a context manager that ends it."""

    def __init__(
        self, program: Path, target: str, writes: Writes, prefix: str, enter: Sequence[str] = ()
    ) -> None:
        """Take the compiled program, HOST:PORT, and a command (nsenter …) that runs it in a host."""
        host, port = target.split(":")
        # fmt: off
        self._command = [*enter, str(program), host, port, str(writes.connections), str(writes.rate), writes.command,
                         prefix, str(writes.keys), str(writes.size)]
        # fmt: on
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def __enter__(self) -> RedisLoad:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        if not self._is_stopped:
            self._process.kill()
        self._process.communicate()

    def mark(self) -> dict[str, Any]:
        """Return what was seen since the last mark."""
        return self._order("mark")

    def stop(self) -> dict[str, Any]:
        """End the load; return what the comparison of all keys with the acknowledged writes found."""
        verdict = self._order("stop")
        self._is_stopped = True
        return verdict

    def _order(self, word: str) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        watchdog = threading.Timer(ANSWER_TIMEOUT, process.kill)
        watchdog.start()
        try:
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            process.kill()
            _, said = process.communicate()
            raise TestbedError(f"the load on Redis ended: {said.strip() or 'it said nothing'}")
        answer: dict[str, Any] = json.loads(line)
        return answer
