"""One controller's stream, seen from the switch: a queue of messages to it, and how it ends."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator

from finsy.proto import p4r

from dataplane.switch.p4runtime.errors import RequestRefused

log = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 256 << 20
"""Packets and digests to a controller that does not read are dropped beyond this."""


class Controller:
    """The sending side of a stream; any thread may send, one thread iterates `messages`."""

    def __init__(self, peer: str) -> None:
        """Start with an empty queue; `peer` is for the log."""
        self.peer = peer
        self.dropped = 0
        self.gone = False
        """Set by the device when it forgets this controller; a bid that was still under way comes too late."""
        self._queue: queue.SimpleQueue[p4r.StreamMessageResponse | RequestRefused | None] = (
            queue.SimpleQueue()
        )
        self._queued_bytes = 0
        self._lock = threading.Lock()

    def send(self, message: p4r.StreamMessageResponse) -> None:
        """Queue a message that must arrive."""
        self._queue.put(message)

    def send_if_room(self, message: p4r.StreamMessageResponse) -> None:
        """Queue a packet or a digest list, unless the controller is far behind."""
        size = message_size(message)
        with self._lock:
            if self._queued_bytes + size > MAX_QUEUED_BYTES:
                self.dropped += 1
                if self.dropped == 1:
                    log.warning("controller %s does not read: packets to it are dropped", self.peer)
                return
            self._queued_bytes += size
        self._queue.put(message)

    def end(self, reason: RequestRefused | None = None) -> None:
        """End the stream after what is queued."""
        self._queue.put(reason)

    def messages(self) -> Iterator[p4r.StreamMessageResponse]:
        """Yield messages until the stream ends; raises RequestRefused if that is the reason."""
        while True:
            message = self._queue.get()
            if message is None:
                return
            if isinstance(message, RequestRefused):
                raise message
            if message.HasField("packet") or message.HasField("digest"):
                with self._lock:
                    self._queued_bytes -= message_size(message)
            yield message


def message_size(message: p4r.StreamMessageResponse) -> int:
    """Return what a packet or a digest list counts for in the queue."""
    return len(message.packet.payload) + 64 if message.HasField("packet") else 64 * len(message.digest.data)
