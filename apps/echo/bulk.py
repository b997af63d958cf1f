"""Full speed in both directions over one connection, hashed at both ends. Both sides speak the same protocol:

    frames of a 32-bit length and that many bytes; a length of 0 ends the stream;
    SHA-256 of all that the sender has sent;
    SHA-256 of all that it has received, once the other stream has ended.

The client decides when to end; the server ends when the client has. Each side compares both digests.
"""

from __future__ import annotations

import hashlib
import selectors
import struct
from _socket import socket

CHUNK = 64 * 1024
PENDING = 256 * 1024
DIGEST = hashlib.sha256().digest_size
_LENGTH = struct.Struct(">I")
_POSITION = struct.Struct(">Q")
_PATTERN = hashlib.shake_256(b"p4ferry bulk").digest(CHUNK - _POSITION.size)


class BulkPeer:
    """One end of a bulk connection; `is_equal` is None until both streams have been compared."""

    def __init__(self, sock: socket, *, is_client: bool = False) -> None:
        self._socket = sock
        self._is_client = is_client
        self._sent, self._received = hashlib.sha256(), hashlib.sha256()
        self.bytes_sent = self.bytes_received = 0
        self._out = bytearray()
        self._in = bytearray()
        self._ends = False  # no more frames are made
        self._digest_is_out = self._verdict_is_out = False
        self._peer_has_ended = False
        self._peer_digests: bytes | None = None
        self.is_equal: bool | None = None

    def end(self) -> None:
        """Send no more than what is under way."""
        self._ends = True

    def ready(self, mask: int) -> int:
        """Read and write as far as the socket allows; return the events to wait for."""
        if mask & selectors.EVENT_READ:
            self._read()
        self._fill()
        if self._out:
            try:
                sent = self._socket.send(self._out)
                del self._out[:sent]
            except BlockingIOError:
                pass
        if self.is_equal is not None and not self._out:
            return selectors.EVENT_READ if not self._is_client else 0
        wants_to_write = bool(self._out) or not self._ends
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if wants_to_write else 0)

    def _fill(self) -> None:
        while not self._ends and len(self._out) < PENDING:
            payload = _POSITION.pack(self.bytes_sent) + _PATTERN
            self._sent.update(payload)
            self.bytes_sent += len(payload)
            self._out += _LENGTH.pack(len(payload)) + payload
        if self._ends and not self._digest_is_out:
            self._out += _LENGTH.pack(0) + self._sent.digest()
            self._digest_is_out = True
        if self._peer_has_ended and self._digest_is_out and not self._verdict_is_out:
            self._out += self._received.digest()
            self._verdict_is_out = True

    def _read(self) -> None:
        data = self._socket.recv(4 * CHUNK)
        if not data:
            if self.is_equal is None:
                raise ConnectionError("the other side closed in the middle of the stream")
            raise ConnectionError("closed")
        self._in += data
        while self._peer_digests is None and self._take():
            pass

    def _take(self) -> bool:
        """Take one frame, or the digests after the last one, from what has been received."""
        if self._peer_has_ended:
            if len(self._in) < 2 * DIGEST:
                return False
            self._peer_digests = bytes(self._in[: 2 * DIGEST])
            theirs = self._received.digest() + self._sent.digest()
            self.is_equal = self._peer_digests == theirs
            return False
        if len(self._in) < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._in)
        if length > 16 * CHUNK:
            raise ValueError(
                f"a frame of {length} bytes: the stream is damaged, or the other side is no bulk peer"
            )
        if len(self._in) < _LENGTH.size + length:
            return False
        if length == 0:
            self._peer_has_ended = True
            self._ends = True
        payload = memoryview(self._in)[_LENGTH.size : _LENGTH.size + length]
        self._received.update(payload)
        payload.release()
        self.bytes_received += length
        del self._in[: _LENGTH.size + length]
        return True
