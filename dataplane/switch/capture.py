"""Capture files as BMv2 writes them: INTF_in.pcap and INTF_out.pcap for every port.

A packet socket sees what comes in before the switch's program, and what goes out after it. One thread serves all
ports. GSO packets are in the file as the kernel carries them, larger than the MTU; a VLAN tag that the kernel keeps
beside the packet is not in the file. When the thread cannot keep up, the capture loses packets, not the traffic.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_SO_TIMESTAMPNS = 35
_MAX_FRAME = 1 << 18
_BUFFER = 16 << 20
# Nanosecond magic, version 2.4, no time zone, no accuracy, snap length, Ethernet.
_FILE_HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, _MAX_FRAME, 1)
_RECORD = struct.Struct("=IIII")
_TIMESPEC = struct.Struct("@qq")


class _Port:
    """The socket and the two files of one interface."""

    def __init__(self, name: str, directory: Path) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.setblocking(False)
        self.files = [_open(directory / f"{name}_{way}.pcap") for way in ("in", "out")]
        self.socket.bind((name, _ETH_P_ALL))

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
            record = _RECORD.pack(seconds, nanoseconds, len(frame), len(frame))
            self.files[address[2] == _PACKET_OUTGOING].write(record + frame)
        for file in self.files:
            file.flush()

    def close(self) -> None:
        """Close everything."""
        self.socket.close()
        for file in self.files:
            file.close()


def _open(path: Path) -> BinaryIO:
    file = path.open("wb")
    file.write(_FILE_HEADER)
    file.flush()
    return file


class Capture:
    """Captures on interfaces from construction until `close`."""

    def __init__(self, interfaces: Iterable[str], directory: Path) -> None:
        """Begin; raises OSError when an interface is not there or a file cannot be written."""
        self._ports: list[_Port] = []
        self._wake, self._stop = os.pipe()
        try:
            for name in interfaces:
                self._ports.append(_Port(name, directory))
        except OSError:
            self._close_all()
            raise
        self._thread = threading.Thread(target=self._run, name="pcap", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        by_descriptor = {port.socket.fileno(): port for port in self._ports}
        for descriptor in (*by_descriptor, self._wake):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll()]
            for descriptor in ready:
                if descriptor in by_descriptor:
                    by_descriptor[descriptor].read()
            if self._wake in ready:
                return

    def close(self) -> None:
        """Write what has arrived, and end."""
        os.write(self._stop, b"x")
        self._thread.join()
        self._close_all()

    def _close_all(self) -> None:
        for port in self._ports:
            port.close()
        os.close(self._wake)
        os.close(self._stop)
