"""One program on its way from host to host, by CRIU: see runtime.Passage."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import baggage, messages, tree
from .attributes import Inherited, told_again
from .criu import DUMP_LOG, RESTORE_LOG, Criu, Gate, Worker
from .custody import Custody, HasDescriptor
from .deadline import Deadline
from .errors import CriuFailed, MemoryLost, MigrationError
from .firewall import remove_criu_tables
from .freezer import end_silently, is_half_built, pin, wake
from .guard import LOG, PINNED, Guard, make_log
from .images import FILES_IMAGE, INVENTORY_IMAGE, has_locks
from .journal import Note
from .model import App, Host
from .namespaces import URGENT, in_netns
from .proccover import ProcCover
from .processors import Apart
from .repair import unrepair
from .restarting import Restarts
from .revival import revive
from .runtime import Releasing, nothing_to_release
from .slowness import scaled
from .terminals import Terminals
from .transfer.carrier import Carrier
from .transfer.modes import Choice
from .uncarried import STATE_FILE, Baseline, State

GATE_TIMEOUT = scaled(5.0)
# What a restore asks before post-restore: pre-restore, setup-namespaces, post-setup-namespaces; the latter two since
# what it restores has a namespace of its own, as all that the keeper starts has.
ASKED_BEFORE = 3
ANNOUNCE_TIMEOUT = scaled(0.3)  # in which a restore that goes on has told of its program
SETTLE_TIME = scaled(0.05)  # in which what a killed worker had ordered takes place


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
        is_alone: bool = True,
    ) -> None:
        """Start the workers; without `is_alone` other programs are frozen at the same time."""
        self._deadline, self._is_alone = deadline, is_alone
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
        self._is_under_way = self._is_frozen = self._is_complete = self._is_pinned = False
        self._frozen: list[int] = []
        """The processes of the original, which do not change any more once CRIU has stopped them."""
        self._has_locks = False
        self._has_begun = self._has_ended = False
        self._is_broken = self._was_dumper_killed = False
        self._copy = 0
        self._original = os.pidfd_open(app.pid)
        self._apart = Apart(tree.processes(app.pid))
        self._proc: ProcCover | None = None
        self._guard: Guard | None = None
        self._baseline = Baseline({})
        self._state = State()
        """What CRIU does not carry."""
        self._terminals = Terminals()
        """What has been taken from its terminals, and belongs to whichever runs on."""
        self._workers: list[Worker] = []
        self._carrier: Carrier | None = None
        self.has_run = False
        """The copy may have executed an instruction: its restore worker was told to let it go."""
        self._is_half_let_go = False
        """The restore worker was told to go on from where "no" would have made it end the copy."""
        try:
            self._get_ready(choice)
        except BaseException:
            for worker in self._workers:
                worker.is_stuck = True  # one that stands at its gate hears nothing but a signal
            self.close()
            raise

    def _start(
        self,
        place: int,
        action: str,
        log: Path,
        *files: HasDescriptor,
        copy_mounts: bool = False,
        undo: Path | None = None,
        inherited: Inherited | None = None,
    ) -> Worker:
        worker = Worker(
            self._criu,
            self._custody,
            place,
            action,
            log,
            *files,
            deadline=self._deadline,
            copy_mounts=copy_mounts,
            undo=undo,
            inherited=inherited,
        )
        worker.set_priority(0)  # for now: another program may be standing still
        self._workers.append(worker)
        return worker

    def _get_ready(self, choice: Choice) -> None:
        """Let all workers do what needs no frozen program: mostly probing the kernel, some 30 ms."""
        source, destination = self._source, self._destination
        self._restarts = Restarts(messages.load(messages.CORE), messages.load(messages.PSTREE))
        self._baseline = Baseline.look(self._pid, source, destination)
        self._told_again = list(told_again(tree.processes(self._pid)))
        self._baggage.first_pass()
        has_host_mounts = self._app.container is None
        self._restorer = self._start(
            destination.pid,
            f"restore it on {destination.name}",
            self.moved / RESTORE_LOG,
            *self._baggage.restorer_files,
            copy_mounts=has_host_mounts,
            inherited=self._baseline.inherited,
        )
        groups = self._baggage.groups
        baggage.note_groups(self._folder, groups)
        baggage.enter_groups(self._restorer, groups)
        # CRIU carries no mounts that it has itself. Those of a container are its own, and go along.
        place = self._pid if has_host_mounts else source.pid
        if has_host_mounts:
            self._proc = ProcCover(self._custody, self._pid)
        self._carrier = carrier = Carrier(
            self._criu, self._custody, self._pid, source, destination, self._folder, choice, place=place
        )
        self._restorer.request(
            "RESTORE",
            self.moved,
            lock=self._lock,
            adjust=lambda o: _both(o, carrier.adjust_restore, self._baggage.adjust_restore),
        )
        self._restorer.agree_ahead(ASKED_BEFORE)
        make_log(undo := self._folder / LOG)
        self._dumper = self._start(
            place,
            f"checkpoint it on {source.name}",
            self.images / DUMP_LOG,
            *carrier.dumper_files,
            undo=undo,
        )
        self._dumper.request(
            "DUMP",
            self.images,
            pid=self._pid,
            lock=self._lock,
            adjust=lambda o: _both(o, carrier.adjust_dump, self._baggage.adjust_dump),
        )
        self._dumper.wait_for("pre-dump")
        self._guard = Guard(self._custody, self._dumper.pid, self._pid, undo)
        carrier.wait_until_ready()
        if self._proc is not None:
            self._proc.wait_until_ready()
        self._gate.wait_for(self._restorer.pid, GATE_TIMEOUT)
        self._guard.wait_until_ready()

    def take_turn(self) -> None:
        """See runtime.Passage; from here on the workers go ahead of others."""
        for worker in (self._dumper, self._restorer):
            worker.set_priority(URGENT)
        self._restarts.look(tree.processes(self._pid))
        if not self._is_alone:
            return  # others are restored beside it, and none of them is to be behind
        workers = [self._dumper] if self._apart.is_tree else [self._dumper, self._restorer]
        self._apart.begin([worker.pid for worker in workers], self.carrier.helpers)

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

    def start_freeze(self) -> bool:
        """Let the dump worker go on: it prepares itself (0.7 ms), stops the program, and waits before its sockets."""
        self._dumper.answer(True)
        self._is_under_way = True
        return True

    def freeze(self, stopped: Callable[[], None] = lambda: None) -> None:
        """Let the dump worker go on, up to the complete image."""
        self.stop()
        stopped()
        self.dump()

    def stop(self) -> None:
        """Let the dump worker stop all processes; of their sockets it has not looked at one yet."""
        if not self._is_under_way:
            self.start_freeze()
        with self._guarded():
            self._dumper.wait_for("query-ext-files")
        self._restarts.stopped()

    def dump(self) -> None:
        """Let the dump worker write the image of the stopped processes."""
        with contextlib.ExitStack() as stack:
            if self._proc is not None:
                stack.enter_context(self._proc)
                self._check_ipc(self._proc)
            self._write_image()

    def _check_ipc(self, proc: ProcCover) -> None:
        """See that CRIU carries the IPC namespace of a program that has objects of System V there."""
        if not proc.has_ipc:
            return
        try:
            is_criu_inside = tree.namespace(self._dumper.pid, "ipc") == tree.namespace(self._pid, "ipc")
        except (FileNotFoundError, ProcessLookupError) as ex:
            raise self._dumper.failure() from ex
        if is_criu_inside:
            raise MigrationError(
                f"{self._app.name} has made its first object of System V IPC while it got ready to move; try again"
            )

    def _write_image(self) -> None:
        with self._guarded(), self.carrier.freezing():
            self._frozen = tree.processes(self._pid)
            self._terminals.take(self._pid, self._frozen, self._folder)
            self._dumper.answer(True)
            # While CRIU is at work, for nobody has to wait for it then.
            self._state = State.read(self._frozen, self._baseline)
            self._state.warnings += [*self._terminals.warnings, *self._told_again]
            self._dumper.wait_for("post-dump", self.carrier.early)
            if self.carrier.keeps_source:
                self.carrier.frozen(self._frozen)
            else:
                self._pin(self._frozen)
            if self._dumper.has_ended():  # before it was pinned, perhaps, and then it has run
                raise self._dumper.failure()
        self._is_frozen = self._is_complete = True
        assert self._guard is not None
        self._guard.end()
        self._has_locks = has_locks(self.images)
        self._state.check(self._app.name)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """When what is done here fails because CRIU has ended, see the program as it was before CRIU came."""
        try:
            yield
        except MigrationError:
            if self._dumper.is_stuck:
                self._dumper.kill()
            if self._dumper.has_ended():
                self._is_broken = True
                assert self._guard is not None
                if (status := self._guard.finish()) is None:
                    # Sockets may be in repair mode: nothing must run before `back_out` has seen to them.
                    self._pin(self._frozen)
                self._is_pinned = self._is_pinned or status == PINNED
                self._was_dumper_killed = self._dumper.was_killed()
            raise

    def transfer(self, changed: Mapping[str, bytes]) -> int:
        """Bring the image to the destination, and what has changed of the working files."""
        if FILES_IMAGE in changed:
            marked = self._state.marked(changed[FILES_IMAGE], self.images, self._criu.fdinfo)
            changed = {**changed, FILES_IMAGE: marked}
        (self._folder / STATE_FILE).write_text(json.dumps(self._state.to_json()))
        restarted = self._restarts.change(self.images, self._frozen)
        return self.carrier.carry({**changed, **restarted}) + self._baggage.final_pass()

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
        self.carrier.restore_begun()
        with self.carrier.building(self._dumper) as watch:
            self._copy = self._restorer.wait_for("post-restore", watch)
        self._apart.give_back(self._copy, is_alone=len(self._frozen) == 1)
        self._custody.announced.add(self._copy)
        copies = tree.processes(self._copy)
        self._state.give(copies, self._baseline.places, self._folder)
        self._terminals.give(self._copy, copies)
        self.carrier.built()
        self._restarts.write(self._app, self._copy, self._deadline)
        return self._copy

    @property
    def warnings(self) -> Sequence[str]:
        """What the copy has lost."""
        return [*self._state.warnings, *self._baggage.warnings, *self.carrier.warnings]

    def end_source(self) -> None:
        """End what the dump worker froze.

        The signal alone makes sure that the frozen program does not run one instruction more (it is PID 1 of its
        namespace, and takes the rest of its tree along), so the copy need not wait for its end. In post-copy it comes
        after the last page: until the copy runs the original is still the way back, and then it stands still.
        """
        if self._restorer.has_ended():
            raise self._restorer.failure()
        self.carrier.commit(self._dumper, self._kill_source)
        if self.carrier.keeps_source:
            return
        self._is_frozen = False
        self._has_ended = True
        # At once, since one that loses its controller would give the sockets back to the network, and close them. But
        # what it has to do takes time, its own and the kernel's, and the copy has none.
        if not self.has_locks:
            self._dumper.pause()
        with contextlib.suppress(CriuFailed):  # it has been killed, too, and is not needed any more
            self._dumper.answer(True)
        if self.has_locks:
            self._let_go_sockets()  # and with them whatever else it may have open: the copy wants the locks

    def _kill_source(self) -> None:
        signal.pidfd_send_signal(self._original, signal.SIGKILL)

    def resume(self, releasing: Releasing = nothing_to_release) -> None:
        """Let the restore worker go on until the copy runs, TCP having left repair mode.

        Nobody waits for either worker's end here, lest they take time from the copy and from what it waits for.
        """
        try:
            self._is_half_let_go = True
            begin = self._come_to("pre-resume", releasing)
            begin()
            if not self.has_run:
                self.has_run = True  # killed from here on, the worker lets it go as well
                self._come_to("post-resume")
        finally:
            self._apart.end()
        if self.carrier.keeps_source:
            self._is_frozen = False
            self._has_ended = True
            self.carrier.running(self._frozen, self._kill_source)
            self._apart.leave()  # the last page may be seconds away
            self._finish_restore()  # its daemon has to hear of the end
            return
        if self._lock == "NFTABLES":
            self.bury_source()  # nothing else keeps back what its kernel may go on sending

    def _come_to(self, script: str, releasing: Releasing = nothing_to_release) -> Callable[[], None]:
        """Let the restore worker go on up to a notification; return what lets packets go by then."""
        begin: Callable[[], None] | None = None
        try:
            self._restorer.answer(True)
            begin = releasing()
            self._restorer.wait_for(script)
        except MigrationError:
            # A worker that was killed on the way may have let the copy go before: then it is the one that runs.
            self._restorer.kill()
            time.sleep(SETTLE_TIME)
            self.has_run = self.has_run or self._has_copy_run()
            if not self.has_run:
                raise
            unrepair(tree.processes(self._copy), probe=True)
        return begin or releasing()

    def _has_copy_run(self) -> bool:
        """Return True if the copy, whose worker was killed, runs, or has come to an end of its own.

        What CRIU has left half-done ends by a signal.
        """
        if self._custody.is_running(self._copy):
            return not is_half_built(self._copy)
        status = self._custody.exit_status(self._copy)
        return status is not None and status >= 0

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
        self._dumper.go_on()
        self._dumper.drain()

    def complete(self) -> None:
        """Wait for what post-copy still has to bring."""
        self.carrier.complete(self._copy, self._deadline)

    def account(self) -> dict[str, Any]:
        """Say how the memory moved."""
        return self.carrier.report()

    def back_out(self) -> None:
        """Kill the copy first, then thaw the original."""
        self._apart.end()
        self.carrier.stand_down()
        self._destroy_copy()
        if self.carrier.back_out(self._dumper, tree.processes(self._pid)):
            self._is_frozen = False
        if not self._custody.is_running(self._pid):
            # CRIU holds its sockets still, in repair mode. Killed, it closes them without a word to the peers.
            self._custody.kill(self._dumper.pid, signal.SIGKILL)
        else:
            self._terminals.give_back(self._pid, self._folder)
            if self._is_frozen:
                with contextlib.suppress(CriuFailed):
                    self._dumper.answer(False)
        # Before the freeze, hanging up is enough: CRIU waits at pre-dump and has touched nothing.
        self._dumper.close()
        self._is_frozen = False
        if not self._custody.is_running(self._pid):
            raise MigrationError(f"process {self._pid} did not outlive the attempt")
        if self._is_pinned:
            wake(self._pid)
        if self._is_pinned or self._is_broken:
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
        if self._is_half_let_go and self._copy:  # the worker would let it go, whatever it is told
            end_silently([self._copy], lambda pid: self._custody.kill(pid, signal.SIGKILL))
        elif self._copy and not self._restorer.is_stuck:
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
            raise MemoryLost(self._how_it_was_lost())
        if not self._has_ended and self._custody.is_running(self._pid):
            self.back_out()
            return self._pid
        self._destroy_copy()
        self.carrier.release_source()
        if self._has_ended and not self.carrier.keeps_source:
            self._let_go_sockets()
        if not self._custody.wait_for_death(self._pid, 5):  # it has ports that are needed again
            raise MigrationError(f"process {self._pid} was killed but did not end")
        self.carrier.bring_back()
        pid = revive(self._criu, self._custody, self._app, self._source, self.images, self._folder, note)
        self.has_run = False  # what counts is here
        return pid

    def _how_it_was_lost(self) -> str:
        if self._was_dumper_killed:
            return (
                f"process {self._pid} ended when CRIU was killed that had it in its hands, "
                "its image not yet complete"
            )
        self._custody.wait(self._pid, SETTLE_TIME)
        how, status = "has ended", self._custody.exit_status(self._pid)
        if status is not None and status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        return f"process {self._pid} {how} before its image was complete"

    def close(self) -> None:
        """Hang up on the workers, and take away the firewall tables that a locked dump leaves."""
        self._apart.end()
        if self._proc is not None:
            self._proc.close()
        if self._guard is not None:
            self._guard.close()
        try:
            self._let_go()
        finally:
            self._apart.leave()

    def _let_go(self) -> None:
        if self._has_ended and not self.carrier.keeps_source:
            self._let_go_sockets()
        if self._carrier is not None:
            self._carrier.close()  # which may still have to end the original
        if self._original >= 0:
            os.close(self._original)
            self._original = -1
        if self._has_ended:
            self._custody.wait(self._pid, 5)
        if self.has_run:
            self._finish_restore()
        for worker in self._workers:
            worker.close()
        self._baggage.close(self._copy if self.has_run else 0)
        if self._lock == "NFTABLES":
            for host in (self._source, self._destination):
                in_netns(host.pid, remove_criu_tables)


def _both(options: Any, *adjust: Callable[[Any], None]) -> None:
    for one in adjust:
        one(options)
