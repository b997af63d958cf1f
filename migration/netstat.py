"""Counters of a network namespace's TCP, read through /proc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def counters(pid: int, files: Sequence[str] = ("snmp", "netstat")) -> dict[str, int]:
    """Return the counters of the Tcp, TcpExt, … groups as {"Tcp.EstabResets": 3, …}."""
    found: dict[str, int] = {}
    for name in files:
        lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
        for keys, values in zip(lines[::2], lines[1::2], strict=True):
            group = keys.partition(":")[0]
            found.update(
                (f"{group}.{key}", int(value))
                for key, value in zip(keys.split()[1:], values.split()[1:], strict=True)
            )
    return found


def aborted_connections(pid: int) -> int:
    """Count the connections that went from open to closed without a FIN: by RST or by timeout (RFC 4022)."""
    return counters(pid, ["snmp"])["Tcp.EstabResets"]


def opened_connections(pid: int) -> int:
    """Count the connections that others have opened to listeners here (RFC 4022: tcpPassiveOpens)."""
    return counters(pid, ["snmp"])["Tcp.PassiveOpens"]
