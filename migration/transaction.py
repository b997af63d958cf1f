"""One migration, step by step, and the way back from each of them.

    prepare → hold → checkpoint → rewrite → transfer → restore → switch over → release → verify

The original stays frozen, not dead, until the copy has been built, its sockets have been seen and the network
points at it. So whatever fails up to and including "switch over" is undone by killing the copy and thawing the
original: not a byte has moved. "release" ends the original, lets the copy run and then the packets go. What
fails after that is undone by a migration in the other direction, since the copy has a history by then. A copy that has
come to an end by then has ended: its image would do what it has done a second time.

"switch over" needs only what the image says, so it is done while the copy is being built: packets are held, and
nobody hears of it. Without a hold it has to wait for the copy's sockets.

Every step is journaled before it begins; the records in between ("move", "commit", "running") are what recovery.py
needs.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from enum import IntEnum
from pathlib import Path

from . import ownaddress, repair, rewriting, tree
from .arrival import make_room
from .cancellation import Cancellation
from .deadline import UNDO, Deadline, Timeouts
from .diag import Diag
from .dropping import Dropping, End
from .errors import MemoryLost, MigrationError, Refused, StepTimeout
from .groups import members
from .images import BadImage
from .inet import Address, InetSocket, Relocation, State, has_inner_connections
from .journal import WAY_BACK, Journal, app_to_json, host_to_json, move_to_json
from .namespaces import urgency
from .netstat import aborted_connections, opened_connections
from .preflight import Plan, check_ports
from .receivers import DatagramSockets
from .report import Connections, Event, OnEvent, Outcome, Phase, Report, StepTime
from .runtime import Passage, Runtime
from .slowness import scaled
from .steering import IpProtocol, Move, MovedConnection, MovedListener, Steering, SteeringError
from .streams import ends_of, reversed_ends
from .transfer.modes import Choice, Mode
from .volumes import covers
from .workspace import is_full, make_folder, remove_folder

# Called with a step's name and "before" or "after"; raises to make the step fail there.
Fault = Callable[[str, str], None]
SETTLE_TIMEOUT = scaled(0.5)
ACCEPT_TIMEOUT = scaled(5.0)  # seconds in which a program accepts one more of the connections that wait
FEW = 30  # connections that are looked up one by one: as long as that takes less than a list of all
# Pauses of a sender (pacing) are shorter on a loopback.
QUIET = 0.002
CALM = 16 << 10  # bytes in the send queues of a program that answers rather than streams
STEPS = (
    "prepare",
    "hold",
    "checkpoint",
    "rewrite",
    "transfer",
    "restore",
    "switch over",
    "release",
    "pages",  # of post-copy only: until the last one is there
    "verify",
)
# What is expected to happen; anything else is a bug, and undone all the same.
EXPECTED = (MigrationError, SteeringError, BadImage, OSError)


def no_fault(step: str, when: str) -> None:
    """Let every step be."""


class Stage(IntEnum):
    """How far the program itself has come."""

    UNTOUCHED = 0
    FROZEN = 1
    ENDED = 2  # neither runs: the original has ended, the copy has not begun
    MOVED = 3


class Transaction:
    """A migration under way."""

    def __init__(
        self,
        plan: Plan,
        runtime: Runtime,
        steering: Steering,
        folder: Path,
        journal: Journal,
        report: Report,
        on_event: OnEvent,
        fault: Fault,
        no_hold: bool,
        cancellation: Cancellation,
        timeouts: Timeouts,
    ) -> None:
        self.timeouts = timeouts
        self.deadline = Deadline(timeouts)
        self.plan, self.runtime, self.steering = plan, runtime, steering
        self.folder, self.journal, self.report = folder, journal, report
        self.on_event, self.fault, self.no_hold = on_event, fault, no_hold
        self.stage = Stage.UNTOUCHED
        self.move: Move = plan.move(plan.sockets)
        self.passage: Passage | None = None
        self.rewritten: rewriting.Images | None = None
        self.copy_pid = 0
        self.aborts_before = 0
        self.open_files = contextlib.ExitStack()
        self.has_arrived = False
        """The copy was let go as it should be."""
        self.is_lost = False  # the program runs nowhere: its image and journal are to be kept
        self.thread = threading.current_thread()  # the one whose waits the deadline bounds
        self.has_inner_connections = False
        self.closing: Sequence[InetSocket] = ()
        self.lost: Sequence[str] = ()
        self.handover: rewriting.Handover | None = None
        self.is_calm = False
        """It does not send much on its own: what it says within a few milliseconds may as well be held."""
        self.may_stop_early = False
        """Before the hold stands: nobody has connected to its host for some milliseconds, it has no connection to
        accept, and no datagram can wait that only it could read: no image has those."""
        self._network_touched = False
        self._receivers: DatagramSockets | None = None
        """The copy's UDP sockets, since before they got anything."""
        self._receiver_drops = 0
        self.cancellation = cancellation
        self._bytes: dict[str, int] = {}

    def run(self) -> Plan | None:
        """Do all steps, or undo those done. Return a plan for the way home if that takes a migration."""
        plan = self.plan
        self.journal.write(
            "begin",
            id=plan.identity,
            app=app_to_json(plan.app),
            destination=host_to_json(plan.destination),
            folder=str(self.folder),
        )
        try:
            self.do_steps()
            self.report.outcome = Outcome.COMPLETED
            self.report.warnings = [*self.way.warnings, *self.lost]
        except Exception as ex:
            self.report.reason = reason(ex)
            if is_full(self.folder):  # CRIU, whose log is there as well, cannot say it
                self.report.reason += f" (no room is left in {self.folder})"
            home = self.undo(isinstance(ex, MemoryLost))
            if isinstance(ex, Refused) and self.report.outcome is Outcome.ROLLED_BACK:
                self.report.outcome = Outcome.REFUSED
            return home
        except BaseException:
            self.report.reason = "interrupted"
            self.undo()
            raise
        finally:
            self.report.steps.sort(key=lambda step: STEPS.index(step.name))
            self.let_go()
        return None

    def do_steps(self) -> None:
        """Do everything in its order; raises what the first step that failed raised."""
        self.step("prepare", self.prepare)
        with urgency():  # not before: another program may be standing still
            self.do_urgent_steps()

    def do_urgent_steps(self) -> None:
        """Do what others have to wait for."""
        self.step("hold", self.hold)
        self.step("checkpoint", self.checkpoint)
        self.step("rewrite", self.rewrite)
        if self.no_hold:
            self.step("transfer", self.transfer)
            self.step("restore", self.restore)
            self.step("switch over", self.switch_over)
        else:
            self.step("transfer", self.transfer)
            with self.beside("switch over", self.switch_over) as begin:
                self.step("restore", lambda: self.restore(begin))
        self.step("release", self.release)
        if self.plan.choice.mode is Mode.LAZY:
            self.step("pages", self.way.complete)
        self.step("verify", self.verify)

    @contextlib.contextmanager
    def beside(self, name: str, action: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """Give the block what begins a step in a thread of its own; both have ended when this returns or raises."""
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with urgency():
                    self.step(name, action)
            except BaseException as ex:
                failed.append(ex)

        thread = threading.Thread(target=work, name=f"{self.plan.identity}-{name}", daemon=True)
        try:
            yield thread.start
        finally:
            if thread.ident is not None:
                thread.join()
        if failed:
            raise failed[0]

    def step(self, name: str, action: Callable[[], None]) -> None:
        """Do one step: journaled, timed, announced."""
        if name == "release":
            self.cancellation.commit(name)
        else:
            self.cancellation.check(name)
        self.journal.write("step", name=name)
        self.tell(name, Phase.STARTED)
        begin = time.monotonic()
        if threading.current_thread() is self.thread:
            self.deadline.start(name)
        try:
            self.fault(name, "before")
            action()
            self.fault(name, "after")
            if time.monotonic() - begin > self.timeouts.of(name):
                raise StepTimeout(f"the step {name!r} took longer than {self.timeouts.of(name):g} s")
        except Exception as ex:
            self.tell(name, Phase.FAILED, milliseconds(begin), reason=reason(ex))
            raise
        took = milliseconds(begin)
        self.report.steps.append(StepTime(name, took))
        self.tell(name, Phase.ENDED, took)

    def tell(self, step: str, phase: Phase, ms: float | None = None, reason: str | None = None) -> None:
        """Send an event."""
        size = self._bytes.get(step) if phase is Phase.ENDED else None
        self.on_event(Event(self.plan.identity, step, phase, ms, size, reason))

    # ---- the steps

    def prepare(self) -> None:
        """Get CRIU ready on both hosts, and teach the network the program's voice at its new place."""
        plan = self.plan
        self.passage = self.open_passage()
        opened = opened_connections(plan.source.pid)
        self.here = self.open_files.enter_context(Diag(plan.source.pid))
        self.there = self.open_files.enter_context(Diag(plan.destination.pid))
        sockets = self.runtime.sockets(plan.app)
        self.has_inner_connections = has_inner_connections(sockets, plan.source.address)
        self.is_calm = sum(socket.send_queue for socket in sockets) <= CALM
        self.note_move(self.plan.move(sockets))
        self.lost = ownaddress.follow_all(
            plan.app, self.runtime.sockets, self.move, plan.source, plan.destination
        )
        self._network_touched = True
        self.steering.prepare(self.move)
        self.aborts_before = aborted_connections(plan.destination.pid)
        # Somebody may have taken a port since the plan was made.
        check_ports(plan.app, plan.destination, sockets, self.there.inet())
        make_room(plan.app, plan.destination, self.move.listeners, self.there)
        self.way.take_turn()
        is_quiet = opened_connections(plan.source.pid) == opened and not self.unaccepted()
        self.may_stop_early = is_quiet and all(socket.protocol == IpProtocol.TCP for socket in sockets)

    def open_passage(self) -> Passage:
        """Get ready to freeze."""
        plan = self.plan
        return self.runtime.open_passage(
            plan.app,
            plan.destination,
            self.folder,
            lock=self.no_hold,
            deadline=self.deadline,
            choice=plan.choice,
        )

    def hold(self) -> None:
        """Stop everything that is on its way to the program, and wait for what has come through.

        Meanwhile the program may be stopped, if that takes nothing from it.
        """
        if self.no_hold:
            self.open_files.enter_context(Dropping(self.plan.source.pid, self.move.id, locations(self.move)))
            return
        self.steering.hold(self.move, self.is_calm, self.start_freeze)
        if self.stage == Stage.FROZEN:
            if not self.unaccepted():
                return
            self.start_over()
        self.settle()

    def start_freeze(self) -> None:
        """Let CRIU stop the program while the hold is about to stand: what either takes need not wait for the other."""
        if self.may_stop_early and self.stage == Stage.UNTOUCHED and self.way.start_freeze():
            self.stage = Stage.FROZEN

    def start_over(self) -> None:
        """Let a program that was stopped with a connection to accept run on, and get ready for the usual order."""
        self.steering.release(self.move)  # it has TCP only
        self.way.back_out()
        self.way.close()
        self.passage, self.stage = None, Stage.UNTOUCHED
        remove_folder(self.folder)
        make_folder(self.folder.parent, self.folder.name)
        self.passage = self.open_passage()
        self.passage.take_turn()
        self.steering.hold(self.move, self.is_calm)

    def unaccepted(self) -> list[InetSocket]:
        """List the listeners with a connection that no program has accepted, and the handshakes with them."""
        ports = {m.old.port for m in self.move.listeners if m.old.protocol == IpProtocol.TCP}
        return [s for s in self.here.tcp_waiting() if is_unaccepted(s, ports)] if ports else []

    def settle(self) -> None:
        """Wait until no listener has a connection that no program has accepted: CRIU cannot carry those.

        None comes any more, so this ends as long as the program accepts, however many wait.
        """
        fewest, deadline = sys.maxsize, 0.0
        while waiting := self.unaccepted():
            count = sum(1 if s.state == State.SYN_RECV else s.receive_queue for s in waiting)
            if count < fewest:
                fewest, deadline = count, time.monotonic() + ACCEPT_TIMEOUT
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"{self.plan.app.name} has accepted none of {count} connections that wait for "
                    f"{ACCEPT_TIMEOUT:g} s: {waiting[0]}"
                )
            self.deadline.check()
            if any(s.state == State.SYN_RECV for s in waiting):
                # The end of its handshake is among what is held.
                self.release_held(self.move)
                time.sleep(0.001)
                self.steering.hold(self.move, self.is_calm)
            else:
                time.sleep(0.001)

    def checkpoint(self) -> None:
        """Freeze the program; from here on it does not run anywhere."""
        self.stage = Stage.FROZEN
        begin = time.monotonic()
        self.way.freeze(self.quiesce)
        self.report.criu.frozen_ms = milliseconds(begin)

    def quiesce(self) -> None:
        """Wait until the network keeps what the stopped program's sockets send, and among themselves they are quiet.

        Connections whose sockets both belong to what was just stopped are not held: the kernel goes on sending what is
        queued, and what it delivered after the receiver's socket was written to the image would be acknowledged and
        lost. Waiting alone is not enough: what is received and not read is acknowledged 40 ms later.
        """
        if not self.no_hold:
            self.steering.muted(self.move)
        if not self.has_inner_connections:
            return
        if ends := inner_ends(self.runtime.sockets(self.plan.app)):
            self.open_files.enter_context(Dropping(self.plan.source.pid, f"{self.move.id}-within", ends))
        deadline = time.monotonic() + SETTLE_TIMEOUT
        queues: object = None
        while time.monotonic() < deadline:
            last, queues = queues, [(s.inode, s.receive_queue, s.send_queue) for s in self.here.inet()]
            if last == queues:
                return
            time.sleep(QUIET)

    def rewrite(self) -> None:
        """Change the addresses in a copy of the image, and tell the network what the image really holds."""
        plan = self.plan
        self.rewritten = rewriting.rewrite(self.way, plan.relocation, self.runtime.fdinfo, plan.app.logs)
        sent = rewriting.sent(self.way, self.rewritten, self.runtime.tcp_stream)
        known = self.move
        # The program has closed these, so no image has them: what their kernel has still to send, it sends from here.
        self.closing = self.here.tcp_closing()
        self.move = move = self.plan.move(self.rewritten.before, sent, self.closing)
        if move == known:
            return
        self.note_move(move)
        if self.no_hold:
            self.steering.prepare(move)
        else:
            self.steering.extend(move)

    def transfer(self) -> None:
        """Bring the image to the destination, with the new addresses in it."""
        assert self.rewritten is not None
        runtime, source = self.runtime, self.plan.source.address
        done = rewriting.transfer(
            self.way, self.rewritten, source, runtime.tcp_stream, runtime.fdinfo, self.is_shared
        )
        self._bytes["transfer"] = self.report.criu.image_bytes = done.size
        self.handover = done

    def is_shared(self, path: str) -> bool:
        """Say whether a file of the program is the same one at the destination."""
        app = self.plan.app
        return app.container is None and app.engine is None and not covers(app.volumes, path)

    def restore(self, begun: Callable[[], None] = lambda: None) -> None:
        """Build the copy, stopped, and see that every socket of the image is there; call `begun` when CRIU is at it."""

        if self.way.has_locks:
            if not self.no_hold:
                self.steering.extend(self.move)  # which raises if the network did not take the hold
            self.way.end_source()
            self.stage = Stage.ENDED
        begin = time.monotonic()
        self.copy_pid = self.way.restore(begun)
        self.journal.write("copy", pids=list(self.way.copies))
        self.report.criu.restore_ms = milliseconds(begin)
        self.report.connections = self.count_connections()
        if self.handover is not None and (self.handover.unsaid or self.handover.closing):
            self.say(self.handover)
        if (broken := self.report.connections.broken) != 0:
            raise MigrationError(
                f"{broken} connections of the image are missing on {self.plan.destination.name}"
            )

    def say(self, handover: rewriting.Handover) -> None:
        """Let connections within the host go on: what was under way between their ends when they stood still."""
        pids = [pid for copy in self.way.copies for pid in tree.processes(copy)]
        try:
            repair.say(pids, handover.unsaid, handover.closing)
        except OSError as ex:
            raise MigrationError(f"a connection within the copy cannot go on: {ex.strerror}") from ex

    def switch_over(self) -> None:
        """Point the network at the new place; packets stay held."""
        self.steering.switch_over(self.move)

    def release(self) -> None:
        """End the original, let the copy run, and let the packets through."""
        self.journal.write("commit", pids=list(self.way.copies))
        if self.stage < Stage.ENDED:
            self.way.end_source()
            # In post-copy it ends later, and is a way back until the copy runs.
            if self.plan.choice.mode is not Mode.LAZY:
                self.stage = Stage.ENDED
        begin = time.monotonic()
        try:
            self.way.resume(self.releasing)
        except Exception as ex:
            if self.way.has_run:
                self.arrive()
                raise
            # Its sockets were in use for a moment before it ended: see docs/crash-safety.md.
            raise MigrationError(
                f"{ex}; that was while the copy was let go, which may have closed connections"
            ) from ex
        self.report.criu.restore_ms += milliseconds(begin)
        self.arrive()
        self.has_arrived = True
        self.release_held(self.move)
        self.journal.write("running", pid=self.copy_pid)

    def releasing(self) -> Callable[[], None]:
        """Get ready to let packets go, and return what does it; by then the journal says that the copy runs."""
        self._receivers = self.receivers(self.there)
        room = self._receivers.room() if self._receivers is not None else None
        begin = self.steering.releasing(self.move, room)

        def go() -> None:
            self.journal.write("resumed")
            begin()

        return go

    def arrive(self) -> None:
        """From here on the copy is the program: it has executed instructions that no image knows of."""
        self.stage = Stage.MOVED
        self.plan.app.host, self.plan.app.pid = self.plan.destination, self.copy_pid

    def verify(self) -> None:
        """See that the copy lives and its connections do, or that it has come to an end; forget the way back."""
        self.report.ended = self.runtime.ending(self.plan.app)
        missing = self.count_connections().broken
        aborted = aborted_connections(self.plan.destination.pid) - self.aborts_before
        # Programs may close connections at any time; only those that were aborted are broken.
        broken = 0 if self.report.ended else min(missing, aborted)
        self.report.connections.broken = broken
        self.report.connections.kept = self.report.connections.established - broken
        self.way.bury_source()
        self.steering.finish(self.move)

    # ---- the way back

    def undo(self, is_lost: bool = False) -> Plan | None:
        """Bring the program back to its source as far as this transaction can; what `is_lost` was ended."""
        self.deadline.start(UNDO)
        self.journal.write("undo", reason=self.report.reason)
        if self.stage == Stage.MOVED and not is_lost and self.has_memory():
            self.report.ended = self.runtime.ending(self.plan.app)
            if self.report.ended is None:
                return self.plan_return()
            self.leave_ended()
            return None
        problems = [*self.undo_program(), *self.undo_network()]
        self.report.outcome = Outcome.FAILED if problems else Outcome.ROLLED_BACK
        if problems:
            self.report.reason = "; ".join([str(self.report.reason), *problems])
        self.tell("undo", Phase.UNDONE, reason=self.report.reason)
        return None

    def leave_ended(self) -> None:
        """Finish what a program that has come to an end after its arrival needs no more: it did its work, once."""
        problems = []
        for action in (self.release_held, self.steering.finish):
            try:
                action(self.move)
            except Exception as ex:
                problems.append(f"the network could not be put in order: {reason(ex)}")
        self.report.connections.kept = self.report.connections.established
        if self.has_arrived and not problems:
            self.report.outcome, self.report.reason = Outcome.COMPLETED, None
            return
        ended = f"{self.plan.app.name} has ended on {self.plan.destination.name}"
        self.report.outcome = Outcome.FAILED
        self.report.reason = "; ".join([str(self.report.reason), ended, *problems])

    def has_memory(self) -> bool:
        """Return True if the copy has all its memory, or has come to an end without it."""
        try:
            self.way.complete()
        except MemoryLost as ex:
            self.report.reason = f"{self.report.reason}; {ex}"
            return False
        return True

    def undo_program(self) -> list[str]:
        """Thaw the original, or restore it from its image if it has ended; return what went wrong."""
        if self.passage is None:
            return []
        app, source = self.plan.app, self.plan.source
        try:
            if self.stage > Stage.FROZEN or not self.thaw(self.passage):
                if self._network_touched:
                    with contextlib.suppress(SteeringError):  # which undo_network says
                        self.steering.disown(self.move)
                app.pid = self.passage.revive(self.note_revived)
                app.host = source
        except Exception as ex:
            self.is_lost = not isinstance(ex, MemoryLost)
            return [f"{app.name} could not be brought back to {source.name}: {reason(ex)}"]
        self.report.connections.kept = self.report.connections.established
        return []

    def thaw(self, passage: Passage) -> bool:
        """Let the original run on; say whether it does."""
        try:
            passage.back_out()
        except MigrationError:
            if self.stage == Stage.UNTOUCHED:
                raise
            return False
        return True

    def undo_network(self) -> list[str]:
        """Point the network at the source again and let go what is held; return what went wrong."""
        if not self._network_touched:
            return []
        problems = []
        for action in (self.steering.switch_back, self.release_held):
            try:
                action(self.move)
            except Exception as ex:
                problems.append(f"the network could not be put back: {reason(ex)}")
        return problems

    def release_held(self, move: Move) -> None:
        """End the hold, and remember what it kept and what the program's sockets had no room for."""
        has_moved = self.stage == Stage.MOVED
        receivers = self._receivers if has_moved else None
        if receivers is None:
            receivers = self.receivers(self.there if has_moved else self.here)
        held = self.steering.release(move, receivers)
        self._receiver_drops += receivers.drops() if receivers is not None else 0
        self.report.held = replace(held, receiver_drops=self._receiver_drops)
        self._receivers = None

    def receivers(self, diag: Diag) -> DatagramSockets | None:
        """Return the UDP sockets of what moves, on the host that is asked; None if it has none."""
        ends: list[MovedListener | MovedConnection] = [*self.move.listeners, *self.move.connections]
        is_there = diag is self.there
        ports = {
            (end.new if is_there else end.old).port for end in ends if end.old.protocol == IpProtocol.UDP
        }
        return DatagramSockets(diag, ports) if ports else None

    def plan_return(self) -> Plan:
        """Prepare a migration in the other direction, for a copy that has run already."""
        for action in (self.release_held, self.steering.finish):
            # A network that fails here fails again on the way home, and is reported there.
            with contextlib.suppress(Exception):
                action(self.move)
        there = self.plan.relocation
        ports = {
            (protocol, there.ports[protocol, port, peer, peer_port], peer, peer_port): port
            for protocol, port, peer, peer_port in there.ports
        }
        sockets = self.runtime.sockets(self.plan.app)
        relocation = Relocation(there.new, there.old, ports, {new: old for old, new in there.devices.items()})
        identity = f"{self.plan.identity}{WAY_BACK}"
        plan = self.plan
        choice = Choice(Mode.STOP, plan.choice.via)
        return Plan(identity, plan.app, plan.destination, plan.source, relocation, sockets, choice)

    # ---- helpers

    @property
    def way(self) -> Passage:
        """The passage that `prepare` opened."""
        assert self.passage is not None
        return self.passage

    def note_revived(self, pid: int) -> None:
        """Write down where the program is before it runs; of a party, each member knows by now."""
        parts = members(self.plan.app)
        pids = [pid] if len(parts) == 1 else [member.pid for member in parts]
        self.journal.write("revived", pids=pids)

    def note_move(self, move: Move) -> None:
        """Remember what the network is told from now on."""
        self.move = move
        self.journal.write("move", move=move_to_json(move))

    def count_connections(self) -> Connections:
        """Compare the image's connections with the kernel's at the destination."""
        assert self.rewritten is not None
        expected = {ends(s) for s in self.rewritten.after if s.protocol == IpProtocol.TCP and s.is_connection}
        missing = expected
        if len(expected) <= FEW:
            missing = {one for one in expected if self.there.tcp_connection(*one) is None}
        if missing:  # restored ones that are closing are in no table until they are let go, but in the list
            missing = missing - {ends(s) for s in self.there.tcp_connections()}
        kept = len(expected) - len(missing) + self.count_undelivered()
        broken = len(missing)
        return Connections(established=kept + broken, kept=kept, broken=broken)

    def count_undelivered(self) -> int:
        """Count the connections that stay at the source because not all that was written to them has arrived."""
        full = {(s.local_port, s.remote, s.remote_port) for s in self.closing if s.send_queue}
        return sum((c.location.port, c.peer.address, c.peer.port) in full for c in self.move.closing)

    def let_go(self) -> None:
        """Close the passage; what it leaves is said, never raised."""
        if self.passage is not None:
            self.report.transfer = self.passage.account()
        for close in (self.open_files.close, self.passage.close if self.passage else None):
            try:
                if close is not None:
                    close()
            except EXPECTED as ex:
                self.tell("clean up", Phase.FAILED, reason=str(ex))


def locations(move: Move) -> list[End]:
    """Return where what moves can be reached before."""
    known = [*(m.old for m in move.listeners), *(m.old for m in move.connections)]
    return [End(old.protocol, old.address, old.port) for old in known]


def inner_ends(sockets: Iterable[InetSocket]) -> list[End]:
    """Return both ends of the TCP connections among some sockets, if one of them has something in its send queue."""
    by_ends = {ends_of(s): s for s in sockets if s.protocol == IpProtocol.TCP and s.is_connection}
    inner = [s for ends, s in by_ends.items() if reversed_ends(ends) in by_ends]
    if not any(s.send_queue for s in inner):
        return []
    return [End(IpProtocol.TCP, s.local, s.local_port) for s in inner]


def reason(ex: BaseException) -> str:
    """Say what went wrong; a bug is called by its type."""
    return str(ex) if isinstance(ex, EXPECTED) else f"{type(ex).__name__}: {ex}"


def milliseconds(begin: float) -> float:
    """Return the time since `begin`."""
    return round((time.monotonic() - begin) * 1000, 3)


def ends(socket: InetSocket) -> tuple[Address, int, Address, int]:
    """Name a connection by its two ends."""
    return socket.local, socket.local_port, socket.remote, socket.remote_port


def is_unaccepted(socket: InetSocket, ports: set[int]) -> bool:
    """Say whether a listener's queue, or a handshake with it, has something that no program owns yet."""
    if socket.protocol != IpProtocol.TCP or socket.local_port not in ports:
        return False
    return socket.state == State.SYN_RECV or (socket.state == State.LISTEN and socket.receive_queue > 0)
