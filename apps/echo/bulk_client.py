"""The client side of the bulk mode: N connections at full speed, then the verdict of both ends."""

from __future__ import annotations

import selectors
import time
from typing import Any

from apps.echo import kernel
from apps.echo.bulk import BulkPeer
from apps.echo.client import connect

DRAIN = 60.0


class BulkClient:
    """Streams in both directions until stopped, then compares the hashes."""

    def __init__(self, connections: int, duration: float | None) -> None:
        self._count = connections
        self._duration = duration
        self._is_stopped = False
        self._resets = 0
        self._errors: list[str] = []

    def stop(self) -> None:
        """End the streams; `run` returns when both ends have compared them."""
        self._is_stopped = True

    def run(self, host: str, port: int, wait: float) -> dict[str, Any]:
        """Stream, end, compare; return the result."""
        counters = kernel.CounterWatch()
        socks = [connect(host, port, wait) for _ in range(self._count)]
        peers = {}
        with selectors.DefaultSelector() as selector:
            for sock in socks:
                sock.setblocking(False)
                peers[sock.fileno()] = BulkPeer(sock, is_client=True)
                selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            started = time.monotonic()
            self._stream(selector, peers, started)
        seconds = time.monotonic() - started
        sent = sum(peer.bytes_sent for peer in peers.values())
        received = sum(peer.bytes_received for peer in peers.values())
        grown = counters.sample()
        retransmits = sum(kernel.total_retransmits(sock) for sock in socks)
        for sock in socks:
            sock.close()
        return {
            "mode": "bulk",
            "seconds": round(seconds, 3),
            "connections": self._count,
            "bytes_sent": sent,
            "bytes_received": received,
            "megabits_per_second": round((sent + received) * 8 / seconds / 1e6, 1),
            "hashes_equal": all(peer.is_equal for peer in peers.values()),
            "resets": self._resets,
            "errors": sorted(set(self._errors)),
            "reconnects": 0,
            "retransmits": retransmits,
            "loss_probes": grown["TcpExt.TCPLossProbes"],
            "namespace": grown,
        }

    def _stream(self, selector: selectors.BaseSelector, peers: dict[int, BulkPeer], started: float) -> None:
        """Serve the sockets until every stream has ended and been compared."""
        ends_at = None if self._duration is None else started + self._duration
        give_up = None
        while selector.get_map():
            now = time.monotonic()
            if give_up is None and (self._is_stopped or (ends_at is not None and now >= ends_at)):
                give_up = now + DRAIN
                for key in list(selector.get_map().values()):
                    peers[key.fd].end()
                    selector.modify(key.fileobj, key.events | selectors.EVENT_WRITE)
            if give_up is not None and now > give_up:
                self._errors.append("the other side did not end its stream")
                return
            for key, mask in selector.select(0.1):
                events = self._ready(peers[key.fd], mask)
                if events == 0:
                    selector.unregister(key.fileobj)
                elif events != key.events:
                    selector.modify(key.fileobj, events)

    def _ready(self, peer: BulkPeer, mask: int) -> int:
        try:
            return peer.ready(mask)
        except BlockingIOError:
            return selectors.EVENT_READ | selectors.EVENT_WRITE
        except (OSError, ValueError) as ex:
            if isinstance(ex, ConnectionResetError):
                self._resets += 1
            self._errors.append(str(ex))
            return 0
