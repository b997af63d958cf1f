"""Image files over a stream socket, in batches: a table of names and sizes, then the bytes of all, in its order.

The table's length comes first; its highest bit says that more batches follow. A file that comes again replaces itself.

The receiver runs in a thread of its own, waiting from before the freeze; the batch of a small program is one write.
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

_LENGTH = struct.Struct(">I")
_MORE = 1 << 31
MAX_TABLE = 1 << 20
CHUNK = 1 << 20
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
    sizes = {
        name: len(what) if isinstance(what, bytes) else what.stat().st_size for name, what in files.items()
    }
    try:
        parts = [encode_table(sizes, more)]
        for what in files.values():
            if isinstance(what, bytes):
                parts.append(what)
            elif what.stat().st_size <= CHUNK:
                parts.append(what.read_bytes())
            else:
                end.sendall(b"".join(parts))
                parts.clear()
                with what.open("rb") as file:
                    end.sendfile(file)
        end.sendall(b"".join(parts))
    except OSError as ex:
        raise WireError(f"the image files could not be sent: {ex}") from ex
    return sum(sizes.values())


class Receiver:
    """Receives all batches into a folder; files named in `keep` stay in memory, in `kept`."""

    def __init__(self, end: socket.socket, folder: Path, keep: frozenset[str] = frozenset()) -> None:
        self._end, self._folder, self._keep = end, folder, keep
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
        data = bytearray(size)
        view = memoryview(data)
        while view:
            view = view[self._some(view) :]
        return bytes(data)

    def _store(self, name: str, size: int) -> None:
        mode = "wb" if name in self._stored else "xb"
        self._stored.add(name)
        with open(self._folder / name, mode, buffering=0, opener=_private) as file:
            buffer = memoryview(bytearray(min(size, CHUNK)))
            while size:
                count = self._some(buffer[:size])
                file.write(buffer[:count])
                size -= count

    def _some(self, view: memoryview) -> int:
        count = self._end.recv_into(view)
        if count == 0:
            raise WireError("the connection ended in the middle")
        return count


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
