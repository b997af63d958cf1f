"""Programs that run as plain processes in hosts: starting, ending and moving them with CRIU."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import baggage, refusals, tree
from .criu import DUMP_LOG, RESTORE_LOG, Criu, Gate, Worker, is_at_gate
from .custody import Custody, HasDescriptor
from .deadline import Deadline
from .diag import Diag
from .errors import CriuFailed, CriuMissing, LaunchFailed, MemoryLost, MigrationError, Refused
from .freezer import end_silently, is_half_built, pin, wake
from .groups import Member
from .images import FILES_IMAGE, INVENTORY_IMAGE, LOCKS_IMAGE, rewrite_files, split
from .inet import InetSocket, Relocation
from .journal import Note
from .model import App, Host, Volume
from .namespaces import URGENT, WHEN_IDLE, in_netns
from .neighbours import NOWHERE, Surroundings, check_unix
from .repair import unrepair
from .streams import inner_streams
from .transfer import home, lazy, pipelimit
from .transfer.carrier import Carrier
from .transfer.modes import SMALL, STOP_SHARED, Choice, Kernel, Mode, Wish, choose, probe
from .turns import turn_of
from .volumes import create, detach
from .workspace import fill

GATE_TIMEOUT = 5.0
NO_KERNEL = Kernel(tracks_dirty=False, has_userfault=False)
POST_COPY_TIMEOUT = 600.0
LEFTOVER_TIMEOUT = 5.0  # in which a worker whose controller is gone ends by itself
ANNOUNCE_TIMEOUT = 0.3  # in which a restore that goes on has told of its program
SETTLE_TIME = 0.05  # in which what a killed worker had ordered takes place


class ProcessRuntime:
    """Starts programs so that CRIU can always dump them, and owns them until closed."""

    name = "process"

    def __init__(self, criu: Criu | None = None, custody: Custody | None = None) -> None:
        self._criu = criu
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
            pid = self.custody.spawn(host.pid, argv, environment, cwd, log.absolute())
        except MigrationError as ex:
            for volume in made:
                detach(volume, host)
            raise LaunchFailed(f"{name} could not be started on {host.name}: {ex}") from ex
        return App(name, host, pid, log.absolute(), volumes=made)

    def launch_group(self, name: str, host: Host, log: Path, *, cwd: Path = Path("/")) -> App:
        """Make an empty group in a host: an init of its own, which reaps; programs join it with `launch_in`."""
        try:
            pid = self.custody.spawn_group(host.pid, name, cwd)
        except LaunchFailed as ex:
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
            inner = self.custody.join(group.host.pid, group.pid, argv, environment, cwd, log)
        except MigrationError as ex:
            raise LaunchFailed(
                f"{name} could not be started in {group.name} on {group.host.name}: {ex}"
            ) from ex
        if log not in group.more_logs:
            group.more_logs.append(log)
        return Member(name, group, inner, log)

    def terminate(self, app: App, timeout: float = 3.0) -> int | None:
        """Ask a program to end, make it end if it does not; return its exit status if known. Its files go, too."""
        try:
            return self._terminate(app, timeout)
        finally:
            baggage.throw_away(app, self.custody)

    def _terminate(self, app: App, timeout: float) -> int | None:
        """Ask a program to end, make it end if it does not; return its exit status if known."""
        pid = app.pid
        if pid == 0:  # a member of a group that has ended before
            return None
        if isinstance(app, Member) or _catches(pid, signal.SIGTERM):
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

    def sockets(self, app: App) -> list[InetSocket]:
        """List the Internet sockets of the program."""
        inodes = tree.socket_inodes(tree.open_files(tree.processes(app.pid)))
        with Diag(app.host.pid) as diag:
            return [socket for socket in diag.inet() if socket.inode in inodes]

    def check(self, app: App, destination: Host, surroundings: Surroundings = NOWHERE) -> None:
        """Refuse a program that CRIU could not carry, or any if there is no CRIU."""
        try:
            assert self.criu
        except CriuMissing as ex:
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
        return choose(app.name, wish, size, self.kernel or NO_KERNEL, can_network, has_locks=has_locks)

    def open_passage(
        self,
        app: App,
        destination: Host,
        folder: Path,
        *,
        lock: bool,
        deadline: Deadline,
        choice: Choice = STOP_SHARED,
        in_turn: bool = True,
    ) -> ProcessPassage:
        """Start the CRIU workers of one migration; without `in_turn` the caller sees to it that no other dump comes
        in between."""
        return ProcessPassage(
            self.criu,
            self.custody,
            app,
            destination,
            folder,
            lock=lock,
            deadline=deadline,
            choice=choice,
            in_turn=in_turn,
        )

    def end_leftovers(self) -> None:
        """End the CRIU workers of an earlier controller, which by themselves let go of what they hold.

        A post-copy that was committed goes on without a controller. It is waited for: killed, its daemon would
        leave a program whose missing pages are zeros.
        """
        for pid in self.custody.children("worker"):
            if lazy.fetches_pages(pid):
                self.custody.wait(pid, POST_COPY_TIMEOUT)
        deadline = time.monotonic() + LEFTOVER_TIMEOUT
        for pid in self.custody.children("worker"):
            left = 0.0 if _waits_at_gate(pid) else deadline - time.monotonic()
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
        baggage.tidy(app, other, self.custody)

    def close(self) -> None:
        """End every program."""
        self.custody.close()

    def __enter__(self) -> ProcessRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessPassage:
    """One process tree on its way; see runtime.Passage."""

    def __init__(
        self,
        criu: Criu,
        custody: Custody,
        app: App,
        destination: Host,
        folder: Path,
        *,
        lock: bool,
        choice: Choice,
        deadline: Deadline,
        in_turn: bool = True,
    ) -> None:
        """Start the workers; without `in_turn` the caller sees to it that no other dump comes in between."""
        self._deadline = deadline
        self._criu, self._custody = criu, custody
        self._app, self._pid, self._source = app, app.pid, app.host
        self._destination = destination
        self._baggage = baggage.baggage_of(app, destination, custody)
        self._lock = "NFTABLES" if lock else "SKIP"
        self._folder = folder
        self.images, self.moved = folder / "images", folder / "moved"
        for path in (self.images, self.moved):
            path.mkdir(mode=0o700)
        self._gate = Gate(self.moved / INVENTORY_IMAGE)
        self._is_frozen = self._is_complete = self._is_pinned = False
        self._frozen: list[int] = []
        """The processes of the original, which do not change any more once CRIU has stopped them."""
        self._has_locks = False
        self._has_begun = self._has_ended = False
        self._copy = 0
        self._original = os.pidfd_open(app.pid)
        self._turn = contextlib.ExitStack()
        self._workers: list[Worker] = []
        self._carrier: Carrier | None = None
        self._has_run = False
        try:
            self._get_ready(choice, in_turn)
        except BaseException:
            for worker in self._workers:
                worker.is_stuck = True  # one that stands at its gate hears nothing but a signal
            self.close()
            raise

    def _start(self, host: Host, action: str, log: Path, *files: HasDescriptor) -> Worker:
        worker = Worker(self._criu, self._custody, host.pid, action, log, *files, deadline=self._deadline)
        self._workers.append(worker)
        return worker

    def _get_ready(self, choice: Choice, in_turn: bool) -> None:
        """Let all workers do what needs no frozen program: mostly probing the kernel, some 30 ms."""
        source, destination = self._source, self._destination
        self._baggage.first_pass()
        self._restorer = self._start(
            destination,
            f"restore it on {destination.name}",
            self.moved / RESTORE_LOG,
            *self._baggage.restorer_files,
        )
        self._baggage.receive(self._restorer)
        self._carrier = carrier = Carrier(
            self._criu, self._custody, self._pid, source, destination, self._folder, choice
        )
        self._restorer.request(
            "RESTORE",
            self.moved,
            lock=self._lock,
            adjust=lambda o: _both(o, carrier.adjust_restore, self._baggage.adjust_restore),
        )
        self._dumper = self._start(
            source, f"checkpoint it on {source.name}", self.images / DUMP_LOG, *carrier.dumper_files
        )
        self._dumper.request(
            "DUMP",
            self.images,
            pid=self._pid,
            lock=self._lock,
            adjust=lambda o: _both(o, carrier.adjust_dump, self._baggage.adjust_dump),
        )
        self._dumper.wait_for("pre-dump")
        carrier.wait_until_ready()
        self._gate.wait_for(self._restorer.pid, GATE_TIMEOUT)
        # Before packets are held: one has to wait for it.
        if in_turn:
            self._turn.enter_context(turn_of(tree.processes(self._pid)))

    @property
    def carrier(self) -> Carrier:
        """The way of the image."""
        assert self._carrier is not None
        return self._carrier

    @property
    def parts(self) -> Sequence[ProcessPassage]:
        """There is one image."""
        return (self,)

    @property
    def copies(self) -> Sequence[int]:
        """What has been restored."""
        return (self._copy,) if self._copy else ()

    @property
    def has_ended(self) -> bool:
        """Say whether the original was told to end."""
        return self._has_ended

    def freeze(self, stopped: Callable[[], None] = lambda: None) -> None:
        """Let the dump worker go on, up to the complete image."""
        with self._turn:
            self.stop()
            stopped()
            self.dump()

    def stop(self) -> None:
        """Let the dump worker stop all processes; of their sockets it has not looked at one yet."""
        self._dumper.answer(True)
        self._dumper.wait_for("query-ext-files")

    def dump(self) -> None:
        """Let the dump worker write the image of the stopped processes."""
        with self.carrier.freezing():
            self._dumper.answer(True)
            self._frozen = tree.processes(self._pid)
            try:
                self._dumper.wait_for("post-dump", self.carrier.early)
            except MigrationError:
                if self._dumper.is_stuck:
                    self._dumper.kill()
                if self._dumper.has_ended():
                    # It may have left sockets in repair mode: nothing must run before `back_out` has seen to them.
                    self._pin(self._frozen)
                raise
        self._is_frozen = self._is_complete = True
        locks = self.images / LOCKS_IMAGE
        self._has_locks = locks.exists() and split(locks.read_bytes())[1] != []
        if not self.carrier.keeps_source:
            self._pin(self._frozen)  # in post-copy, the carrier does
        self.carrier.frozen(self._frozen)

    def transfer(self, changed: Mapping[str, bytes]) -> int:
        """Bring the image to the destination, and what has changed of the working files."""
        return self.carrier.carry(changed) + self._baggage.final_pass()

    @property
    def has_locks(self) -> bool:
        """Say whether the image holds file locks."""
        return self._has_locks

    def restore(self, begun: Callable[[], None] = lambda: None) -> int:
        """Open the gate, and stop where everything is built but has not run."""
        inventory = self.carrier.restoring(self._dumper)
        self._has_begun = True
        try:
            self._gate.open(inventory, self._restorer.has_ended)
        except OSError as ex:
            raise self._restorer.failure() from ex
        begun()
        self._copy = self._restorer.wait_for("post-restore")
        self._custody.announced.add(self._copy)
        self.carrier.built()
        return self._copy

    def end_source(self) -> None:
        """End what the dump worker froze.

        The signal alone makes sure that the frozen program does not run one instruction more (it is PID 1 of its
        namespace, and takes the rest of its tree along), so the copy need not wait for its end.
        """
        if self._restorer.has_ended():
            raise self._restorer.failure()
        self.carrier.commit(
            self._dumper,
            self._frozen,
            lambda: signal.pidfd_send_signal(self._original, signal.SIGKILL),
        )
        self._is_frozen = False
        self._has_ended = True
        if self.carrier.keeps_source:
            return
        # At once, since one that loses its controller would give the sockets back to the network, and close them. But
        # what it has to do has time: the copy has not.
        self._dumper.set_priority(WHEN_IDLE)
        with contextlib.suppress(CriuFailed):  # it has been killed, too, and is not needed any more
            self._dumper.answer(True)
        if self.has_locks:
            self._let_go_sockets()  # and with them whatever else it may have open: the copy wants the locks

    def resume(self) -> None:
        """Let the restore worker go on until the copy runs, TCP having left repair mode.

        Nobody waits for either worker's end here, lest they take time from the copy and from what it waits for.
        """
        try:
            self._restorer.answer(True)
            self._restorer.wait_for("post-resume")
        except MigrationError:
            # A worker that was killed on the way may have let the copy go before: then it is the one that runs.
            self._restorer.kill()
            time.sleep(SETTLE_TIME)
            if not self._custody.is_running(self._copy) or is_half_built(self._copy):
                raise
            unrepair(tree.processes(self._copy), probe=True)
        self._has_run = True
        if self.carrier.keeps_source:
            self._finish_restore()  # its daemon has to hear of the end
        elif self._lock == "NFTABLES":
            self.bury_source()  # nothing else keeps back what its kernel may go on sending

    def _finish_restore(self) -> None:
        with contextlib.suppress(CriuFailed):
            self._restorer.answer(True)
        self._restorer.drain()

    def bury_source(self) -> None:
        """Return when the original is gone and its sockets are closed.

        CRIU has copies of them while it lives, and their kernel may go on sending what was queued. In post-copy its
        connections were taken from it, and CRIU holds its remains until the last page.
        """
        if self.carrier.keeps_source:
            return
        self._let_go_sockets()
        self._dumper.close()
        if not self._custody.wait_for_death(self._pid, 5):
            raise MigrationError(f"process {self._pid} was checkpointed but did not end")

    def _let_go_sockets(self) -> None:
        """See the dump worker end, whose copies of the dead original's sockets take their ports."""
        self._dumper.set_priority(URGENT)
        self._dumper.drain()

    def complete(self) -> None:
        """Wait for what post-copy still has to bring."""
        self.carrier.complete(self._copy)

    def account(self) -> dict[str, Any]:
        """Say how the memory moved."""
        return self.carrier.report()

    def back_out(self) -> None:
        """Kill the copy first, then thaw the original."""
        self.carrier.stand_down()
        self._destroy_copy()
        if self.carrier.back_out(self._dumper, tree.processes(self._pid)):
            self._is_frozen = False
        if not self._custody.is_running(self._pid):
            # CRIU holds its sockets still, in repair mode. Killed, it closes them without a word to the peers.
            self._custody.kill(self._dumper.pid, signal.SIGKILL)
        elif self._is_frozen:
            with contextlib.suppress(CriuFailed):
                self._dumper.answer(False)
        # Before the freeze, hanging up is enough: CRIU waits at pre-dump and has touched nothing.
        self._dumper.close()
        self._is_frozen = False
        if not self._custody.is_running(self._pid):
            raise MigrationError(f"process {self._pid} did not outlive the attempt")
        if self._is_pinned:
            wake(self._pid)
            self._see_it_live()

    def _see_it_live(self) -> None:
        """See that a program survives a CRIU that was killed in the middle of its dump.

        CRIU makes what it dumps execute system calls, with other registers; those of its own may have been lost.
        """
        if not self._is_complete:
            time.sleep(SETTLE_TIME)
            if not self._custody.is_running(self._pid):
                raise MigrationError(f"process {self._pid} did not outlive the attempt")

    def _pin(self, pids: Iterable[int]) -> None:
        pin(pids)
        self._is_pinned = True

    def _destroy_copy(self) -> None:
        """End what the restore worker has built, and the worker; at its gate it hears nothing but a signal."""
        if self._copy and not self._restorer.is_stuck:
            # Told so, CRIU also takes back the files that it made for deleted ones.
            with contextlib.suppress(MigrationError):
                self._restorer.answer(False)
            self._restorer.drain()
        self._restorer.kill()
        copies = [self._copy] if self._copy else self._half_built()
        end_silently(copies, lambda pid: self._custody.kill(pid, signal.SIGKILL))
        for pid in copies:
            self._custody.wait(pid, 5)
        self._restorer.close()

    def _half_built(self) -> list[int]:
        """List what a restore worker that was killed has left: children of the keeper of which nobody will tell."""
        deadline = time.monotonic() + ANNOUNCE_TIMEOUT
        while (unknown := self._unannounced()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return unknown

    def _unannounced(self) -> list[int]:
        """List programs at the destination that are being restored, by our worker or for a moment by others."""
        here = Path(f"/proc/{self._destination.pid}/ns/net").readlink()
        found = []
        for pid in self._custody.children("restored") if self._has_begun else []:
            with contextlib.suppress(OSError):
                is_young = tree.start_time(pid) >= self._restorer.began
                is_here = Path(f"/proc/{pid}/ns/net").readlink() == here
                if is_young and is_here and pid not in self._custody.announced:
                    found.append(pid)
        return found

    def revive(self, note: Note) -> int:
        """Restore the untouched image where it came from, unless the original is still there."""
        if not self._is_complete and not self._custody.is_running(self._pid):
            raise MemoryLost(
                f"process {self._pid} ended when CRIU was killed that had it in its hands, its image not yet complete"
            )
        if not self._has_ended and self._custody.is_running(self._pid):
            self.back_out()
            return self._pid
        self._destroy_copy()
        if self._has_ended and not self.carrier.keeps_source:
            self._let_go_sockets()
        if not self._custody.wait_for_death(self._pid, 5):  # it has ports that are needed again
            raise MigrationError(f"process {self._pid} was killed but did not end")
        self.carrier.bring_back()
        pid = revive(self._criu, self._custody, self._app, self._source, self.images, self._folder, note)
        self._has_run = False  # what counts is here
        return pid

    def close(self) -> None:
        """Hang up on the workers, and take away the firewall tables that a locked dump leaves."""
        self._turn.close()
        if self._original >= 0:
            os.close(self._original)
            self._original = -1
        if self._has_ended and not self.carrier.keeps_source:
            self._let_go_sockets()
        if self._carrier is not None:
            self._carrier.close()
        if self._has_ended:
            self._custody.wait(self._pid, 5)
        if self._has_run:
            self._finish_restore()
        for worker in self._workers:
            worker.close()
        self._baggage.close(self._copy if self._has_run else 0)
        if self._lock == "NFTABLES":
            for host in (self._source, self._destination):
                in_netns(host.pid, remove_criu_tables)


def revive(
    criu: Criu,
    custody: Custody,
    app: App,
    host: Host,
    images: Path,
    parent: Path,
    note: Note,
) -> int:
    """Restore a checkpoint at the host that it was taken from; return the program's PID, noted before it runs."""
    folder = parent / "revived"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
    folder.mkdir(mode=0o700)
    stay = Relocation(host.address, host.address, {})
    if (parents := images / "parent").is_symlink():  # of the pages of pre-copy's rounds
        (folder / "parent").symlink_to(parents.readlink())
    files = (images / FILES_IMAGE).read_bytes()
    remove_ghosts(files, criu.fdinfo, baggage.root_of(app, host))
    rewritten = rewrite_files(files, stay, criu.fdinfo, app.logs)
    streams = inner_streams(images, rewritten.before, host.address, criu.tcp_stream)
    fill(images, folder, {FILES_IMAGE: rewritten.image, **streams})
    os.link(images / INVENTORY_IMAGE, folder / INVENTORY_IMAGE)
    action = f"restore it on {host.name}"
    with baggage.reviving(app, host, files, criu.fdinfo) as (descriptors, adjust):
        worker = Worker(criu, custody, host.pid, action, folder / RESTORE_LOG, *descriptors)
        try:
            worker.request("RESTORE", folder, adjust=adjust)
            pid = worker.wait_for("post-restore")
            custody.announced.add(pid)
            note(pid)
            worker.answer(True)
            worker.finish()
        finally:
            worker.close()
    baggage.revived(app, host, pid)
    return pid


def _both(options: Any, *adjust: Callable[[Any], None]) -> None:
    for one in adjust:
        one(options)


def remove_ghosts(files: bytes, fdinfo: Any, root: Path = Path("/")) -> None:
    """Remove the files that CRIU makes for deleted ones while it restores, and leaves when it is killed."""
    for message in split(files)[1]:
        entry = fdinfo.file_entry.FromString(message)
        if entry.HasField("reg"):
            path = root / entry.reg.name.lstrip("/")
            with contextlib.suppress(OSError, ValueError):
                for ghost in path.parent.glob(f"{glob.escape(path.name)}.cr.*.ghost"):
                    ghost.unlink()


def remove_criu_tables() -> None:
    """Delete CRIU's nftables tables in the current network namespace."""
    for line in _nft("list", "tables").splitlines():
        if line.split()[-1].startswith("CRIU-"):
            _nft("delete", *line.split())


def _nft(*words: str) -> str:
    # A session of its own: Ctrl-C at the terminal is not for it.
    done = subprocess.run(["nft", *words], capture_output=True, text=True, timeout=10, start_new_session=True)
    return done.stdout


def _waits_at_gate(pid: int) -> bool:
    try:
        return is_at_gate(pid)
    except OSError:
        return False


def _catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal."""
    for line in tree.read_or_empty(Path(f"/proc/{pid}/status")).splitlines():
        key, _, value = line.partition(":")
        if key == "SigCgt":
            return bool(int(value, 16) >> (number - 1) & 1)
    return False
