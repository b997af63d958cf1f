"""Hosts and the programs that run in them, as far as a migration needs to know them."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    management: IPv4Address | None = None
    """Its address on the management network, over which images and pages travel; without one they cannot."""
    sandbox: str | None = None
    """Of a host that is a container engine's: the id of the container, or the pod, whose network programs join."""
    management_pid: int = 0
    """A process in the network namespace where that address is; 0 if programs of the host see it, too."""

    @property
    def management_place(self) -> int:
        """The process in whose network namespace the host's management address is."""
        return self.management_pid or self.pid


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory of which each host has its own copy, below the folder `store`; see volumes.py."""

    directory: Path
    store: Path


@dataclass(frozen=True, slots=True)
class Container:
    """What makes a program a container that runc has started; containers.py says where its parts are on each host."""

    store: Path
    """The folder below which every host has its containers' bundles and writable layers, and runc its state."""
    image: Path
    """The root file system under the writable layer, which all containers of an image share and none changes."""
    cgroup: str
    """Its control group, which stays its own on every host."""


@dataclass(slots=True)
class EngineContainer:
    """What makes a program a container of Docker's or Podman's; a twin takes its place on each move."""

    engine: str
    """docker or podman."""
    id: str
    """The engine's own, which changes with every move; the name that the user gave does not."""


@dataclass(slots=True)
class App:
    """A program that was started so that it can be moved; `host` and `pid` follow it on its way.

    `pid` is that of its first process, as seen from outside; inside it is PID 1 of a namespace of its own.
    """

    name: str
    host: Host
    pid: int
    log: Path
    more_logs: list[Path] = field(default_factory=list)
    """A group's members write their own."""
    volumes: list[Volume] = field(default_factory=list)
    """Working files that move with it; of a container, `directory` is the path inside."""
    container: Container | None = None
    engine: EngineContainer | None = None

    @property
    def logs(self) -> frozenset[Path]:
        """Every file that its processes append to while they run."""
        return frozenset({self.log, *self.more_logs})
