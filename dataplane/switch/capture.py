"""Capture files, in-process: packet sockets whose packets one thread writes to pcap files.

For a switch as BMv2 writes them: INTF_in.pcap and INTF_out.pcap for every port. A packet socket sees what comes in
before the switch's program, and what goes out after it. GSO packets are in the file as the kernel carries them, larger
than the MTU; a VLAN tag that the kernel keeps beside the packet is not in the file. When the thread cannot keep up, or
a file cannot be written or is full, the capture loses packets, not the traffic.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

LOG = logging.getLogger(__name__)

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_SO_TIMESTAMPNS = 35
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_MAX_FRAME = 1 << 18
_BUFFER = 16 << 20
# Nanosecond magic, version 2.4, no time zone, no accuracy, snap length, Ethernet.
_FILE_HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, _MAX_FRAME, 1)
_RECORD = struct.Struct("=IIII")
_TIMESPEC = struct.Struct("@qq")
_STATISTICS = struct.Struct("=II")


class PcapFile:
    """A capture file with nanoseconds; takes no more than `limit` bytes, if there is one."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        """Begin a file; raises OSError."""
        self._path = path
        self._left = limit
        self._file = path.open("wb")
        self._file.write(_FILE_HEADER)
        self._file.flush()
        self._whole = True

    def write(self, seconds: int, nanoseconds: int, frame: bytes) -> None:
        """Add a packet, unless the file has ended early."""
        if not self._whole:
            return
        if self._left is not None:
            self._left -= _RECORD.size + len(frame)
            if self._left < 0:
                self._end("it has reached its limit")
                return
        try:
            self._file.write(_RECORD.pack(seconds, nanoseconds, len(frame), len(frame)) + frame)
        except OSError as ex:
            self._end(str(ex.strerror))

    def flush(self) -> None:
        """Hand everything to the file system."""
        try:
            self._file.flush()
        except OSError as ex:
            self._end(str(ex.strerror))

    def _end(self, reason: str) -> None:
        if self._whole:
            LOG.warning("%s ends early: %s", self._path, reason)
        self._whole = False

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what could not be written before
            self._file.close()


class Tap:
    """A packet socket on an interface, and the files of the two directions (which may be one)."""

    def __init__(self, packets: socket.socket, incoming: PcapFile, outgoing: PcapFile) -> None:
        self.socket = packets
        self._files = (incoming, outgoing)

    def read(self) -> None:
        """Write what has arrived to the files."""
        while True:
            try:
                frame, ancillary, _, address = self.socket.recvmsg(_MAX_FRAME, 64)
            except OSError:  # nothing more, or the interface has gone
                break
            seconds, nanoseconds = (
                _TIMESPEC.unpack(ancillary[0][2][: _TIMESPEC.size]) if ancillary else (0, 0)
            )
            self._files[address[2] == _PACKET_OUTGOING].write(seconds, nanoseconds, frame)
        for file in self._files:
            file.flush()

    def lost(self) -> int:
        """Return how many packets found the socket's buffer full since this was last asked."""
        statistics = self.socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        return int(_STATISTICS.unpack(statistics)[1])

    def close(self) -> None:
        """Close everything."""
        self.socket.close()
        for file in self._files:
            file.close()


def open_socket(interface: str) -> socket.socket:
    """Open a packet socket on an interface of the calling thread's network namespace; raises OSError."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        opened.setblocking(False)
        opened.bind((interface, _ETH_P_ALL))
    except OSError:
        opened.close()
        raise
    return opened


def port_taps(interfaces: Iterable[str], directory: Path) -> list[Tap]:
    """Tap a switch's ports, with BMv2's file names; raises OSError, and leaves nothing open then."""
    with contextlib.ExitStack() as made:
        taps = []
        for name in interfaces:
            packets = made.enter_context(contextlib.closing(open_socket(name)))
            files = [PcapFile(directory / f"{name}_{way}.pcap") for way in ("in", "out")]
            taps.append(Tap(packets, files[0], files[1]))
            made.callback(taps[-1].close)
        made.pop_all()
    return taps


class Capture:
    """Captures from construction until `close`; one thread serves all taps."""

    def __init__(self, taps: Iterable[Tap]) -> None:
        self._taps = list(taps)
        self._wake, self._stop = os.pipe()
        self._thread = threading.Thread(target=self._run, name="pcap", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        by_descriptor = {tap.socket.fileno(): tap for tap in self._taps}
        for descriptor in (*by_descriptor, self._wake):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            # The pipe comes last, so what had arrived before `close` is in the files.
            for descriptor in by_descriptor if self._wake in ready else ready:
                by_descriptor[descriptor].read()
            if self._wake in ready:
                return

    def close(self) -> None:
        """Write what has arrived, and end."""
        os.write(self._stop, b"x")
        self._thread.join()
        for tap in self._taps:
            if lost := tap.lost():
                LOG.warning("a capture has lost %d packets", lost)
            tap.close()
        os.close(self._wake)
        os.close(self._stop)
