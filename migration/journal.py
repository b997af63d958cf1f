"""The journal of one migration: JSON lines, each on disk before what it announces is done.

A journal whose last line is not "end" belongs to a migration that its controller did not live to finish; see
recovery.py. Keep the folder on a tmpfs: the programs do not survive a crash of the machine either, and an
fsync of a disk would lengthen the freeze.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from .groups import Party
from .model import App, Container, EngineContainer, Host, Volume
from .steering import (
    ClosingConnection,
    Endpoint,
    InnerConnection,
    IpProtocol,
    Move,
    MovedConnection,
    MovedListener,
)

WAY_BACK = "-back"  # ends the name of a migration that takes a program home
# Writes a PID down before its process runs.
Note = Callable[[int], None]


class Journal:
    """An open journal; `write` returns when the line is on disk."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a")

    def write(self, record: str, **facts: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps({"record": record, **facts}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and leave it."""
        self._file.close()

    def remove(self) -> None:
        """The migration is over and nothing is left to finish or undo."""
        self.close()
        self.path.unlink(missing_ok=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Read a journal; a last line that was cut off by a crash does not count, for it was not acted upon."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, (IPv4Address, Path)) else value


def _values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in pairs}


def app_to_json(app: App) -> dict[str, Any]:
    """Write down a program and its host, or those of a party."""
    if isinstance(app, Party):
        return {"members": [app_to_json(member) for member in app.members]}
    return dict(asdict(app, dict_factory=_values))


def app_from_json(data: Mapping[str, Any]) -> App:
    """Read what app_to_json wrote."""
    if "members" in data:
        return Party([app_from_json(member) for member in data["members"]])
    more = [Path(log) for log in data["more_logs"]]
    volumes = [Volume(Path(one["directory"]), Path(one["store"])) for one in data["volumes"]]
    container = _container_from_json(data["container"]) if data.get("container") else None
    host = host_from_json(data["host"])
    engine = EngineContainer(**data["engine"]) if data.get("engine") else None
    return App(data["name"], host, data["pid"], Path(data["log"]), more, volumes, container, engine)


def _container_from_json(data: Mapping[str, Any]) -> Container:
    return Container(Path(data["store"]), Path(data["image"]), data["cgroup"])


def host_to_json(host: Host) -> dict[str, Any]:
    """Write down a host."""
    return dict(asdict(host, dict_factory=_values))


def host_from_json(data: Mapping[str, Any]) -> Host:
    """Read what host_to_json wrote."""
    management = data.get("management")
    return Host(
        data["name"],
        data["pid"],
        IPv4Address(data["address"]),
        IPv4Address(management) if management else None,
        data.get("sandbox"),
        int(data.get("management_pid") or 0),
    )


def move_to_json(move: Move) -> dict[str, Any]:
    """Write down a move; of many connections while a program stands still, so endpoints are plain lists."""
    return {
        "id": move.id,
        "source": move.source,
        "destination": move.destination,
        "listeners": [[_plain_endpoint(m.old), _plain_endpoint(m.new)] for m in move.listeners],
        "connections": [
            [_plain_endpoint(m.old), _plain_endpoint(m.new), _plain_endpoint(m.peer)]
            for m in move.connections
        ],
        "closing": [[_plain_endpoint(c.location), _plain_endpoint(c.peer)] for c in move.closing],
        "inner": [
            [_plain_endpoint(m.old), _plain_endpoint(m.new), _plain_endpoint(m.peer)] for m in move.inner
        ],
    }


def move_from_json(data: Mapping[str, Any]) -> Move:
    """Read what move_to_json wrote."""
    return Move(
        data["id"],
        data["source"],
        data["destination"],
        tuple(MovedListener(_endpoint(old), _endpoint(new)) for old, new in data["listeners"]),
        tuple(
            MovedConnection(_endpoint(old), _endpoint(new), _endpoint(peer))
            for old, new, peer in data["connections"]
        ),
        tuple(ClosingConnection(_endpoint(at), _endpoint(peer)) for at, peer in data.get("closing", ())),
        tuple(
            InnerConnection(_endpoint(old), _endpoint(new), _endpoint(peer))
            for old, new, peer in data.get("inner", ())
        ),
    )


def _plain_endpoint(endpoint: Endpoint) -> tuple[int, int, int]:
    return int(endpoint.protocol), int(endpoint.address), endpoint.port


def _endpoint(data: Sequence[int]) -> Endpoint:
    protocol, address, port = data
    return Endpoint(IpProtocol(protocol), IPv4Address(address), port)
