"""Programs of a testbed: how each kind is started, looked at and ended.

| what `run` is given     | on hosts that are namespaces | on hosts that are pods             |
|-------------------------|------------------------------|------------------------------------|
| a command               | a process                    | a process in the pod's network     |
| a command and a group   | a process in a tree of them  | the same                           |
| an image                | a container that runc starts | the engine's container, in the pod |

Processes and runc's containers are the keeper's children; an engine's containers are the engine's, and are known by
their id and their first process.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from migration import containers, tree
from migration.errors import MigrationError
from migration.groups import members
from migration.inet import InetSocket
from migration.model import App, EngineContainer, Host, Volume
from migration.process import ProcessRuntime
from migration.slowness import scaled
from topo import images
from topo.containers import engine as engines
from topo.containers.pod import Pod
from topo.errors import BadApp, BadNetwork, ContainerFailed
from topo.places import Places
from topo.runs import MARKER, Run

STOP_TIMEOUT = scaled(3.0)  # seconds that a program is given to end when it is asked to


@dataclass(frozen=True)
class Order:
    """A program as the user asks for it; Testbed.run explains the fields."""

    name: str
    host: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    volumes: Sequence[str | Path] = ()
    image: str | Path | None = None
    group: str | None = None


@dataclass
class Launcher:
    """Starts and ends the programs of one testbed."""

    runtime: ProcessRuntime
    run: Run
    places: Places
    node: Callable[[str], Any]
    """Returns a host's Mininet node."""
    groups: dict[str, App] = field(default_factory=dict)

    # ---- starting

    def start(self, order: Order) -> tuple[App, Sequence[str]]:
        """Start a program; return it and its whole command. Raises BadApp."""
        if order.image is not None:
            if order.group is not None or order.cwd is not None:
                raise BadApp(f"{order.name}: a container can have neither a group nor a cwd")
            return self._start_in_pod(order) if self.places.are_pods else self._start_by_runc(order)
        try:
            return self._start_process(order), order.argv
        except MigrationError as ex:
            raise BadApp(str(ex)) from ex

    def _start_process(self, order: Order) -> App:
        where = self.places.for_processes(order.host)
        own = [Volume(Path(volume).resolve(), self.run.folder / "volumes") for volume in order.volumes]
        options: dict[str, Any] = {"env": order.env, "cwd": order.cwd or Path.cwd(), "volumes": own}
        log = self.run.folder / f"{order.name}.out"
        if order.group is None:
            return self.runtime.launch(order.name, where, order.argv, log, **options)
        is_new = order.group not in self.groups
        try:
            team = self._group(order.group, where)
            return self.runtime.launch_in(team, order.name, order.argv, log, **options)
        except BaseException:
            if is_new:
                self.end_group(order.group, are_left=())
            raise

    def _group(self, name: str, host: Host) -> App:
        """Return a group, made now if there is none; raises BadApp if it is elsewhere."""
        if (group := self.groups.get(name)) is None:
            log = self.run.folder / f"{name}.out"
            group = self.groups[name] = self.runtime.launch_group(name, host, log)
        elif group.host.name != host.name:
            raise BadApp(f"the group {name} is on {group.host.name}: start its programs there")
        return group

    def _start_by_runc(self, order: Order) -> tuple[App, Sequence[str]]:
        assert order.image is not None
        loaded = images.load(order.image, self.run.folder / "rootfs")
        try:
            app = containers.launch(
                self.runtime.custody,
                order.name,
                self.places.hosts[order.host],
                loaded,
                self.run.folder / f"{order.name}.out",
                store=self.run.folder / "containers",
                cgroup=f"p4ferry-{self.run.name}-{order.name}",
                argv=order.argv,
                env={MARKER: self.run.name, **(order.env or {})},
                volumes=[Path(volume) for volume in order.volumes],
            )
        except MigrationError as ex:
            raise BadApp(str(ex)) from ex
        return app, loaded.argv(order.argv)

    def _start_in_pod(self, order: Order) -> tuple[App, Sequence[str]]:
        pod: Pod = self.node(order.host)
        if Path(image := str(order.image)).is_absolute():
            raise BadApp(f"{order.name}: the folder {image} is no image that {pod.engine.name} can start")
        if order.name in self.places.hosts:
            raise BadApp(f"{order.name} is the name of a host, and so of a container")
        volumes = [str(volume) for volume in order.volumes]
        try:
            made = pod.addContainer(
                order.name, image, list(order.argv), environment=dict(order.env or {}), volumes=volumes
            )
        except (BadNetwork, ContainerFailed) as ex:
            raise BadApp(str(ex)) from ex
        log = self.run.folder / f"{order.name}.out"
        log.touch()
        app = App(order.name, self.places.hosts[order.host], made.pid, log)
        app.engine = EngineContainer(pod.engine.name, made.id)
        return app, (image, *order.argv)

    # ---- looking

    def is_running(self, app: App) -> bool:
        """Say whether a program runs."""
        if engine_of(app) is None:
            return self.runtime.is_running(app)
        thread = tree.living_thread(app.pid)
        return thread != 0 and _network(thread) == _network(app.host.pid)

    def sockets(self, app: App) -> list[InetSocket]:
        """List the Internet sockets of a program."""
        return self.runtime.sockets(app)

    def output(self, app: App) -> str:
        """Return what a program has printed: what is in its log, and then what its engine keeps."""
        written = app.log.read_text(errors="replace")
        engine = engine_of(app)
        return written if engine is None else written + engines.connect(engine.engine).output(engine.id)

    def last_line(self, app: App) -> str:
        """Return the last thing that a program has said."""
        try:
            lines = self.output(app).strip().splitlines()
        except (OSError, ContainerFailed):
            lines = []
        return lines[-1] if lines else "it said nothing"

    # ---- ending

    def end(self, app: App) -> None:
        """Ask a program to end, make it end if it does not, and take away what it has left."""
        engine = engine_of(app)
        if engine is None:
            self.runtime.terminate(app, STOP_TIMEOUT)
            return
        if self.is_running(app):
            _ask_to_end(app.pid)
        engines.connect(engine.engine).remove(engine.id)

    def end_group(self, name: str | None, are_left: Sequence[str]) -> None:
        """End a group that has no program any more, `are_left` being the groups of all that run."""
        if name in self.groups and name not in are_left:
            self.runtime.terminate(self.groups.pop(name))


def engine_of(app: App) -> EngineContainer | None:
    """Return what makes a program, or the first of several, an engine's container."""
    return members(app)[0].engine


def _network(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _ask_to_end(pid: int) -> None:
    """Send SIGTERM to a container's first process and wait, if it would notice: others ignore it, as PID 1 may."""
    if not tree.catches(pid, signal.SIGTERM):
        return
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            tree.wait_for_death(fd, STOP_TIMEOUT)
        finally:
            os.close(fd)
