"""The hosts of a testbed as places for programs.

A host that is a pod is two places in one network: its sandbox, which the engine's containers join, and a process of
the keeper's that has the pod's network and the machine's files, in which plain programs run. A program moves from a
place to the destination's place of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from migration.groups import members
from migration.model import App, Host
from topo.errors import BadApp


@dataclass
class Places:
    """Every host, by name."""

    hosts: Mapping[str, Host]
    processes: Mapping[str, Host] = field(default_factory=dict)
    """Of hosts that are pods: where plain programs run."""

    @property
    def are_pods(self) -> bool:
        """Say whether the hosts are pods of an engine."""
        return bool(self.processes)

    def for_processes(self, host: str) -> Host:
        """Return a host as plain programs see it."""
        return self.processes[host] if self.are_pods else self.hosts[host]

    def for_app(self, app: App, host: str) -> Host:
        """Return a host as a program, or several that move together, see it; raises BadApp for a mixture."""
        kinds = {one.engine is not None for one in members(app)}
        if len(kinds) > 1:
            raise BadApp(f"{app.name}: plain programs and an engine's containers cannot move together")
        return self.hosts[host] if kinds == {True} else self.for_processes(host)
