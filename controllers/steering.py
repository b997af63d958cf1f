"""The network's part of a migration (migration.steering.Steering) on the load balancer's switch.

The methods are called from the migration's thread and run as coroutines on the controller's loop. Every move keeps
what its rows were before, for the way back; a move that this controller has never seen (it was restarted in the
middle) is taken back by what the rows say (`recovery`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from controllers import recovery, relocation, rows
from controllers.errors import ControllerError
from controllers.frames import flow_of, is_behind, tcp_end
from controllers.holdqueue import KeptPacket
from controllers.hosts import Host, Hosts
from controllers.loadbalancer import LoadBalancer
from controllers.relocation import Plan
from controllers.rows import Key, Row
from controllers.switchlink import OP_RESUME, SwitchLink
from migration.steering import Endpoint, HeldStats, Move, SteeringError

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_CALL_S = 30.0
_RELEASE_ROUNDS = 3


class Drains(Protocol):
    """What waits for packets under way; see controllers.drain.Drainer."""

    async def open(self, host: Host) -> None:
        """Get ready, when there is time."""

    async def drain(self, host: Host, link: SwitchLink, hold: int) -> None:
        """Return when everything that had passed the hold has arrived."""

    def close(self, host: str | None = None) -> None:
        """Let go of a host, or of everything."""


@dataclass
class _Active:
    """A move under way."""

    move: Move
    hold: int
    plan: Plan = field(default_factory=Plan)
    before: dict[Key, Row | None] = field(default_factory=dict)
    held: set[Endpoint] = field(default_factory=set)
    switched: bool = False
    stats: HeldStats = field(default_factory=HeldStats)
    beyond: list[KeptPacket] = field(default_factory=list)
    """What the source has sent and the image does not know: only for the way back."""


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
        self._balancer = balancer
        self._hosts = hosts
        self._loop = loop
        self._moves: dict[str, _Active] = {}
        self._hold_ids = itertools.count(1)
        self._drainer = drainer

    def close(self) -> None:
        """Let go of sockets and threads."""
        self._drainer.close()

    # ---- the seam

    def prepare(self, move: Move) -> None:
        """Make what the program will send from its new location carry its identity."""
        self._call(self._prepare(move))

    def hold(self, move: Move) -> None:
        """Keep every packet for the endpoints, and wait for those that had passed."""
        self._call(self._hold(move))

    def extend(self, move: Move) -> None:
        """Prepare and hold what the image has more than /proc had."""
        self._call(self._extend(move))

    def switch_over(self, move: Move) -> None:
        """Send the endpoints' packets to their new location from now on."""
        self._call(self._switch_over(move))

    def release(self, move: Move) -> HeldStats:
        """Send on what was held, in order, and stop holding."""
        return self._call(self._release(move))

    def switch_back(self, move: Move) -> None:
        """Undo prepare and switch_over."""
        self._call(self._switch_back(move))

    def finish(self, move: Move) -> None:
        """Forget the old location."""
        self._call(self._finish(move))

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_CALL_S)
        except ControllerError as ex:
            raise SteeringError(str(ex)) from ex
        except FutureTimeout as ex:
            future.cancel()
            raise SteeringError(f"the network did not follow within {_CALL_S:g} s") from ex

    # ---- prepare

    def _active(self, move: Move) -> _Active:
        active = self._moves.get(move.id)
        if active is None:
            hold = next(self._hold_ids)
            while hold in self._balancer.receiver.holds or self._hold_in_use(hold):
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
        await self._balancer.write(active.plan.prepare.values())
        if self.holding:
            await self._drainer.open(source)

    def _plan(self, active: _Active, move: Move) -> None:
        """Plan a move, and remember what its keys had before the first of them was written."""
        active.move = move
        active.plan = relocation.plan(self._balancer.table, self._balancer.model.backends.values(), move)
        for key in active.plan.touched():
            active.before.setdefault(key, self._balancer.table.get(key))

    def _host(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            raise SteeringError(f"host {name!r} is not part of the network")
        return host

    # ---- hold

    async def _hold(self, move: Move) -> None:
        if not self.holding:
            return
        active = self._active(move)
        if active.plan.locations.issubset(active.held) and active.held:
            return
        if not active.plan.locations:
            self._plan(active, move)
        self._balancer.receiver.hold_queue(active.hold)
        active.held |= active.plan.locations
        holds = [rows.hold_for(location, active.hold) for location in active.held]
        holds += [rows.hold_source_for(location, active.hold) for location in _sources(move)]
        await self._balancer.write(holds)
        await self._drainer.drain(self._host(move.source), self._balancer.link, active.hold)

    async def _extend(self, move: Move) -> None:
        active = self._active(move)
        earlier = set(active.plan.prepare)
        self._plan(active, move)
        superfluous = earlier - active.plan.touched()
        await self._restore(active, superfluous)
        await self._balancer.write(active.plan.prepare.values())
        if active.plan.locations - active.held:
            await self._hold(move)

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
        active = self._active(move)
        if active.switched:
            return
        if not active.plan.locations:
            self._plan(active, move)
        await self._balancer.write(active.plan.switch.values(), active.plan.switch_deletes)
        active.switched = True
        await self._send_on_share(active, move)
        for backend, (_, new) in active.plan.backends.items():
            self._balancer.relocated(backend, new)

    async def _send_on_share(self, active: _Active, move: Move) -> None:
        """Send on what the image knows that the source has sent; what it does not know, the copy sends again."""
        queue = self._balancer.receiver.sent.get(active.hold)
        packets = queue.take_all() if queue is not None else []
        until = {(c.old, c.peer): c.sent for c in move.connections}
        known: list[KeptPacket] = []
        for packet in packets:
            (known if _is_known(packet, until) else active.beyond).append(packet)
        await self._out(active.hold, known)

    async def _switch_back(self, move: Move) -> None:
        active = self._moves.get(move.id)
        if active is None:
            await self._switch_back_unknown(move)
            return
        await self._restore(active, set(active.before))
        if active.switched:
            for backend, (old, _) in active.plan.backends.items():
                self._balancer.relocated(backend, old)
        active.switched = False
        await self._out(active.hold, active.beyond)
        active.beyond.clear()
        active.before.clear()
        active.plan = Plan(locations=active.plan.locations)
        self._drainer.close(move.source)
        self._forget_if_done(active)

    async def _switch_back_unknown(self, move: Move) -> None:
        """Go back without having been there: another controller began this move."""
        undo = recovery.undo(self._balancer.table, self._balancer.model.backends.values(), move)
        await self._balancer.write(undo.upserts, undo.deletes)
        for backend, location in undo.backends.items():
            self._balancer.relocated(backend, location)

    # ---- release

    async def _release(self, move: Move) -> HeldStats:
        active = self._moves.get(move.id)
        locations = {e for x in move.listeners for e in (x.old, x.new)}
        locations |= {e for y in move.connections for e in (y.old, y.new)}
        held = locations | (active.held if active is not None else set())
        table = self._balancer.table
        keys = [key for e in held if (key := rows.hold_key(e)) in table]
        sources = [key for e in held if (key := rows.hold_source_key(e)) in table]
        ids = {table[key].params[0] for key in (*keys, *sources)} | ({active.hold} if active else set())
        if active is None or not active.switched:
            # The source lives on: what it has sent first, and its answers to what comes now freely.
            await self._balancer.write((), sources)
            await self._balancer.link.barrier()
        for hold in ids:
            await self._let_go_sent(hold, active, move)
            await self._send_on(hold)
        await self._balancer.write((), [*keys, *(key for key in sources if key in table)])
        stats = HeldStats()
        for hold in ids:
            await self._balancer.link.barrier()
            if await self._resend(hold):
                await self._balancer.link.barrier()
            await self._let_go_sent(hold, active, move)
            for queues in (self._balancer.receiver.holds, self._balancer.receiver.sent):
                if (queue := queues.pop(hold, None)) is not None:
                    stats = _sum(stats, HeldStats(queue.packets, queue.bytes, queue.dropped))
        earlier = HeldStats()
        if active is not None:
            # A move may be held and let go several times before the freeze.
            earlier, active.stats = active.stats, _sum(active.stats, stats)
            active.held.clear()
            self._forget_if_done(active)
        self._balancer.held_total.add(stats)
        return _sum(earlier, stats)

    async def _send_on(self, hold: int) -> None:
        """Empty a queue while its hold still stands, so that what comes meanwhile queues behind.

        A busy program's packets never cease to come: when they do not become fewer, going on only delays them.
        """
        for _ in range(_RELEASE_ROUNDS):
            sent = await self._resend(hold)
            await self._balancer.link.barrier()
            left = len(self._balancer.receiver.holds.get(hold, ()))
            if left == 0 or left * 2 > sent > 0:
                return

    async def _resend(self, hold: int) -> int:
        queue = self._balancer.receiver.holds.get(hold)
        packets = queue.take_all() if queue is not None else []
        await self._out(hold, packets)
        return len(packets)

    async def _let_go_sent(self, hold: int, active: _Active | None, move: Move) -> None:
        """Send on what came from the source; once switched over, only what the image knows."""
        if active is not None and active.switched:
            await self._send_on_share(active, move)
        elif (queue := self._balancer.receiver.sent.get(hold)) is not None:
            await self._out(hold, queue.take_all())

    async def _out(self, hold: int, packets: Sequence[KeptPacket]) -> None:
        await self._balancer.link.packets_out(OP_RESUME, hold, [(p.port, p.frame) for p in packets])

    # ---- finish

    async def _finish(self, move: Move) -> None:
        active = self._moves.get(move.id)
        if active is None:
            return
        if active.switched:
            await self._balancer.write((), active.plan.finish_deletes)
        active.before.clear()
        active.plan = Plan()
        self._drainer.close(move.source)
        self._forget_if_done(active)

    def _forget_if_done(self, active: _Active) -> None:
        """Drop the memory of a move that neither holds anything nor can go back any more."""
        if not active.held and not active.before:
            self._moves.pop(active.move.id, None)


def _sources(move: Move) -> set[Endpoint]:
    """Return the endpoints that the source's packets come from."""
    return {x.old for x in move.listeners} | {x.old for x in move.connections}


def _is_known(packet: KeptPacket, until: Mapping[tuple[Endpoint, Endpoint], int | None]) -> bool:
    """Say whether the image counts all of a packet's bytes as sent; what it does not have will not be sent again."""
    flow, end = flow_of(packet.frame), tcp_end(packet.frame)
    limit = until.get(flow) if flow is not None else None
    return end is None or limit is None or is_behind(end, limit)


def _sum(one: HeldStats, other: HeldStats) -> HeldStats:
    return HeldStats(one.packets + other.packets, one.bytes + other.bytes, one.dropped + other.dropped)
