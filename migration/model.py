"""Hosts and the programs that run in them, as far as a migration needs to know them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Host:
    """A place for programs: the network and mount namespaces of the process `pid`, and its one address.

    Hosts share their file systems, as Mininet's do: a path means the same file in each.
    """

    name: str
    pid: int
    address: IPv4Address


@dataclass(slots=True)
class App:
    """A program that was started so that it can be moved; `host` and `pid` follow it on its way.

    `pid` is that of its first process, as seen from outside; inside it is PID 1 of a namespace of its own.
    """

    name: str
    host: Host
    pid: int
    log: Path
