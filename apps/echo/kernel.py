"""What the kernel counts: per connection (TCP_INFO) and per network namespace (/proc/net)."""

from __future__ import annotations

import os
import socket
import struct

# struct tcp_info of <linux/tcp.h>: eight bytes, then 32-bit words.
_TOTAL_RETRANS_OFFSET = 8 + 23 * 4
COUNTERS = ("Tcp.RetransSegs", "TcpExt.TCPLossProbes", "TcpExt.TCPTimeouts", "Tcp.EstabResets", "Tcp.OutRsts")


def total_retransmits(sock: socket.socket) -> int:
    """Return how many segments a connection has sent again."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, _TOTAL_RETRANS_OFFSET)[0])


def read_counters() -> dict[str, int]:
    """Return the COUNTERS of this process's network namespace."""
    found: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        with open(f"/proc/self/net/{name}") as file:  # noqa: PTH123 (no pathlib: fewer pages to move)
            lines = file.read().splitlines()
        for keys, values in zip(lines[::2], lines[1::2], strict=True):
            group = keys.partition(":")[0]
            for key, value in zip(keys.split()[1:], values.split()[1:], strict=True):
                if f"{group}.{key}" in COUNTERS:
                    found[f"{group}.{key}"] = int(value)
    return found


class CounterWatch:
    """Sums up how the namespace's counters grow, also when this process is moved into another namespace."""

    def __init__(self) -> None:
        self.grown = dict.fromkeys(COUNTERS, 0)
        self._namespace, self._last = _namespace(), read_counters()

    def sample(self) -> dict[str, int]:
        """Add what has come since the last call, and return the sums."""
        namespace, now = _namespace(), read_counters()
        if namespace == self._namespace:
            for key, value in now.items():
                self.grown[key] += value - self._last.get(key, 0)
        self._namespace, self._last = namespace, now
        return dict(self.grown)


def _namespace() -> str:
    return os.readlink("/proc/self/ns/net")  # noqa: PTH115
