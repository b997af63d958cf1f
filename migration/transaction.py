"""One migration, step by step, and the way back from each of them.

    prepare → hold → checkpoint → rewrite → transfer → restore → switch over → release → verify

The original stays frozen, not dead, until the copy has been built, its sockets have been seen and the network
points at it. So whatever fails up to and including "switch over" is undone by killing the copy and thawing the
original: not a byte has moved. "release" ends the original, lets the copy run and then the packets go. What
fails after that is undone by a migration in the other direction, since the copy has a history by then.

Every step is journaled before it begins and when it has ended; the records in between ("move", "commit",
"running") are what recovery.py needs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path

from .diag import Diag
from .dropping import Dropping
from .errors import Cancelled, MigrationError
from .images import FILES_IMAGE, BadImage, Rewritten, rewrite_files, sent_until, tcp_stream_image
from .inet import Address, InetSocket, Relocation, State
from .journal import Journal, app_to_json, host_to_json, move_to_json
from .namespaces import urgency
from .netstat import aborted_connections
from .preflight import Plan
from .report import Connections, Event, OnEvent, Outcome, Phase, Report, StepTime
from .runtime import Passage, Runtime
from .steering import IpProtocol, Move, Steering, SteeringError
from .workspace import fill

# Called with a step's name and "before" or "after"; raises to make the step fail there.
Fault = Callable[[str, str], None]
SETTLE_TIMEOUT = 0.5
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
    ) -> None:
        self.plan, self.runtime, self.steering = plan, runtime, steering
        self.folder, self.journal, self.report = folder, journal, report
        self.on_event, self.fault, self.no_hold = on_event, fault, no_hold
        self.stage = Stage.UNTOUCHED
        self.move: Move = plan.move(plan.sockets)
        self.passage: Passage | None = None
        self.rewritten: Rewritten | None = None
        self.copy_pid = 0
        self.aborts_before = 0
        self.open_files = contextlib.ExitStack()
        self.is_lost = False  # the program runs nowhere: its image and journal are to be kept
        self._network_touched = False
        self._cancelled = threading.Event()
        self._bytes: int | None = None

    def cancel(self) -> None:
        """Turn back before the next step, unless the copy runs by then."""
        self._cancelled.set()

    def run(self) -> Plan | None:
        """Do all steps, or undo those done. Return a plan for the way home if that takes a migration."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ("prepare", self.prepare),
            ("hold", self.hold),
            ("checkpoint", self.checkpoint),
            ("rewrite", self.rewrite),
            ("transfer", self.transfer),
            ("restore", self.restore),
            ("switch over", self.switch_over),
            ("release", self.release),
            ("verify", self.verify),
        ]
        plan = self.plan
        self.journal.write(
            "begin",
            id=plan.identity,
            app=app_to_json(plan.app),
            destination=host_to_json(plan.destination),
            folder=str(self.folder),
        )
        try:
            with urgency():
                for name, action in steps:
                    self.step(name, action)
            self.report.outcome = Outcome.COMPLETED
        except Exception as ex:
            self.report.reason = reason(ex)
            return self.undo()
        except BaseException:
            self.report.reason = "interrupted"
            self.undo()
            raise
        finally:
            self.let_go()
        return None

    def step(self, name: str, action: Callable[[], None]) -> None:
        """Do one step: journaled, timed, announced."""
        if self._cancelled.is_set() and self.stage < Stage.ENDED:
            raise Cancelled(f"cancelled before the step {name!r}")
        self.journal.write("step", name=name)
        self.tell(name, Phase.STARTED)
        self._bytes = None
        begin = time.monotonic()
        try:
            self.fault(name, "before")
            action()
            self.fault(name, "after")
        except Exception as ex:
            self.tell(name, Phase.FAILED, milliseconds(begin), reason=reason(ex))
            raise
        self.report.steps.append(StepTime(name, milliseconds(begin)))
        self.tell(name, Phase.ENDED, milliseconds(begin))

    def tell(self, step: str, phase: Phase, ms: float | None = None, reason: str | None = None) -> None:
        """Send an event."""
        self.on_event(Event(self.plan.identity, step, phase, ms, self._bytes, reason))

    # ---- the steps

    def prepare(self) -> None:
        """Get CRIU ready on both hosts, and teach the network the program's voice at its new place."""
        plan = self.plan
        self.passage = self.runtime.open_passage(plan.app, plan.destination, self.folder, lock=self.no_hold)
        self.view = self.open_files.enter_context(Diag(plan.destination.pid))
        self.note_move(self.plan.move(self.runtime.sockets(plan.app)))
        self._network_touched = True
        self.steering.prepare(self.move)

    def hold(self) -> None:
        """Stop everything that is on its way to the program, and wait for what has come through."""
        if self.no_hold:
            self.open_files.enter_context(Dropping(self.plan.source.pid, self.move))
            return
        self.steering.hold(self.move)
        with Diag(self.plan.source.pid) as diag:
            self.settle(diag)

    def settle(self, diag: Diag) -> None:
        """Wait until no listener has a connection that no program has accepted: CRIU cannot carry those."""
        ports = {m.old.port for m in self.move.listeners if m.old.protocol == IpProtocol.TCP}
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while waiting := [s for s in diag.inet() if is_unaccepted(s, ports)]:
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"{self.plan.app.name} does not accept a connection that waits: {waiting[0]}"
                )
            if any(s.state == State.SYN_RECV for s in waiting):
                # The end of its handshake is among what is held.
                self.steering.release(self.move)
                time.sleep(0.001)
                self.steering.hold(self.move)
            else:
                time.sleep(0.001)

    def checkpoint(self) -> None:
        """Freeze the program; from here on it does not run anywhere."""
        self.stage = Stage.FROZEN
        begin = time.monotonic()
        self.way.freeze()
        self.report.criu.frozen_ms = milliseconds(begin)

    def rewrite(self) -> None:
        """Change the addresses in a copy of the image, and tell the network what the image really holds."""
        image = (self.way.images / FILES_IMAGE).read_bytes()
        relocation = self.plan.relocation
        self.rewritten = rewrite_files(image, relocation, self.runtime.fdinfo, frozenset({self.plan.app.log}))
        known = self.move
        self.move = move = self.plan.move(self.rewritten.before, self.sent(self.rewritten.before))
        if move == known:
            return
        self.note_move(move)
        if self.no_hold:
            self.steering.prepare(move)
        else:
            self.steering.extend(move)

    def sent(self, sockets: Sequence[InetSocket]) -> dict[int, int]:
        """Read how far the image counts each connection's bytes as sent, by inode."""
        found = {}
        for socket in sockets:
            stream = self.way.images / tcp_stream_image(socket.inode)
            if socket.protocol == IpProtocol.TCP and socket.is_connection and stream.exists():
                found[socket.inode] = sent_until(stream.read_bytes(), self.runtime.tcp_stream)
        return found

    def transfer(self) -> None:
        """Lay the image out for the destination; on one machine its pages are shared by hard links."""
        assert self.rewritten is not None
        self._bytes = fill(self.way.images, self.way.moved, {FILES_IMAGE: self.rewritten.image})
        self.report.criu.image_bytes = self._bytes

    def restore(self) -> None:
        """Build the copy, stopped, and see that every socket of the image is there."""
        begin = time.monotonic()
        self.copy_pid = self.way.restore()
        self.report.criu.restore_ms = milliseconds(begin)
        self.report.connections = self.count_connections()
        if (broken := self.report.connections.broken) != 0:
            raise MigrationError(
                f"{broken} connections of the image are missing on {self.plan.destination.name}"
            )
        self.aborts_before = aborted_connections(self.plan.destination.pid)

    def switch_over(self) -> None:
        """Point the network at the new place; packets stay held."""
        self.steering.switch_over(self.move)

    def release(self) -> None:
        """End the original, let the copy run, and let the packets through."""
        self.journal.write("commit", pid=self.copy_pid)
        self.stage = Stage.ENDED
        self.way.end_source()
        begin = time.monotonic()
        self.way.resume()
        self.report.criu.restore_ms += milliseconds(begin)
        self.stage = Stage.MOVED
        self.plan.app.host, self.plan.app.pid = self.plan.destination, self.copy_pid
        self.report.held = self.steering.release(self.move)
        self.journal.write("running", pid=self.copy_pid)

    def verify(self) -> None:
        """See that the copy lives and its connections do, then forget the way back."""
        if not self.runtime.is_running(self.plan.app):
            raise MigrationError(
                f"{self.plan.app.name} ended right after its arrival on {self.plan.destination.name}"
            )
        missing = self.count_connections().broken
        aborted = aborted_connections(self.plan.destination.pid) - self.aborts_before
        # Programs may close connections at any time; only those that were aborted are broken.
        broken = min(missing, aborted)
        self.report.connections.broken = broken
        self.report.connections.kept = self.report.connections.established - broken
        self.steering.finish(self.move)

    # ---- the way back

    def undo(self) -> Plan | None:
        """Bring the program back to its source as far as this transaction can."""
        self.journal.write("undo", reason=self.report.reason)
        if self.stage == Stage.MOVED and self.runtime.is_running(self.plan.app):
            return self.plan_return()
        problems = [*self.undo_program(), *self.undo_network()]
        self.report.outcome = Outcome.FAILED if problems else Outcome.ROLLED_BACK
        if problems:
            self.report.reason = "; ".join([str(self.report.reason), *problems])
        self.tell("undo", Phase.UNDONE, reason=self.report.reason)
        return None

    def undo_program(self) -> list[str]:
        """Thaw the original, or restore it from its image if it has ended; return what went wrong."""
        if self.passage is None:
            return []
        app, source = self.plan.app, self.plan.source
        try:
            if self.stage > Stage.FROZEN or not self.thaw(self.passage):
                app.pid = self.passage.revive()
                app.host = source
        except Exception as ex:
            self.is_lost = True
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
        """End the hold and remember what it kept."""
        self.report.held = self.steering.release(move)

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
        relocation = Relocation(there.new, there.old, ports)
        identity = f"{self.plan.identity}-back"
        return Plan(identity, self.plan.app, self.plan.destination, self.plan.source, relocation, sockets)

    # ---- helpers

    @property
    def way(self) -> Passage:
        """The passage that `prepare` opened."""
        assert self.passage is not None
        return self.passage

    def note_move(self, move: Move) -> None:
        """Remember what the network is told from now on."""
        self.move = move
        self.journal.write("move", move=move_to_json(move))

    def count_connections(self) -> Connections:
        """Compare the image's connections with the kernel's at the destination."""
        assert self.rewritten is not None
        expected = {ends(s) for s in self.rewritten.after if s.protocol == IpProtocol.TCP and s.is_connection}
        there = {ends(s) for s in self.view.inet()}
        kept = len(expected & there)
        return Connections(established=len(expected), kept=kept, broken=len(expected) - kept)

    def let_go(self) -> None:
        """Close the passage; what it leaves is said, never raised."""
        for close in (self.open_files.close, self.passage.close if self.passage else None):
            try:
                if close is not None:
                    close()
            except EXPECTED as ex:
                self.tell("clean up", Phase.FAILED, reason=str(ex))


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
