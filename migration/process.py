"""Programs that run as plain processes in hosts, and containers that runc has started: see runtime.Runtime."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import baggage, ownaddress, preload, refusals, tree
from .criu import Criu, waits_at_gate
from .custody import Custody
from .deadline import Deadline
from .diag import Diag
from .errors import CriuMissing, LaunchFailed, MigrationError, Refused
from .firewall import clean, remove_criu_tables
from .freezer import end_silently, is_half_built, wake
from .groups import Member
from .inet import InetSocket
from .journal import Note
from .model import App, Host, Volume
from .namespaces import in_netns
from .neighbours import NOWHERE, Surroundings, check_unix
from .passage import ProcessPassage
from .report import ending
from .revival import revive
from .slowness import scaled
from .transfer import home, lazy, link, pipelimit
from .transfer.modes import SMALL, STOP_SHARED, Choice, Kernel, Mode, Via, Wish, choose, probe
from .volumes import create, detach

NO_KERNEL = Kernel(tracks_dirty=False, has_userfault=False)
POST_COPY_TIMEOUT = scaled(600.0)
REAP_TIMEOUT = scaled(2.0)  # in which the keeper has reaped a program that has ended
LEFTOVER_TIMEOUT = scaled(5.0)  # in which a worker whose controller is gone ends by itself


class ProcessRuntime:
    """Starts programs so that CRIU can always dump them, and owns them until closed."""

    name = "process"

    def __init__(
        self, criu: Criu | None = None, custody: Custody | None = None, run: str | None = None
    ) -> None:
        """Own what the keeper `custody` starts; the control groups of programs are called after `run`."""
        self._criu = criu
        # A PID alone is another's, too, where the control groups are shared and the PID namespaces are not.
        self._run = run or f"{os.getpid()}-{secrets.token_hex(3)}"
        self.kernel: Kernel | None = None
        self.custody = custody or Custody()

    @property
    def criu(self) -> Criu:
        """The CRIU in use, looked for when it is first needed."""
        if self._criu is None:
            self._criu = Criu.find()
        return self._criu

    @criu.setter
    def criu(self, criu: Criu) -> None:
        self._criu = criu

    @property
    def fdinfo(self) -> Any:
        """The messages of files.img."""
        return self.criu.fdinfo

    @property
    def tcp_stream(self) -> Any:
        """The message of tcp-stream-*.img."""
        return self.criu.tcp_stream

    def launch(
        self,
        name: str,
        host: Host,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
        volumes: Sequence[Volume] = (),
    ) -> App:
        """Start a program in a host; its output is appended to `log`."""
        if not argv:
            raise LaunchFailed(f"{name} has no command to run")
        environment = dict(os.environ) if env is None else dict(env)
        made: list[Volume] = []
        try:
            for volume in volumes:
                create(volume, host)
                made.append(volume)
            cgroup = self._cgroup(name)
            pid = self.custody.spawn(host.pid, argv, environment, cwd, log.absolute(), cgroup)
        except MigrationError as ex:
            for volume in made:
                detach(volume, host)
            self._remove_cgroups(glob.escape(name))
            raise LaunchFailed(f"{name} could not be started on {host.name}: {ex}") from ex
        return App(name, host, pid, log.absolute(), volumes=made)

    def launch_group(self, name: str, host: Host, log: Path, *, cwd: Path = Path("/")) -> App:
        """Make an empty group in a host: an init of its own, which reaps; programs join it with `launch_in`."""
        try:
            pid = self.custody.spawn_group(host.pid, name, cwd, self._cgroup(name))
        except LaunchFailed as ex:
            self._remove_cgroups(glob.escape(name))
            raise LaunchFailed(f"the group {name} could not be made on {host.name}: {ex}") from ex
        return App(name, host, pid, log.absolute())

    def launch_in(
        self,
        group: App,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
        volumes: Sequence[Volume] = (),
    ) -> Member:
        """Start a program in a group, with which it moves; its output is appended to `log`."""
        if not argv:
            raise LaunchFailed(f"{name} has no command to run")
        environment = dict(os.environ) if env is None else dict(env)
        log = log.absolute()
        try:
            for volume in volumes:
                if volume not in group.volumes:  # its programs share theirs, until the group ends
                    create(volume, group.host)
                    group.volumes.append(volume)
            inner = self.custody.join(
                group.host.pid, group.pid, argv, environment, cwd, log, ownaddress.group_of(group.pid)
            )
        except MigrationError as ex:
            raise LaunchFailed(
                f"{name} could not be started in {group.name} on {group.host.name}: {ex}"
            ) from ex
        if log not in group.more_logs:
            group.more_logs.append(log)
        return Member(name, group, inner, log)

    def terminate(self, app: App, timeout: float = 3.0) -> int | None:
        """Ask a program to end, make it end if it does not; return its exit status if known. Its files go, too."""
        group = None if isinstance(app, Member) or app.container is not None else self._group_of(app.pid)
        try:
            return self._terminate(app, timeout)
        finally:
            baggage.throw_away(app, self.custody)
            if not isinstance(app, Member) and app.container is None:
                self._remove_cgroups(glob.escape(app.name))
                ownaddress.remove_groups([group] if group is not None else [])

    def _group_of(self, pid: int) -> Path | None:
        """Return the control group of a program of ours; a runtime that was taken over has called it otherwise."""
        with contextlib.suppress(OSError):  # it has ended
            return ownaddress.group_of(pid)
        return None

    def _cgroup(self, name: str) -> Path | None:
        return ownaddress.make_group(f"{ownaddress.PREFIX}{self._run}-{name}")

    def _remove_cgroups(self, pattern: str) -> None:
        """Remove the control groups of programs whose names fit a pattern (fnmatch(3))."""
        ownaddress.remove_groups(ownaddress.find_groups(f"{ownaddress.PREFIX}{self._run}-{pattern}"))

    def _terminate(self, app: App, timeout: float) -> int | None:
        """Ask a program to end, make it end if it does not; return its exit status if known."""
        pid = app.pid
        if pid == 0:  # a member of a group that has ended before
            return None
        if isinstance(app, Member) or tree.catches(pid, signal.SIGTERM):
            self.custody.kill(pid, signal.SIGTERM)
            if self.custody.wait(pid, timeout):
                return self.custody.exit_status(pid)
        # Without a handler PID 1 of a namespace ignores every signal but this one.
        self.custody.kill(pid, signal.SIGKILL)
        self.custody.wait(pid, timeout)
        return self.custody.exit_status(pid)

    def is_running(self, app: App) -> bool:
        """Say whether the program runs."""
        return self.custody.is_running(app.pid)

    def ending(self, app: App) -> dict[str, Any] | None:
        """Return how the program has ended, as the report's "ended"; None if it runs."""
        if self.is_running(app):
            return None
        self.custody.wait(app.pid, REAP_TIMEOUT)
        return ending(self.custody.exit_status(app.pid))

    def sockets(self, app: App) -> list[InetSocket]:
        """List the Internet sockets of the program."""
        inodes = tree.socket_inodes(tree.open_files(tree.processes(app.pid)))
        with Diag(app.host.pid) as diag:
            return [socket for socket in diag.inet() if socket.inode in inodes]

    def check(self, app: App, destination: Host, surroundings: Surroundings = NOWHERE) -> None:
        """Refuse a program that CRIU could not carry, or any if there is no CRIU."""
        try:
            assert self.criu
            preload.library()
        except (CriuMissing, preload.CannotMake) as ex:
            raise Refused(str(ex)) from ex
        if (reason := refusals.find(app, destination)) is not None:
            raise Refused(f"{app.name} cannot be moved: {reason}")
        baggage.check(app, destination)
        check_unix(app, surroundings)

    def image_estimate(self, app: App) -> int:
        """Bound the size of the checkpoint by the resident memory."""
        return tree.resident_bytes(tree.processes(app.pid))

    def choose(self, app: App, destination: Host, wish: Wish) -> Choice:
        """Settle how the program's memory moves; the kernel is asked once, when a mode depends on it."""
        size = self.image_estimate(app)
        if self.kernel is None and (wish.mode in (Mode.PRE, Mode.LAZY) or size > SMALL):
            self.kernel = probe(self.criu, self.custody, app.host.pid)
        can_network = app.host.management is not None and destination.management is not None
        has_locks = tree.holds_locks(tree.processes(app.pid))
        rate = None
        if size > SMALL and can_network and wish.via is not Via.SHARED:
            rate = link.bandwidth(app.host)
        return choose(
            app.name, wish, size, self.kernel or NO_KERNEL, can_network, has_locks=has_locks, rate=rate
        )

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
    ) -> ProcessPassage:
        """Start the CRIU workers of one migration; without `is_alone` other programs are frozen at the same time."""
        return ProcessPassage(
            self.criu,
            self.custody,
            app,
            destination,
            folder,
            lock=lock,
            deadline=deadline,
            choice=choice,
            is_alone=is_alone,
        )

    def end_leftovers(self) -> None:
        """End the CRIU workers of an earlier controller, which by themselves let go of what they hold.

        A post-copy that was committed goes on without a controller. It is waited for: killed, its daemon would
        leave a program whose missing pages are zeros.
        """
        for pid in self.custody.children("worker"):
            if lazy.fetches_pages(pid):
                self.custody.wait(pid, POST_COPY_TIMEOUT)
        for pid in self.custody.children("worker"):
            self.custody.kill(pid, signal.SIGCONT)  # a dump worker whose program had just ended is stopped
        deadline = time.monotonic() + LEFTOVER_TIMEOUT
        for pid in self.custody.children("worker"):
            left = 0.0 if waits_at_gate(pid) else deadline - time.monotonic()
            if not self.custody.wait(pid, max(0.0, left)):
                self.custody.kill(pid, signal.SIGKILL)
                self.custody.wait(pid, 5)
        pipelimit.put_back()

    def end_copy(self, pid: int, *, if_half_built: bool) -> None:
        """End a restored program: in any case, or only if it has not run yet."""
        if self.custody.is_running(pid) and (is_half_built(pid) or not if_half_built):
            end_silently([pid], lambda pid: self.custody.kill(pid, signal.SIGKILL))
            self.custody.wait(pid, 5)

    def wake(self, app: App) -> None:
        """Let a program run on that a checkpoint which nobody ended has stopped."""
        wake(app.pid)
        in_netns(app.host.pid, remove_criu_tables)

    def revive(self, app: App, host: Host, images: Path, note: Note) -> int:
        """Restore a program that a crash has ended from what its migration left; see recovery.py."""
        home.gather(images.parent)
        return revive(self.criu, self.custody, app, host, images, images.parent, note)

    def tidy(self, app: App, other: Host) -> None:
        """Remove what a migration whose controller was killed has left on the host that a program is not on."""
        clean(app.host, other)
        baggage.tidy(app, other, self.custody)

    def close(self) -> None:
        """End every program."""
        left = []
        with contextlib.suppress(MigrationError):  # there is no keeper any more
            left = [self._group_of(pid) for pid in self.custody.children("program", "restored")]
        self.custody.close()
        self._remove_cgroups("*")
        ownaddress.remove_groups([group for group in left if group is not None])

    def __enter__(self) -> ProcessRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
