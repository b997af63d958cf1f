"""The network's part of a migration (migration.steering.Steering) on the load balancer's switch.

The methods are called from the migration's thread and run as coroutines on the controller's loop. Every move keeps
what its rows were before, for the way back; a move that this controller has never seen (it was restarted in the
middle) is taken back by what the rows say (`recovery`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from controllers import recovery, relocation, rows
from controllers.drain import Begin
from controllers.errors import Conflict, ControllerError, SwitchNotReady
from controllers.frames import flow_of, is_known
from controllers.hairpins import Hairpins
from controllers.holdqueue import HoldQueue, KeptPacket
from controllers.hosts import Host, Hosts
from controllers.leftports import LeftPorts
from controllers.loadbalancer import LoadBalancer
from controllers.pacing import pace
from controllers.relocation import Plan
from controllers.rows import Change, Key, Row
from controllers.switchlink import OP_RESUME, Packets, SwitchLink
from migration import trace
from migration.slowness import scaled
from migration.steering import Endpoint, HeldStats, IpProtocol, Move, Receivers, Spoken, SteeringError

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_CALL_S = scaled(30.0)
_PATIENCE_S = scaled(10.0)
_AGAIN_S = 0.05
_RELEASE_ROUNDS = 3
_NEAR_S = 0.01
"""A host that packets reach within this time has no queue before it that would take long to drain."""
_TURN = 256
"""Rows of a write that is not urgent."""
# What a source has sent passes no hold of where it goes, not even its own: the peer may be a socket that moves along,
# called over the switch, whose copy is not there yet. As an id it is nobody's, and it is not 0, which would let the
# hold of the source have it again.
_FROM_SOURCE = 0xFFFF_FFFF


class Drains(Protocol):
    """What waits for packets under way; see controllers.drain.Drainer."""

    async def drain(
        self,
        host: Host,
        link: SwitchLink,
        hold: int,
        crossed: Callable[[], None] = lambda: None,
        begin: Begin | None = None,
    ) -> None:
        """Return when everything that had passed the hold has arrived; call `crossed` when it is in the host.

        The hold begins with `begin`, if it has not.
        """

    async def measure(self, host: Host, link: SwitchLink, hold: int) -> float:
        """Return how many seconds a packet takes to the host; it makes ready for `drain`, when there is time."""

    def close(self, host: str | None = None) -> None:
        """Let go of a host, or of everything."""


@dataclass
class _Active:
    """A move under way."""

    move: Move
    hold: int
    plan: Plan = field(default_factory=Plan)
    before: dict[Key, Row | None] = field(default_factory=dict)
    marked: set[Key] = field(default_factory=set)
    """The rows that say which endpoints belong to the hold; they stand from `prepare` to the end."""
    unmarked: bool = False
    """There is a plan whose endpoints may not all belong to the hold."""
    held: set[Endpoint] = field(default_factory=set)
    is_near: bool = False
    """Its source has no queue before it."""
    unconfirmed: list[Row] = field(default_factory=list)
    """The rows of the hold that the switch has been told of, and that it may still have refused."""
    draining: bool = False
    """A hold has begun, or was extended, since packets under way were last waited for."""
    switched: bool = False
    stats: HeldStats = field(default_factory=HeldStats)
    beyond: list[KeptPacket] = field(default_factory=list)
    """What the source has sent and the image does not know: only for the way back."""

    def is_muted(self, table: Mapping[Key, Row]) -> bool:
        """Say whether what the source sends is kept."""
        return rows.holding_source_key(self.hold) in table


class SwitchSteering:
    """Steer migrations by rows of the load balancer; the methods are those of migration.steering.Steering."""

    def __init__(
        self,
        balancer: LoadBalancer,
        hosts: Hosts,
        loop: asyncio.AbstractEventLoop,
        drainer: Drains,
        holding: bool = True,
    ) -> None:
        self.holding = holding
        """False leaves packets unheld: only to show what the hold is good for."""
        self.timeout = _CALL_S
        """Seconds that one call may take."""
        self.patience = _PATIENCE_S
        """Seconds that a call waits for a switch that is away."""
        self._balancer = balancer
        self._hosts = hosts
        self._loop = loop
        self._moves: dict[str, _Active] = {}
        self._muting: dict[str, Future[None]] = {}
        """What was begun by a hold and nobody has waited for, by the move."""
        self._releasing: dict[str, tuple[asyncio.Event, Future[None]]] = {}
        """What is to begin a release, and is waited for by it, by the move."""
        self._hold_ids = itertools.count(1)
        self._left: set[Key] = set()
        """Rows of locations that were left, kept for packets from there which another move's hold still has."""
        self._returning: dict[str, set[Endpoint]] = {}
        """By moves that another controller began: where programs are about to be restored, and nobody else may be."""
        self._drainer = drainer
        self.left_ports = LeftPorts(hosts, self._arriving)
        self.hairpins = Hairpins(hosts)
        balancer.tables.on_change = self._note
        self._queues = balancer.queues

    def close(self) -> None:
        """Let go of sockets and threads."""
        self._drainer.close()
        self.left_ports.close()

    def _note(self, changes: Iterable[Change]) -> None:
        """Hear what has become of rows."""
        changes = list(changes)
        self.left_ports.note(changes)
        self.hairpins.note(changes)

    # ---- the seam

    def prepare(self, move: Move) -> None:
        """Make what the program will send from its new location carry its identity."""
        self._call(lambda: self._prepare(move))

    def hold(self, move: Move, at_once: bool = False, begun: Callable[[], None] = lambda: None) -> None:
        """Keep every packet for the endpoints, wait for those that had passed, and begin to keep the answers."""
        self._call(lambda: self._hold(move, at_once, begun))

    def start_hold(self, move: Move) -> None:
        """Keep every packet for the endpoints from now on."""
        self._call(lambda: self._hold_and_see(move))

    def drained(self, move: Move) -> None:
        """Wait for the packets that had passed before the hold stood."""
        self._call(lambda: self._drained(move))

    def muted(self, move: Move) -> None:
        """Return when what the source sends is kept as well."""
        begun, active = self._muting.pop(move.id, None), self._moves.get(move.id)
        if begun is None and active is not None and active.is_muted(self._balancer.table):
            return
        self._wait(begun if begun is not None else self._begin(lambda: self._mute(move)))

    def extend(self, move: Move) -> None:
        """Prepare and hold what the image has more than /proc had."""
        self._call(lambda: self._extend(move))

    def switch_over(self, move: Move) -> None:
        """Send the endpoints' packets to their new location from now on."""
        self._call(lambda: self._switch_over(move))

    def releasing(self, move: Move, room: int | None = None) -> Callable[[], None]:
        """Get ready to let the switch's queue go; return what does it, by a message that nobody waits for."""
        go = asyncio.Event()
        self._releasing[move.id] = go, self._begin(lambda: self._release_soon(move, go, room))

        def begin() -> None:
            self._loop.call_soon_threadsafe(go.set)

        return begin

    def release(self, move: Move, receivers: Receivers | None = None) -> HeldStats:
        """Send on what was held, in order, datagrams as receivers have room for them, and stop holding."""
        if receivers is not None:
            pace(receivers, lambda room: self._call(lambda: self._release_within(move, room)))
        return self._call(lambda: self._release(move))

    def disown(self, move: Move) -> None:
        """Drop what the source has sent beyond its image."""
        self._call(lambda: self._disown(move))

    def switch_back(self, move: Move) -> None:
        """Undo prepare and switch_over."""
        self._call(lambda: self._switch_back(move))

    def finish(self, move: Move) -> None:
        """Forget the old location."""
        self._call(lambda: self._finish(move))

    def _call(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        return self._wait(self._begin(work))

    def _begin(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(self._patiently(work), self._loop)

    def _wait(self, future: Future[_T]) -> _T:
        try:
            return future.result(self.timeout)
        except ControllerError as ex:
            raise SteeringError(str(ex)) from ex
        except FutureCancelled as ex:
            raise SteeringError(f"switch {self._balancer.link.name} was lost") from ex
        except FutureTimeout as ex:
            future.cancel()
            raise SteeringError(f"the network did not follow within {self.timeout:g} s") from ex

    async def _patiently(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do a piece of work; if the switch is away, wait until it is back, and do it again.

        Every piece may be repeated: rows that are there already are not written twice.
        """
        link, loop = self._balancer.link, asyncio.get_running_loop()
        deadline = loop.time() + self.patience
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                if not link.ready.is_set():
                    await asyncio.wait_for(link.ready.wait(), max(0.0, deadline - loop.time()))
            try:
                return await _uncancelled(work(), link.name)
            except SwitchNotReady:
                if loop.time() >= deadline:
                    raise
                await asyncio.sleep(_AGAIN_S)

    # ---- prepare

    def _active(self, move: Move) -> _Active:
        active = self._moves.get(move.id)
        if active is None:
            hold = next(self._hold_ids)
            while hold in self._balancer.receiver.holds or hold in self._queues or self._hold_in_use(hold):
                hold = next(self._hold_ids)
            active = self._moves[move.id] = _Active(move, hold)
        return active

    def _hold_in_use(self, hold: int) -> bool:
        return any(
            row.table in ("hold", "hold_source") and row.params == (hold,)
            for row in self._balancer.table.values()
        )

    async def _prepare(self, move: Move) -> None:
        active = self._active(move)
        source = self._host(move.source)
        self._plan(active, move)
        await self.left_ports.make_way({listener.new for listener in move.listeners})
        await self.hairpins.prepare(move)
        await self._balancer.write(active.plan.prepare.values())
        urgent = [rows.holding(active.hold), rows.holding_source(active.hold)] if self.holding else []
        self._balancer.link.codec.encode_ahead([*urgent, *active.plan.switch.values()])
        if self.holding:
            await self._write_in_turns(self._mark(active))
            await self._queues.begin(active.hold)
            active.is_near = await self._drainer.measure(source, self._balancer.link, active.hold) < _NEAR_S

    def _mark(self, active: _Active) -> list[Row]:
        """Return the rows that are still to be written so that all endpoints belong to the hold."""
        if not self.holding or not active.unmarked:
            return []
        active.unmarked = False
        wanted = [rows.hold_for(location, active.hold) for location in active.plan.locations]
        # Of UDP no image knows what was sent. What a program sends until it is stopped passes: nothing bounds it.
        wanted += [
            rows.hold_source_for(location, active.hold)
            for location in _sources(active.move)
            if location.protocol == IpProtocol.TCP
        ]
        active.marked |= {row.key for row in wanted}
        return [row for row in wanted if self._balancer.table.get(row.key) != row]

    async def _write_in_turns(self, upserts: Sequence[Row] = (), deletes: Sequence[Key] = ()) -> None:
        """Write what is neither urgent nor one change, and let others write in between."""
        for start in range(0, max(len(upserts), len(deletes)), _TURN):
            await self._balancer.write(upserts[start : start + _TURN], deletes[start : start + _TURN])

    def _plan(self, active: _Active, move: Move) -> None:
        """Plan a move, and remember what its keys had before the first of them was written."""
        active.move = move
        active.plan = relocation.plan(self._balancer.table, self._balancer.model.backends.values(), move)
        active.unmarked = True
        touched = active.plan.touched()
        for key in touched:
            active.before.setdefault(key, None if key in self._left else self._balancer.table.get(key))
        self._left -= touched

    def _host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            raise SteeringError(f"host {name!r} is not part of the network")
        return host

    # ---- hold

    async def _hold(self, move: Move, at_once: bool, begun: Callable[[], None]) -> None:
        active = self._active(move)
        at_once = at_once and active.is_near
        keeping = await self._about_to_hold(move, at_once)
        crossed = (lambda: None) if at_once else (lambda: self._begin_muting(move))
        await self._drained(move, crossed, keeping, begun)

    async def _hold_and_see(self, move: Move) -> None:
        """Begin a hold, and return when the switch has it: no marker shows that."""
        keeping = await self._about_to_hold(move)
        if (active := self._moves.get(move.id)) is not None:
            await self._write(active, keeping)
            if keeping:
                active.held |= active.plan.locations

    def _begin_muting(self, move: Move) -> None:
        """Keep what the source sends from now on, while it is being stopped.

        Not before the marker has come: what is answered until then need not wait.
        """
        self._muting[move.id] = self._begin(lambda: self._mute(move))

    async def _about_to_hold(self, move: Move, with_source: bool = False) -> list[Row]:
        """Make ready for a hold, unless it has begun; return the rows that begin it."""
        if not self.holding:
            return []
        active = self._active(move)
        if active.plan.locations.issubset(active.held) and active.held:
            return []
        if not active.plan.locations:
            self._plan(active, move)
        await self._queues.begin(active.hold)
        active.draining = True
        await self._balancer.write(self._mark(active))
        keeping = [rows.holding(active.hold)]
        if with_source:
            keeping.append(rows.holding_source(active.hold))
        return keeping

    async def _drained(
        self,
        move: Move,
        crossed: Callable[[], None] = lambda: None,
        keeping: Sequence[Row] = (),
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until nothing is on its way to the source any more, once the rows are there that keep packets."""
        active = self._moves.get(move.id)
        if active is None or not active.draining:
            return
        with contextlib.ExitStack() as told:

            async def begin(behind: Packets) -> None:
                # Whether the switch has taken it is seen with the next write: what it has not kept harms nobody while
                # the original lives on.
                begun()
                active.unconfirmed += await self._balancer.write_soon(keeping, behind)
                active.held |= active.plan.locations
                told.enter_context(
                    trace.told(
                        move.source,
                        "marker, through the switch",
                        "marker: nothing is on its way here any more",
                    )
                )

            await self._drainer.drain(
                self._host(move.source), self._balancer.link, active.hold, crossed, begin
            )
        active.draining = False

    async def _mute(self, move: Move) -> None:
        """Keep what the source sends, too."""
        active = self._moves.get(move.id)
        if active is not None and active.held and not active.is_muted(self._balancer.table):
            await self._write(active, [rows.holding_source(active.hold)])

    async def _write(self, active: _Active, upserts: Iterable[Row] = (), deletes: Iterable[Key] = ()) -> None:
        """Write, and see that the hold was taken."""
        unconfirmed, active.unconfirmed = active.unconfirmed, []
        await self._balancer.write(upserts, deletes, unconfirmed)

    async def _end_muting(self, move: Move) -> None:
        """Wait for what was begun and nobody has waited for, whatever becomes of it."""
        begun = self._muting.pop(move.id, None)
        if begun is not None:
            with contextlib.suppress(ControllerError):
                await asyncio.wrap_future(begun)

    async def _extend(self, move: Move) -> None:
        active = self._active(move)
        earlier = set(active.plan.prepare)
        self._plan(active, move)
        await self.left_ports.make_way({listener.new for listener in move.listeners})
        await self.hairpins.prepare(move)
        superfluous = earlier - active.plan.touched()
        await self._restore(active, superfluous)
        await self._write(active, [*active.plan.prepare.values(), *self._mark(active)])
        if active.held and active.plan.locations - active.held:
            active.held |= active.plan.locations
            active.draining = True
        if active.held:
            await self._drained(move)
            await self._mute(move)

    async def _restore(self, active: _Active, keys: set[Key]) -> None:
        """Put keys back to what they were before the move."""
        table = self._balancer.table
        before = {key: active.before.get(key) for key in keys}
        # A service's connection that was pinned on the way stays pinned: it is right wherever the backend lives.
        before = {
            k: old
            for k, old in before.items()
            if old or k not in table or table[k].action != "pin_to_backend"
        }
        upserts = [row for row in before.values() if row is not None]
        await self._balancer.write(upserts, [key for key, row in before.items() if row is None])

    # ---- switch over, and back

    async def _switch_over(self, move: Move) -> None:
        if move.id not in self._moves:
            await self._switch_over_unknown(move)
            return
        active = self._active(move)
        if active.switched:
            return
        if not active.plan.locations:
            self._plan(active, move)
        await self._write(active, active.plan.switch.values(), active.plan.switch_deletes)
        active.switched = True
        await self._send_on_share(active, move)
        for backend, (_, new) in active.plan.backends.items():
            self._balancer.relocated(backend, new)

    async def _switch_over_unknown(self, move: Move) -> None:
        """Switch over without having prepared it: another controller began this move, and may have come this far.

        What is written is the difference between what is there and what there would be if all had been done from the
        start: nothing of it leads back to the old location in between, where nobody lives.
        """
        table, backends = self._balancer.table, self._balancer.model.backends.values()
        undo = recovery.undo(table, backends, move)
        start = recovery.table_after(table, undo)
        homes = [replace(b, location=undo.backends.get(b.id, b.location)) for b in backends]
        try:
            plan = relocation.plan(start, homes, move)
        except Conflict:
            return  # even its last rows are gone: it was finished
        active = self._active(move)
        active.plan = plan
        active.before = {key: start.get(key) for key in plan.touched()}
        active.marked = _marks(move, table)
        for hold in {table[key].params[0] for key in active.marked}:
            active.hold = hold  # it may hold something still
        wanted = plan.prepare | plan.switch
        gone = [key for key in (*undo.deletes, *plan.switch_deletes) if key not in wanted]
        back = [row for row in undo.upserts if row.key not in wanted and row.key not in plan.switch_deletes]
        await self._balancer.write([*back, *wanted.values()], gone)
        active.switched = True
        for backend, (_, new) in plan.backends.items():
            self._balancer.relocated(backend, new)

    async def _send_on_share(self, active: _Active, move: Move) -> None:
        """Send on what the image knows that the source has sent; what it does not know, the copy sends again."""
        queue = self._balancer.receiver.sent.get(active.hold)
        if not (packets := queue.take_all() if queue is not None else []):
            return
        until = {(c.old, c.peer): c.sent for c in move.connections}
        known: list[KeptPacket] = []
        beyond: list[KeptPacket] = []
        for packet in packets:
            (known if _is_known(packet, until) else beyond).append(packet)
        with _kept_if_lost(queue, packets):
            await self._out(_FROM_SOURCE, known)
        active.beyond += beyond

    async def _disown(self, move: Move) -> None:
        places = {listener.old for listener in move.listeners}
        active = self._moves.get(move.id)
        if active is None:
            self._returning[move.id] = places
        await self.left_ports.make_way(places)
        if active is None or not active.held:
            return
        await self._balancer.link.barrier()
        await self._send_on_share(active, move)
        active.beyond.clear()

    async def _switch_back(self, move: Move) -> None:
        active = self._moves.get(move.id)
        if active is None:
            await self._switch_back_unknown(move)
            self._returning.pop(move.id, None)
            return
        await self._restore(active, set(active.before))
        if active.switched:
            for backend, (old, _) in active.plan.backends.items():
                self._balancer.relocated(backend, old)
        active.switched = False
        await self._out(_FROM_SOURCE, active.beyond)
        active.beyond.clear()
        active.before.clear()
        active.plan = Plan(locations=active.plan.locations)
        self._close_drain(active)
        if not active.held:
            await self._unmark(active, active.marked)

    async def _switch_back_unknown(self, move: Move) -> None:
        """Go back without having been there: another controller began this move."""
        undo = recovery.undo(self._balancer.table, self._balancer.model.backends.values(), move)
        await self._balancer.write(undo.upserts, undo.deletes)
        for backend, location in undo.backends.items():
            self._balancer.relocated(backend, location)

    # ---- release

    async def _release_soon(self, move: Move, go: asyncio.Event, room: int | None) -> None:
        """Do the part of `_release` that the program waits for, as soon as it is time."""
        active = self._moves.get(move.id)
        if active is None or not active.switched or active.hold not in self._queues:
            return
        await self._end_muting(move)
        let_go = self._queues.letting_go(active.hold, room)
        await go.wait()
        await self._let_go_sent(active.hold, active, move)
        await let_go()

    async def _end_releasing(self, move: Move) -> None:
        """Wait for what was begun, or see that it never begins."""
        go, begun = self._releasing.pop(move.id, (None, None))
        if go is None or begun is None:
            return
        if not go.is_set():
            begun.cancel()
            return
        with contextlib.suppress(ControllerError):
            await asyncio.wrap_future(begun)

    async def _about_to_release(self, move: Move) -> tuple[_Active | None, set[int]]:
        """Let go what the source has sent; return the move, if it is known, and its holds."""
        await self._end_releasing(move)
        active = self._moves.get(move.id)
        await self._end_muting(move)
        table = self._balancer.table
        ids = {active.hold} if active is not None else {table[key].params[0] for key in _marks(move, table)}
        if active is None or not active.switched:
            # The source lives on: what it has sent first, and its answers to what comes now freely.
            await self._balancer.write((), [rows.holding_source_key(hold) for hold in ids])
            await self._balancer.link.barrier()
        for hold in ids:
            await self._let_go_sent(hold, active, move)
        return active, ids

    async def _release_within(self, move: Move, room: int) -> int:
        """Send on what was held, of the datagrams as many as there is room for; return how much of these is left."""
        left = 0
        for hold in (await self._about_to_release(move))[1]:
            left += await self._queues.release_within(hold, room)
            if (queue := self._balancer.receiver.holds.get(hold)) is not None:
                packets = queue.take_within(room)
                with _kept_if_lost(queue, packets):
                    await self._out(hold, packets)
                left += queue.datagrams
        return left

    async def _release(self, move: Move) -> HeldStats:
        active, ids = await self._about_to_release(move)
        table = self._balancer.table
        marked = active.marked if active is not None else _marks(move, table)
        for hold in ids:
            await self._queues.release(hold)
            await self._send_on(hold)
        is_switched = active is not None and active.switched
        # The frozen source's kernel may speak as long as its sockets are there, which is until `finish`.
        over = (rows.holding_key,) if is_switched else (rows.holding_key, rows.holding_source_key)
        ends = [key(hold) for hold in ids for key in over]
        await self._balancer.write((), ends)
        stats = HeldStats()
        for hold in ids:
            await self._balancer.link.barrier()
            if await self._resend(hold):
                await self._balancer.link.barrier()
            await self._let_go_sent(hold, active, move)
            stats = _sum(stats, await self._queues.end(hold))
            if (queue := self._balancer.receiver.holds.pop(hold, None)) is not None:
                stats = _sum(stats, HeldStats(queue.packets, queue.bytes, queue.dropped))
            if (queue := self._balancer.receiver.sent.get(hold)) is not None:
                stats = _sum(stats, HeldStats(queue.packets, queue.bytes, queue.dropped))
                if not is_switched:
                    del self._balancer.receiver.sent[hold]
        earlier = HeldStats()
        if active is not None:
            # A move may be held and let go several times before the freeze.
            earlier, active.stats = active.stats, _sum(active.stats, stats)
            active.held.clear()
        if active is None or not active.before:
            await self._unmark(active, marked)
        self._balancer.held_total.add(stats)
        await self._forget_left()
        return _sum(earlier, stats)

    async def _unmark(self, active: _Active | None, marked: Iterable[Key]) -> None:
        """Let endpoints belong to no hold any more."""
        await self._write_in_turns((), list(marked))
        if active is not None:
            if not active.held and active.hold in self._queues:
                await self._queues.end(active.hold)  # begun before the hold, which never came
            active.marked.clear()
            active.unmarked = True
            self._forget_if_done(active)

    async def _send_on(self, hold: int) -> None:
        """Empty a queue while its hold still stands, so that what comes meanwhile queues behind.

        A busy program's packets never cease to come: when they do not become fewer, going on only delays them.
        """
        for _ in range(_RELEASE_ROUNDS):
            if hold in self._queues and not self._balancer.receiver.holds.get(hold):
                return  # nothing of it comes here
            sent = await self._resend(hold)
            await self._balancer.link.barrier()
            left = len(self._balancer.receiver.holds.get(hold, ()))
            if left == 0 or left * 2 > sent > 0:
                return

    async def _resend(self, hold: int) -> int:
        queue = self._balancer.receiver.holds.get(hold)
        packets = queue.take_all() if queue is not None else []
        with _kept_if_lost(queue, packets):
            await self._out(hold, packets)
        return len(packets)

    async def _let_go_sent(self, hold: int, active: _Active | None, move: Move) -> None:
        """Send on what came from the source; once switched over, only what the image knows."""
        if active is not None and active.switched:
            await self._send_on_share(active, move)
        elif (queue := self._balancer.receiver.sent.get(hold)) is not None:
            packets = queue.take_all()
            with _kept_if_lost(queue, packets):
                await self._out(_FROM_SOURCE, packets)

    async def _out(self, hold: int, packets: Sequence[KeptPacket]) -> None:
        """Send packets on, past one hold of where they go."""
        if packets:
            trace.sent(trace.SWITCH, f"send on {len(packets)} held packets")
        await self._balancer.link.packets_out(Packets(OP_RESUME, hold, [(p.port, p.frame) for p in packets]))

    # ---- finish

    async def _finish(self, move: Move) -> None:
        active = self._moves.get(move.id)
        if active is None:
            return
        if active.switched:
            await self._balancer.write((), [rows.holding_source_key(active.hold)])
            await self._balancer.link.barrier()
            self._balancer.receiver.sent.pop(active.hold, None)
            await self._forget_left(active.plan.finish_deletes)
        active.before.clear()
        active.plan = Plan()
        self._close_drain(active)
        if not active.held:
            await self._unmark(active, active.marked)

    async def _forget_left(self, keys: Iterable[Key] = ()) -> None:
        """Delete the rows of locations that were left.

        When both ends of a connection move, one end's packets may still wait in the hold of the other. They carry the
        location that they were sent from, so the rows that say who that was stay until they have gone on.
        """
        self._left |= set(keys)
        if not self._left:
            return
        for active in self._moves.values():
            self._left -= active.plan.touched()
        if any(active.held and active.hold in self._queues for active in self._moves.values()):
            return  # nobody sees what waits in the switch
        over = self._left - _speakers(self._balancer.receiver.holds.values())
        await self._balancer.write((), over)
        self._left -= over

    def _close_drain(self, active: _Active) -> None:
        """Let go of the source's taps, unless another program is leaving that host at the same time."""
        host = active.move.source
        if not any(other.move.source == host for other in self._moves.values() if other is not active):
            self._drainer.close(host)

    def _forget_if_done(self, active: _Active) -> None:
        """Drop the memory of a move that neither holds anything nor can go back any more."""
        if not active.held and not active.before and not active.marked:
            self._moves.pop(active.move.id, None)
            self.left_ports.look()
            self.hairpins.over(active.move)

    def _arriving(self) -> set[Endpoint]:
        """Return to where programs are on their way, or may be sent back until their move is over."""
        listeners = [listener for active in self._moves.values() for listener in active.move.listeners]
        return {end for one in listeners for end in (one.new, one.old)}.union(*self._returning.values())


async def _uncancelled(work: Awaitable[_T], switch: str) -> _T:
    """Do a piece of work; that grpc.aio has cancelled a call of a switch that is gone is not a wish to end it."""
    try:
        return await work
    except asyncio.CancelledError as ex:
        cancelling = getattr(asyncio.current_task(), "cancelling", None)  # since Python 3.11
        if cancelling is None or cancelling() > 0:
            raise
        raise SwitchNotReady(f"switch {switch} was lost") from ex


@contextlib.contextmanager
def _kept_if_lost(queue: HoldQueue | None, packets: Sequence[KeptPacket]) -> Iterator[None]:
    """Put packets back that could not be sent on, because the switch is away: they are for when it has returned.

    Some may have gone out. Their receivers know a packet that comes twice.
    """
    try:
        yield
    except SwitchNotReady:
        if queue is not None:
            queue.put_back(packets)
        raise


def _sources(move: Move) -> set[Endpoint]:
    """Return the endpoints that the source's packets come from."""
    return {x.old for x in move.listeners} | {x.old for x in move.connections}


def _marks(move: Move, table: Mapping[Key, Row]) -> set[Key]:
    """Return the rows that give a move's endpoints to a hold, as the table has them."""
    ends = {e for x in move.listeners for e in (x.old, x.new)} | {
        e for y in move.connections for e in (y.old, y.new)
    }
    return {key for e in ends for key in (rows.hold_key(e), rows.hold_source_key(e)) if key in table}


def _speakers(queues: Iterable[HoldQueue]) -> set[Key]:
    """Return the keys of the rows that say who has sent the packets in some queues."""
    keys: set[Key] = set()
    for flow in {flow_of(packet.frame) for queue in queues for packet in queue.waiting()}:
        if flow is not None:
            keys |= {rows.connection_source_key(*flow), rows.endpoint_source_key(flow[0])}
    return keys


def _is_known(packet: KeptPacket, until: Mapping[tuple[Endpoint, Endpoint], Spoken | None]) -> bool:
    """Say whether the image knows a packet; a connection that it does not have will not speak again."""
    flow = flow_of(packet.frame)
    spoken = until.get(flow) if flow is not None else None
    return spoken is None or is_known(packet.frame, spoken)


def _sum(one: HeldStats, other: HeldStats) -> HeldStats:
    return HeldStats(one.packets + other.packets, one.bytes + other.bytes, one.dropped + other.dropped)
