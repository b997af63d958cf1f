"""Image files over a stream socket, in batches: a table of names and sizes, then the bytes of all, in its order.

The table's length comes first; its highest bit says that more batches follow. A file that comes again replaces itself.

The receiver runs in a thread of its own, waiting from before the freeze; the batch of a small program is one write,
and one read. Files are handled by their descriptors: with every call that may block a thread offers the interpreter
to the others, and Python's file objects make five for each of ours.
A receiver takes names and sizes from the other side, so it accepts plain names only and no more than was announced.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path

from ..errors import MigrationError
from ..namespaces import urgency
from ..processors import assisting

_LENGTH = struct.Struct(">I")
_MORE = 1 << 31
MAX_TABLE = 1 << 20
CHUNK = 1 << 20
_AHEAD = 64 << 10
# What one file or buffer of a batch is sent from.
Content = bytes | Path


class WireError(MigrationError):
    """The batch did not arrive as it was sent."""


def encode_table(sizes: Mapping[str, int], more: bool = False) -> bytes:
    """Write the table that opens a batch; `more` batches may follow it."""
    table = json.dumps(list(sizes.items())).encode()
    return _LENGTH.pack(len(table) | (_MORE if more else 0)) + table


def decode_table(table: bytes) -> dict[str, int]:
    """Read a table without its length; raises WireError for anything but plain, distinct names and sizes."""
    try:
        entries = json.loads(table)
        sizes = {str(name): int(size) for name, size in entries}
    except (ValueError, TypeError) as ex:
        raise WireError(f"the table of image files cannot be read: {ex}") from ex
    for name, size in sizes.items():
        if not name or "/" in name or name in (".", "..") or "\0" in name or size < 0:
            raise WireError(f"the table of image files has a wrong entry: {name!r}, {size} bytes")
    if len(sizes) != len(entries):
        raise WireError("the table of image files has a name twice")
    return sizes


def send(end: socket.socket, files: Mapping[str, Content], more: bool = False) -> int:
    """Send a batch, the last one unless there is `more`; return its bytes."""
    try:
        loaded = {name: what if isinstance(what, bytes) else _load(what) for name, what in files.items()}
        sizes = {
            name: len(what) if isinstance(what, bytes) else what.stat().st_size
            for name, what in loaded.items()
        }
        parts = [encode_table(sizes, more)]
        for what in loaded.values():
            if isinstance(what, bytes):
                parts.append(what)
                continue
            end.sendall(b"".join(parts))
            parts.clear()
            with what.open("rb") as file:
                end.sendfile(file)
        end.sendall(b"".join(parts))
    except OSError as ex:
        raise WireError(f"the image files could not be sent: {ex}") from ex
    return sum(sizes.values())


def _load(path: Path) -> Content:
    """Read a small file; a large one stays where it is."""
    _, content = read_small(path, CHUNK)
    return path if content is None else content


def read_small(path: Path, limit: int) -> tuple[os.stat_result, bytes | None]:
    """Return a file's state, and its content unless that has more bytes than `limit`; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        state = os.fstat(fd)
        return state, os.read(fd, state.st_size) if state.st_size <= limit else None
    finally:
        os.close(fd)


class Receiver:
    """Receives all batches into a folder; files named in `keep` stay in memory, in `kept`."""

    def __init__(self, end: socket.socket, folder: Path, keep: frozenset[str] = frozenset()) -> None:
        self._end, self._folder, self._keep = end, str(folder), keep
        self._ahead = b""
        """What has been received and not been taken."""
        self.kept: dict[str, bytes] = {}
        self._stored: set[str] = set()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="image-files", daemon=True)
        self._thread.start()

    def wait(self, timeout: float) -> None:
        """Return when the last batch is there; raises WireError."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise WireError(f"the image files did not arrive within {timeout:g} s")
        if self._error is not None:
            raise WireError(f"the image files did not arrive: {self._error}") from self._error

    def close(self) -> None:
        """Stop waiting, whatever is missing."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        try:
            with assisting(), urgency():
                while self._batch():
                    pass
        except (OSError, MigrationError) as ex:
            self._error = ex

    def _batch(self) -> bool:
        """Receive a batch; say whether more follow."""
        (head,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if (length := head & ~_MORE) > MAX_TABLE:
            raise WireError(f"a table of {length} bytes")
        for name, size in decode_table(self._exactly(length)).items():
            if name in self._keep:
                self.kept[name] = self._exactly(size)
            else:
                self._store(name, size)
        return bool(head & _MORE)

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self._some(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _store(self, name: str, size: int) -> None:
        again = os.O_TRUNC if name in self._stored else os.O_EXCL
        self._stored.add(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | again
        fd = os.open(f"{self._folder}/{name}", flags, 0o600)
        try:
            while size:
                part = memoryview(self._some(size))
                size -= len(part)
                while part:
                    part = part[os.write(fd, part) :]
        finally:
            os.close(fd)

    def _some(self, size: int) -> bytes:
        """Take at most so many bytes, and at least one; what comes with them waits for the next."""
        if not self._ahead:
            self._ahead = self._end.recv(max(_AHEAD, min(size, CHUNK)))
            if not self._ahead:
                raise WireError("the connection ended in the middle")
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken
