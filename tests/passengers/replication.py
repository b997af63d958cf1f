"""Redis with a replica: one writes, the other must have it, and must never have to begin again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .passenger import Client, Wrong, as_user, expect, give

PORT, REPLICA_PORT = 6379, 6380
_LATE = 60.0  # seconds in which what was written has come to the replica


def prepare(folder: Path) -> Sequence[str]:
    """Return the command of the one that is written to."""
    give(folder, "redis")
    return _command(PORT, folder)


def prepare_replica(folder: Path, of: Sequence[str]) -> Sequence[str]:
    """Return the command of the other one, with what makes it one."""
    return _command(REPLICA_PORT, folder, *of)


def _command(port: int, folder: Path, *more: str) -> Sequence[str]:
    options = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", str(folder)]
    return as_user("redis", "redis-server", "--port", str(port), *options, *more)


class Server:
    """A connection to one of the two."""

    def __init__(self, client: Client) -> None:
        self._sock = client.connect()
        self._file = self._sock.makefile("rwb")

    def ask(self, *words: str) -> bytes:
        """Return an answer of one line, or of one value."""
        self._file.write(b"*%d\r\n" % len(words))
        self._file.write(b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words))
        self._file.flush()
        line = self._file.readline()
        if line.startswith(b"$") and (size := int(line[1:])) >= 0:
            return self._file.read(size + 2)[:-2]
        return line.rstrip(b"\r\n")

    def info(self) -> Mapping[str, str]:
        """Return what it knows of the replication and has counted."""
        lines = (self.ask("INFO", "replication") + b"\r\n" + self.ask("INFO", "stats")).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


def is_in_step(first: Client, replica: Client) -> bool:
    """Return True if the replica has everything; asks once."""
    if not (first.can_connect() and replica.can_connect()):
        return False
    one, other = Server(first), Server(replica)
    try:
        return other.info().get("master_link_status") == "up" and one.info().get("connected_slaves") == "1"
    finally:
        one.close()
        other.close()


def counting(first: Client, replica: Client) -> None:
    """Write, and see it arrive; at the end nothing was sent twice, and the link has never been broken."""
    one, other = Server(first), Server(replica)
    before = one.info()
    number = 0
    while first.goes_on():
        number += 1
        expect(one.ask("INCR", "counted"), b":%d" % number, "INCR")
        end = time.monotonic() + _LATE
        while (seen := other.ask("GET", "counted")) != b"%d" % number:
            if time.monotonic() > end or not (seen == b"$-1" or int(seen) == number - 1):
                raise Wrong(f"the replica has {seen!r} when {number} was written")
            time.sleep(0.005)
        replica.rounds += 1
    expect(one.ask("WAIT", "1", "60000"), b":1", "WAIT")
    now = one.info()
    for name in ("sync_full", "sync_partial_ok", "sync_partial_err"):
        expect(now[name], before[name], name)
    offsets = now["master_repl_offset"], other.info()["master_repl_offset"]
    if abs(int(offsets[0]) - int(offsets[1])) > 10_000:
        raise Wrong(f"the replica is at {offsets[1]} of {offsets[0]}")
    one.close()
    other.close()
