"""Hold queues: packet-ins that wait in the kernel instead of going to the controller, and come back as packet-outs.

A queue stands for the packet-ins whose header has certain values (all but the port). While it holds, the program sends
such packets behind a plug (see `plug`). When the queue is let go, they come back through the CPU port with a
packet-out header; what comes meanwhile goes behind them; and once none is left, further packets come back at once, in
the same run of the program. So whatever sent them here may be taken away at any time after that, and no packet has had
an opportunity to overtake an earlier one.

UDP's datagrams wait in a lane of their own, behind a second plug. Nobody repeats them, and a receiver's buffer takes a
few hundred: so they may be let go piece by piece, each as large as the receivers have room for, while all else leaves
as fast as its order allows. The order within a flow is kept, for it is in one lane as a whole.

Any processor may take packets out of a queue: whose sender runs there, for example. It hands them to its own backlog,
and two processors at once would change their order. So what leaves together is what one takes at once (a slice), and
nothing more leaves until that has been received.

What waits survives the switch process: the next one finds its interfaces, and goes on with a queue of the same number.
The numbers live in an array that the program and this module share (`Cells`); Python sees no packet. Not locked: the
engine's callers come one at a time.
"""

from __future__ import annotations

import logging
import struct
import time
from dataclasses import astuple, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from dataplane.switch.engine.cells import Cells
from dataplane.switch.engine.holdable import DATAGRAM_OVERHEAD, ETHERNET_DATAGRAM, QUEUES, Holdable
from dataplane.switch.engine.libbpf import Object
from dataplane.switch.engine.parser import FRONT_BYTES
from dataplane.switch.engine.plug import RUN, Plugs, Slice
from dataplane.switch.pipeline import BadEntry, EntryExists, EntryNotFound, HoldQueue, QueueState

if TYPE_CHECKING:
    from dataplane.switch.engine.cpu_port import CpuPort

log = logging.getLogger(__name__)

# struct hold_queue and struct hold_lane of runtime.h
_HEAD, _LANE, _FRONT = struct.Struct("=QQQQQ"), struct.Struct("=QQQQII"), struct.Struct(f"=I{FRONT_BYTES}s4x")
_LANES = 2
_CELL_SIZE = _HEAD.size + _LANES * _LANE.size + _FRONT.size
_STREAMS, _DATAGRAMS = 0, 1
_LETTERS = "qu"
"""Of each lane, for its interface's name."""
_AGAIN = struct.pack("=I", 0)
_ALL_GONE_S = 0.1
_POLL_S = 0.0001
_STILL_POLLS = 20
_FEW = (RUN, 4)
"""Packets that may leave while newer ones pass, by lane. One processor takes a run at once, as a rule, and a TCP
receiver puts into order what a newer one has overtaken all the same; nobody does that with datagrams."""
_ROUNDS = 32
"""Slices of one call, for the switch does nothing else meanwhile; at once, twice what waits comes on top."""
_ANY_ROOM = 1 << 40


class HoldMaps:
    """The maps of one loaded program."""

    def __init__(self, loaded: Object, holdable: Holdable) -> None:
        """Share the memory, and let the program call itself."""
        self.holdable = holdable
        self.keys = loaded.map("p4_held")
        self.cells = Cells(loaded.map("p4_hold_queues"), QUEUES, _CELL_SIZE // 8)
        self._again = loaded.map("p4_again")
        self._again.update(_AGAIN, struct.pack("=i", loaded.program_fd))

    def close(self) -> None:
        """Let go of the memory, and of the program, which would else hold itself until the kernel looks."""
        self._again.delete(_AGAIN)
        self.cells.close()


class _Way(Enum):
    """What a lane's plug does."""

    CLOSED = "closed"
    SLICES = "open for one slice after another"
    OPEN = "open"


@dataclass
class _Queue:
    asked: HoldQueue
    key: bytes
    holding: bool = True
    ways: list[_Way] = field(default_factory=lambda: [_Way.CLOSED] * _LANES)


@dataclass(frozen=True)
class _Lane:
    """A lane's cell."""

    in_flight: int
    waiting: int
    left: int
    left_bytes: int
    index: int
    cpu: int

    @property
    def is_empty(self) -> bool:
        """Return True if nothing is in it; pieces of a GSO packet may count for more than it did, below zero."""
        return not 0 < self.in_flight < 1 << 63


class HoldQueues:
    """The hold queues of an engine, on the maps of its active pipeline."""

    def __init__(self, cpu_port: CpuPort) -> None:
        self._cpu_port = cpu_port
        self._plugs: Plugs | None = None
        self._made: dict[int, list[tuple[str, int]]] = {}
        """Name and index of each queue's interfaces, by lane; they stay for the next queue of that number."""
        self._queues: dict[int, _Queue] = {}
        self._maps: HoldMaps | None = None

    def attach(self, maps: HoldMaps | None) -> None:
        """Work on another program's maps from now on; what waits, and what is to come, is that program's."""
        before, self._maps = self._maps, maps
        if before is None or maps is None:
            return
        for number, queue in self._queues.items():
            maps.cells.write(number, *before.cells.read(number))
            maps.keys.update(queue.key, struct.pack("=I", number))

    def _active(self) -> HoldMaps:
        if self._maps is None:
            raise BadEntry("the program has no packet-in and packet-out headers that hold queues could use")
        return self._maps

    def _known(self, number: int) -> _Queue:
        queue = self._queues.get(number)
        if queue is None:
            raise EntryNotFound(f"there is no hold queue {number}")
        return queue

    def _head(self, number: int) -> tuple[int, ...]:
        return _HEAD.unpack_from(self._active().cells.read_raw(number))

    def _lane(self, number: int, lane: int) -> _Lane:
        cell = self._active().cells.read_raw(number)
        return _Lane(*_LANE.unpack_from(cell, _HEAD.size + lane * _LANE.size))

    # ---- queues

    def add(self, number: int, queue: HoldQueue) -> None:
        """Begin to hold."""
        maps = self._active()
        if not 0 <= number < QUEUES:
            raise BadEntry(f"hold queue {number}: a switch has {QUEUES}")
        if number in self._queues:
            raise EntryExists(f"hold queue {number} is there already")
        key, front = maps.holdable.key(queue.packet_in), maps.holdable.front(queue.packet_out)
        if any(other.key == key for other in self._queues.values()):
            raise EntryExists("another hold queue takes these packet-ins already")
        if self._plugs is None:
            self._plugs = Plugs(self._cpu_port.ifindex)
        lanes = self._plugged(number)
        packets, size = (sum(getattr(lane, name) for lane in lanes) for name in ("in_flight", "waiting"))
        parts = [_HEAD.pack(1, packets, size, 0, queue.budget)]
        parts += [_LANE.pack(*astuple(lane)) for lane in lanes]
        parts.append(_FRONT.pack(len(front), front))
        maps.cells.write_raw(number, b"".join(parts))
        maps.keys.update(key, struct.pack("=I", number))
        self._queues[number] = _Queue(queue, key)

    def _plugged(self, number: int) -> list[_Lane]:
        """Close a queue's plugs, or make them; return what waits there, if a switch that was killed has left it."""
        assert self._plugs is not None
        if number in self._made:
            for plug in self._made[number]:
                self._plugs.close(*plug)
            return [_Lane(0, 0, 0, 0, index, 0) for _, index in self._made[number]]
        lanes, made = [], []
        for letter in _LETTERS:
            name = self._cpu_port.plug_name(number, letter)
            index, packets, size = self._plugs.make(name)
            made.append((name, index))
            lanes.append(_Lane(packets, size, 0, 0, index, 0))
        self._made[number] = made
        return lanes

    def hold(self, number: int) -> None:
        """Hold again what was let go."""
        queue = self._known(number)
        if queue.holding:
            return
        if queue.ways[_DATAGRAMS] is not _Way.OPEN:
            self.release(number)  # what is closed has nothing in it
        assert self._plugs is not None
        for plug in self._made[number]:
            self._plugs.close(*plug)
        queue.ways = [_Way.CLOSED] * _LANES
        self._set_holding(number, queue, True)

    def release(self, number: int, room: int | None = None) -> None:
        """Let go what waits, in order, and all that comes behind it; return when nothing waits any more.

        With a `room`, only as many datagrams leave as take so many bytes of memory at their receivers. The others go on
        waiting, and what comes behind them, until this is called again.
        """
        queue = self._known(number)
        was_holding = queue.holding
        if was_holding:
            self._set_holding(number, queue, False)
            self._release_lane(number, queue, _STREAMS, None)
        # An empty lane passes what comes; its plug is opened when there is time, for what was just being put in.
        if not was_holding or not self._lane(number, _DATAGRAMS).is_empty:
            self._release_lane(number, queue, _DATAGRAMS, room)
        self._wait_until_empty(number, _STREAMS)
        if queue.ways[_DATAGRAMS] is _Way.OPEN:
            self._wait_until_empty(number, _DATAGRAMS)

    def _release_lane(self, number: int, queue: _Queue, lane: int, room: int | None) -> None:
        """Let a slice go after another, and when next to nothing is left, the plug be open."""
        assert self._plugs is not None
        before = self._lane(number, lane)
        rounds = _ROUNDS if room is not None else _ROUNDS + 2 * before.in_flight // RUN
        is_stuck = False
        while queue.ways[lane] is not _Way.OPEN:
            now = self._lane(number, lane)
            taken = 2 * (now.left_bytes - before.left_bytes) + DATAGRAM_OVERHEAD * (now.left - before.left)
            room_left = room - taken if room is not None else _ANY_ROOM
            has_room = room_left >= _FEW[lane] * ETHERNET_DATAGRAM
            rounds -= 1
            is_over = room is None and (rounds < 0 or is_stuck)
            if now.is_empty or (has_room and now.in_flight <= _FEW[lane]) or is_over:
                self._open(number, lane)
                queue.ways[lane] = _Way.OPEN
                return
            if rounds < 0 or (taken and not has_room):
                return
            some = Slice.within(room_left, min(now.in_flight, RUN))
            is_closed = queue.ways[lane] is _Way.CLOSED
            self._plugs.open_for(*self._made[number][lane], some, is_closed)
            queue.ways[lane] = _Way.SLICES
            self._wait_until_still(number, lane)
            # What is counted and does not come are dummies of a switch that was killed.
            is_stuck = self._lane(number, lane).left == now.left

    def _open(self, number: int, lane: int) -> None:
        assert self._plugs is not None
        there = self._lane(number, lane)
        self._plugs.open(*self._made[number][lane], None if there.is_empty else there.cpu)

    def _set_holding(self, number: int, queue: _Queue, holding: bool) -> None:
        queue.holding = holding
        with self._active().cells.memory as memory:
            struct.pack_into("=Q", memory, number * _CELL_SIZE, holding)

    def _wait_until_still(self, number: int, lane: int) -> None:
        """Wait until what may leave has left: the kernel's softirq thread may have taken it over."""
        before = self._lane(number, lane).left
        for _ in range(_STILL_POLLS):
            time.sleep(_POLL_S)
            there = self._lane(number, lane).left
            if there == before:
                return
            before = there

    def _wait_until_empty(self, number: int, lane: int) -> None:
        deadline = time.monotonic() + _ALL_GONE_S
        while not self._lane(number, lane).is_empty:
            if time.monotonic() > deadline:
                assert self._plugs is not None
                if self._plugs.waiting(self._made[number][lane][1]):
                    log.warning("hold queue %d: packets were still on their way out", number)
                else:  # a switch that was killed has left dummies among them, which nobody counts
                    with self._active().cells.memory as memory:
                        at = number * _CELL_SIZE + _HEAD.size + lane * _LANE.size
                        struct.pack_into("=QQ", memory, at, 0, 0)
                return
            time.sleep(_POLL_S)

    def remove(self, number: int) -> None:
        """Let go what waits, and forget the queue: such packet-ins go to the controller again."""
        self.release(number)
        self.release(number)  # the first one may have left the datagrams' plug as it was
        self._active().keys.delete(self._queues.pop(number).key)

    def states(self) -> dict[int, QueueState]:
        """Return all hold queues."""
        return {number: self._state(number, queue) for number, queue in self._queues.items()}

    def _state(self, number: int, queue: _Queue) -> QueueState:
        _, packets, count, dropped, _ = self._head(number)
        streams, datagrams = (self._lane(number, lane).waiting for lane in (_STREAMS, _DATAGRAMS))
        waiting = streams + datagrams
        return QueueState(queue.asked, queue.holding, packets, count, dropped, waiting, datagrams)

    def close(self) -> None:
        """Close the sockets; the interfaces go with the CPU port, and with them what waits."""
        if self._plugs is not None:
            self._plugs.end()
