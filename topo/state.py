"""What a running testbed writes down about itself, so that another process can go on with it after a crash.

`state.json` in the run's folder is replaced as a whole whenever something changes: the network's description, the
processes that hold its hosts, the switches, the keeper's socket, and the programs. Migrations under way are not in it:
they have journals (migration/journal.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from migration.groups import Member
from migration.journal import app_from_json, app_to_json
from migration.model import App
from topo.description import PodName
from topo.errors import BadNetwork, CannotRecover
from topo.kinds import HostKind
from topo.plan import LoadBalancerNetwork
from topo.processes import ProcessName

STATE = "state.json"
KEEPER_SOCKET = "keeper.sock"


@dataclass
class RunningApp:
    """A program that can be moved, and the service that it answers for."""

    app: App
    argv: tuple[str, ...]
    service: str | None = None
    backend_port: int | None = None
    ports: set[tuple[int, int]] = field(default_factory=set)
    """Where it was seen to accept: protocol and port, which a migration does not change."""

    def __str__(self) -> str:
        served = f", serves {self.service}" if self.service else ""
        member = f", in the group {self.group}" if self.group else ""
        return f"{self.app.name} runs on {self.app.host.name} (process {self.app.pid}{served}{member})"

    @property
    def group(self) -> str | None:
        """The group that it belongs to."""
        return self.app.group.name if isinstance(self.app, Member) else None

    def to_json(self) -> dict[str, Any]:
        """Write it down."""
        return {
            "app": app_to_json(self.app),
            "argv": list(self.argv),
            "service": self.service,
            "backend_port": self.backend_port,
            "ports": sorted(self.ports),
            "group": self.group,
            "inner": self.app.inner if isinstance(self.app, Member) else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], groups: Mapping[str, App]) -> RunningApp:
        """Read what to_json wrote."""
        app = app_from_json(data["app"])
        if data["group"] is not None:
            app = Member(app.name, groups[data["group"]], data["inner"], app.log)
        ports = {(protocol, port) for protocol, port in data["ports"]}
        return cls(app, tuple(data["argv"]), data["service"], data["backend_port"], ports)


@dataclass
class RunState:
    """A testbed, as far as its successor needs to know it."""

    network: LoadBalancerNetwork
    hold: bool
    holders: dict[str, ProcessName]
    switches: dict[str, ProcessName]
    apps: dict[str, RunningApp] = field(default_factory=dict)
    groups: dict[str, App] = field(default_factory=dict)
    kind: HostKind = HostKind.PROCESS
    switch_container: str | None = None
    pods: Mapping[str, PodName] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Replace the run's state file."""
        data = {
            "network": asdict(self.network),
            "hold": self.hold,
            "kind": self.kind.value,
            "switch_container": self.switch_container,
            "holders": {name: str(process) for name, process in self.holders.items()},
            "pods": {name: [pod.id, str(pod.sandbox)] for name, pod in self.pods.items()},
            "switches": {name: str(process) for name, process in self.switches.items()},
            "groups": [app_to_json(group) for group in self.groups.values()],
            "apps": [running.to_json() for running in self.apps.values()],
        }
        partial = folder / f"{STATE}.partial"
        partial.write_text(json.dumps(data, default=str))
        partial.replace(folder / STATE)

    @classmethod
    def load(cls, folder: Path) -> RunState:
        """Read a run's state file; raises CannotRecover."""
        try:
            data = json.loads((folder / STATE).read_text())
            groups = {one["name"]: app_from_json(one) for one in data["groups"]}
            apps = [RunningApp.from_json(one, groups) for one in data["apps"]]
            return cls(
                LoadBalancerNetwork(**data["network"]),
                data["hold"],
                {name: ProcessName.parse(text) for name, text in data["holders"].items()},
                {name: ProcessName.parse(text) for name, text in data["switches"].items()},
                {running.app.name: running for running in apps},
                groups,
                HostKind(data["kind"]),
                data["switch_container"],
                {name: PodName(id, ProcessName.parse(text)) for name, (id, text) in data["pods"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, BadNetwork) as ex:
            raise CannotRecover(
                f"run {folder.name} cannot be recovered: it ended before its network was complete ({ex})"
            ) from ex
