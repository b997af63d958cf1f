"""The runtime of a Migrator whose programs may be containers of engines: see runtime.Runtime.

Runtimes
├── processes, runc's containers    handed on to the ProcessRuntime
└── Docker's, Podman's containers   an EngineRuntime, made when the first one is asked about
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import messages, refusals, tree
from ..criu import Criu
from ..deadline import Deadline
from ..errors import CriuMissing, MigrationError, Refused
from ..firewall import clean, remove_criu_tables
from ..freezer import unpin
from ..inet import InetSocket
from ..journal import Note
from ..model import App, Host
from ..namespaces import in_netns
from ..neighbours import NOWHERE, Surroundings, check_unix
from ..passage import ProcessPassage
from ..process import ProcessRuntime
from ..repair import unrepair
from ..report import ending
from ..transfer.modes import STOP_SHARED, Choice, Mode, Via, Wish
from ..transfer.pipelimit import CAP_SYS_RESOURCE
from . import criuconf, gate
from .calls import end_copy, see_untraced
from .cgroup import freezer_of
from .driver import TWIN, Driver, EngineSilent
from .passage import EnginePassage
from .podman import PodmanDriver
from .revival import Messages, revive, wait_until_over

NAMES = ("docker", "podman")
Part = ProcessPassage | EnginePassage
# Docker has an image four times for a moment: CRIU's, containerd's, its own, and the one that is restored.
TIMES = {"docker": 4, "podman": 2}
SLACK = 32 << 20


class EngineRuntime:
    """Containers of engines."""

    def __init__(self, processes: ProcessRuntime, drivers: Mapping[str, Driver] | None = None) -> None:
        self._processes = processes
        self._drivers: dict[str, Driver] = dict(drivers or {})

    def driver(self, app: App) -> Driver:
        """Return the engine of a container."""
        assert app.engine is not None
        name = app.engine.engine
        if name not in self._drivers:
            if name not in NAMES:
                raise Refused(f"{app.name} is a container of {name}, which is not known")
            self._drivers[name] = _docker() if name == "docker" else PodmanDriver(self._tools())
        return self._drivers[name]

    def _tools(self) -> Path | None:
        """Return where a CRIU is that runc finds under its name."""
        binary = self._processes.criu.binary
        return binary.parent if binary.name == "criu" else None

    @property
    def messages(self) -> Messages:
        """The messages of the images."""
        criu: Criu = self._processes.criu
        return Messages(
            messages.load(messages.CORE),
            messages.load(messages.CGROUP),
            messages.load(messages.PSTREE),
            criu.fdinfo,
            criu.tcp_stream,
        )

    def check(self, app: App, destination: Host, surroundings: Surroundings) -> None:
        """Refuse a container that its engine could not carry."""
        try:
            assert self._processes.criu
        except CriuMissing as ex:
            raise Refused(str(ex)) from ex
        reason = self._why_not(app, destination)
        if reason is None:
            reason = refusals.find(app, destination)
        if reason is not None:
            raise Refused(f"{app.name} cannot be moved: {reason}")
        check_unix(app, surroundings)

    def _why_not(self, app: App, destination: Host) -> str | None:
        assert app.engine is not None
        driver = self.driver(app)
        if destination.sandbox is None:
            return f"{destination.name} is no pod of {driver.name}'s"
        try:
            if (reason := driver.check()) is not None:
                return reason
            found = driver.find(app.engine.id)
            if found is None or found.pid != app.pid:
                return f"{driver.name} does not know it as the container {app.engine.id[:12]}"
            found = driver.settle(found)
            if (reason := driver.refusal(found)) is not None:
                return reason
            if driver.find(found.name + TWIN) is not None:
                return f"the name {found.name + TWIN}, which its copy is to have, is taken"
            for container, volume in driver.sharers(found):
                return f"its volume {volume} is shared with {container}, which would stay"
        except EngineSilent as ex:
            return str(ex)
        if tree.inside(app.pid) != 1:
            return "it is not in a PID namespace of its own"
        if (reason := _unreadable(app.pid, driver.name) or _unseizable(app.pid)) is not None:
            return reason
        return self._no_room(app, driver.images_of(found))

    def _no_room(self, app: App, folder: Path) -> str | None:
        assert app.engine is not None
        while not folder.exists():
            folder = folder.parent
        needed = TIMES[app.engine.engine] * self._processes.image_estimate(app) + SLACK
        free = shutil.disk_usage(folder).free
        if needed <= free:
            return None
        return f"no room for its image: it may take {needed >> 20} MiB, {folder} has {free >> 20} MiB free"

    def choose(self, app: App, destination: Host, wish: Wish) -> Choice:
        """Refuse what engines' own commands cannot do: they stop a container, and write to the machine's disk."""
        engine = self.driver(app).name
        if wish.mode in (Mode.PRE, Mode.LAZY):
            raise Refused(
                f"{app.name} cannot be moved in mode {wish.mode.value} by {engine}: ask for mode stop"
            )
        return Choice(Mode.STOP, Via.SHARED, "an engine's containers have no other mode")

    def open_passage(self, app: App, destination: Host, folder: Path, deadline: Deadline) -> EnginePassage:
        """Get ready to freeze."""
        return EnginePassage(
            self.driver(app), app, destination, folder, messages=self.messages, deadline=deadline
        )

    def wake(self, app: App) -> None:
        """Let a container run on that was frozen for its checkpoint, or was restored stopped."""
        see_untraced(app.pid)
        unrepair(tree.processes(app.pid))
        driver = self.driver(app)
        if (found := driver.find_process(app.pid)) is not None and freezer_of(app.pid).is_frozen():
            driver.thaw(found)
        unpin(app.pid)
        in_netns(app.host.pid, remove_criu_tables)

    def revive(self, app: App, host: Host, folder: Path, note: Note) -> int:
        """Restore an ended container from its own checkpoint."""
        assert app.engine is not None
        driver = self.driver(app)
        if (found := driver.find(app.engine.id)) is None:
            raise MigrationError(f"{driver.name} has no container {app.engine.id[:12]} any more")
        with criuconf.in_force():
            return revive(driver, found, host, self.messages, folder, note)

    def ending(self, app: App) -> dict[str, Any]:
        """Ask the engine how a container has ended; it may not know it yet."""
        assert app.engine is not None
        try:
            found = self.driver(app).find(app.engine.id)
            if found is not None:
                wait_until_over(self.driver(app), found)
                found = self.driver(app).find(app.engine.id)
        except MigrationError:
            found = None
        return ending(None if found is None else int(found.raw["State"]["ExitCode"]))

    def tidy(self, app: App) -> None:
        """Remove the container that a program is not any more, and let the one that it is have its name."""
        assert app.engine is not None
        driver = self.driver(app)
        gate.remove_dumps()  # whoever could have been restored from one has been
        before = driver.find(app.engine.id)
        here = driver.find_process(app.pid)
        if here is None:  # it has ended: whatever there is of it is the original
            if before is not None and (twin := driver.find(before.user_name + TWIN)) is not None:
                driver.remove(twin.id)
            return
        app.engine.id = here.id
        for other in (before, driver.find(here.user_name + TWIN)):
            if other is not None and other.id != here.id:
                driver.remove(other.id)
        if here.name != here.user_name:
            driver.rename(here.id, here.user_name)
        driver.forget_checkpoint(here)


def _docker() -> Driver:
    from .docker import DockerDriver  # its library takes 0.2 s to import

    return DockerDriver()


class Runtimes:
    """Every kind of program that a testbed has; see runtime.Runtime."""

    def __init__(self, processes: ProcessRuntime, drivers: Mapping[str, Driver] | None = None) -> None:
        self._processes = processes
        self._engines = EngineRuntime(processes, drivers)
        self.name = processes.name

    @property
    def fdinfo(self) -> Any:
        """The messages of files.img."""
        return self._processes.fdinfo

    @property
    def tcp_stream(self) -> Any:
        """The message of tcp-stream-*.img."""
        return self._processes.tcp_stream

    def check(self, app: App, destination: Host, surroundings: Surroundings = NOWHERE) -> None:
        """Refuse what cannot be moved."""
        if app.engine is None:
            self._processes.check(app, destination, surroundings)
        else:
            self._engines.check(app, destination, surroundings)

    def sockets(self, app: App) -> list[InetSocket]:
        """List a program's sockets."""
        return self._processes.sockets(app)

    def is_running(self, app: App) -> bool:
        """Say whether a program runs."""
        return self._processes.is_running(app) if app.engine is None else tree.is_running(app.pid)

    def ending(self, app: App) -> dict[str, Any] | None:
        """Return how a program has ended, as the report's "ended"; None if it runs."""
        if app.engine is None:
            return self._processes.ending(app)
        return None if self.is_running(app) else self._engines.ending(app)

    def image_estimate(self, app: App) -> int:
        """Bound the size of a checkpoint."""
        return self._processes.image_estimate(app)

    def choose(self, app: App, destination: Host, wish: Wish) -> Choice:
        """Settle how memory moves."""
        chooser: Any = self._processes if app.engine is None else self._engines
        choice: Choice = chooser.choose(app, destination, wish)
        return choice

    def open_passage(
        self,
        app: App,
        destination: Host,
        folder: Path,
        *,
        lock: bool,
        deadline: Deadline,
        choice: Choice = STOP_SHARED,
        is_alone: bool = True,
    ) -> Part:
        """Get ready to freeze; `is_alone` is the process runtime's."""
        if app.engine is not None:
            return self._engines.open_passage(app, destination, folder, deadline)
        return self._processes.open_passage(
            app, destination, folder, lock=lock, deadline=deadline, choice=choice, is_alone=is_alone
        )

    def end_leftovers(self) -> None:
        """End what a controller that was killed has left at work."""
        gate.end_waiting()
        gate.remove_copies()
        criuconf.put_back()
        self._processes.end_leftovers()

    def end_copy(self, pid: int, *, if_half_built: bool) -> None:
        """End a copy, in any case or if it has not run.

        An engine's copy is complete when its original has been ended, and so is not ended any more, but let go.
        """
        if pid in self._processes.custody.children("program", "restored"):
            self._processes.end_copy(pid, if_half_built=if_half_built)
        elif tree.is_running(pid) and not if_half_built:
            end_copy(pid)
        elif tree.is_running(pid):
            unrepair(tree.processes(pid), probe=True)
            unpin(pid)

    def wake(self, app: App) -> None:
        """Let a program run on."""
        (self._processes if app.engine is None else self._engines).wake(app)

    def revive(self, app: App, host: Host, images: Path, note: Note) -> int:
        """Restore a program at its source."""
        if app.engine is None:
            return self._processes.revive(app, host, images, note)
        return self._engines.revive(app, host, images.parent, note)

    def tidy(self, app: App, other: Host) -> None:
        """Remove what is left where a program is not."""
        if app.engine is None:
            self._processes.tidy(app, other)
        else:
            clean(app.host, other)
            self._engines.tidy(app)


def _unseizable(root: int) -> str | None:
    """Say which process is stopped where CRIU could not trace it, or None.

    To be traced (PTRACE_SEIZE) a stopped process has to run for a moment, which one cannot in a frozen control group of
    version 1: CRIU would wait for ever.
    """
    if freezer_of(root).switch.name != "freezer.state":
        return None
    for pid in tree.processes(root):
        if tree.state(pid) == "T":
            return f"process {pid} is stopped, and cannot be traced while its control group (version 1) is frozen"
    return None


def _unreadable(root: int, engine: str) -> str | None:
    """Say which process has resource limits that an engine's CRIU cannot read, or None (prlimit(2) says who may)."""
    if tree.may(CAP_SYS_RESOURCE):
        return None
    for pid in tree.processes(root):
        if not tree.is_of_root(pid):
            return (
                f"process {pid} does not run as root, and without CAP_SYS_RESOURCE, which root lacks here, "
                f"{engine} cannot read its resource limits"
            )
    return None
