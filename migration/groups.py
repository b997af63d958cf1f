"""Programs that move together: a group that was started as one, or several that are asked for in one migration.

A *group* (`run … --group pod1`) is one process tree: an init that only reaps, as PID 1 of the group's PID namespace,
and the programs as its children. To a migration it is one App, and one CRIU image carries everything between its
programs: UNIX sockets, pipes, shared memory, loopback connections. Each program is a `Member` of it: it has its own
name and log, and is wherever its group is.

A *party* is made for one migration of programs that were started apart and are connected with each other over the
host's loopback or its own address: all are stopped before the first is written down, each has an image of its own, and
no copy runs before the last original has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import tree
from .model import App, Host


class Member(App):
    """A program of a group: an App that cannot be moved by itself."""

    __slots__ = ("group", "inner")

    def __init__(self, name: str, group: App, inner: int, log: Path) -> None:
        """Describe the program whose PID inside the group is `inner`."""
        self.group = group
        self.inner = inner
        self.name = name
        self.log = log
        self.more_logs = []
        self.volumes = []
        self.container = None
        self.engine = None

    @property
    def host(self) -> Host:  # type: ignore[override]
        """Where the group is."""
        return self.group.host

    @property
    def pid(self) -> int:  # type: ignore[override]
        """Its PID as seen from outside, which a migration changes; 0 if it has ended."""
        for pid in tree.children(self.group.pid):
            if tree.inside(pid) == self.inner:
                return pid
        return 0


class Party(App):
    """Several programs of one host, in one migration; to a Transaction it is one App."""

    __slots__ = ("members",)

    def __init__(self, members: Sequence[App]) -> None:
        """Join programs, which must run on one host."""
        self.members = list(members)
        self.name = ",".join(app.name for app in members)
        self.log = members[0].log
        self.container = members[0].container
        self.engine = members[0].engine
        self.volumes = [volume for app in members for volume in app.volumes]
        self.more_logs = sorted(frozenset[Path]().union(*(app.logs for app in members)) - {self.log})

    @property
    def host(self) -> Host:
        """Where they all are."""
        return self.members[0].host

    @host.setter
    def host(self, host: Host) -> None:
        for app in self.members:
            app.host = host

    @property
    def pid(self) -> int:
        """The first one's process; the passage says to each its own."""
        return self.members[0].pid

    @pid.setter
    def pid(self, pid: int) -> None:
        """Leave it: the passage has told each member."""


def members(app: App) -> Sequence[App]:
    """Return what moves on its own: the members of a party, or the app itself."""
    return app.members if isinstance(app, Party) else (app,)


def member_folder(folder: Path, app: App) -> Path:
    """Return where the images of one member of a party are."""
    return folder / app.name
