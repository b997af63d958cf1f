"""A network as NetworkAPI's users describe it: plain data, until `startNetwork` builds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topo.compile import CompiledProgram
from topo.processes import ProcessName


@dataclass
class HostNode:
    """A host as described; `ip` and `mac` may also come from its interface's settings."""

    name: str
    ip: str | None = None
    mac: str | None = None
    default_route: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    engine: str | None = None
    """Which engine's container or pod the host is; None is a process host."""
    is_pod: bool = False


@dataclass
class SwitchNode:
    """A P4 switch as described; `assigned_…` is worked out by `startNetwork`."""

    name: str
    p4_source: Path | None = None
    device_id: int | None = None
    grpc_port: int | None = None
    log_enabled: bool = False
    pcap_dump: bool = False
    params: dict[str, Any] = field(default_factory=dict)
    assigned_program: CompiledProgram | None = field(default=None, init=False)


@dataclass
class LinkEnd:
    """One end of a link."""

    node: str
    port: int | None = None
    mac: str | None = None
    ip: str | None = None
    intf: str | None = None


@dataclass
class LinkPair:
    """A link between two nodes."""

    ends: tuple[LinkEnd, LinkEnd]
    shape: dict[str, Any] = field(default_factory=dict)
    """Its rate, delay, jitter, loss and queue, as `topo.shaping` has checked them."""

    @property
    def name(self) -> str:
        """The two nodes, as messages name the link."""
        one, two = self.ends
        return f"{one.node}-{two.node}"

    def end(self, node: str) -> LinkEnd:
        """Return the end at `node`."""
        return next(end for end in self.ends if end.node == node)


@dataclass(frozen=True)
class PodName:
    """A pod that outlives this process: the engine's id, and its sandbox's process."""

    id: str
    sandbox: ProcessName


@dataclass(frozen=True)
class Survivors:
    """What outlives this process: the PIDs that hold the hosts' namespaces, and the switches of an earlier run.

    `are_adopted`: hosts and links are there already, made by the run that these were left by.
    """

    holders: Mapping[str, int]
    switches: Mapping[str, ProcessName] = field(default_factory=dict)
    are_adopted: bool = False
    pods: Mapping[str, PodName] = field(default_factory=dict)
    """Of hosts that are pods, once there are any."""
