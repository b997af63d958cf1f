"""Hold queues: packet-ins that wait in the kernel instead of going to the controller, and come back as packet-outs.

A queue stands for the packet-ins whose header has certain values (all but the port). While it holds, the program sends
such packets behind a plug (see `plug`). When the queue is let go, they come back through the CPU port with a
packet-out header; what comes meanwhile goes behind them; and once none is left, further packets come back at once, in
the same run of the program. So whatever sent them here may be taken away at any time after that, and no packet has had
an opportunity to overtake an earlier one.

What waits survives the switch process: the next one finds its interfaces, and goes on with a queue of the same number.
The numbers live in an array that the program and this module share (`Cells`); Python sees no packet. Not locked: the
engine's callers come one at a time.
"""

from __future__ import annotations

import logging
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.switch.engine.cells import Cells
from dataplane.switch.engine.holdable import QUEUES, Holdable
from dataplane.switch.engine.libbpf import Object
from dataplane.switch.engine.parser import FRONT_BYTES
from dataplane.switch.engine.plug import Plugs
from dataplane.switch.pipeline import BadEntry, EntryExists, EntryNotFound, HoldQueue, QueueState

if TYPE_CHECKING:
    from dataplane.switch.engine.cpu_port import CpuPort

log = logging.getLogger(__name__)

_CELL = struct.Struct(f"=QQQQQQQIII{FRONT_BYTES}s4x")
_AGAIN = struct.pack("=I", 0)
_ALL_GONE_S = 0.1
_POLL_S = 0.0001


class HoldMaps:
    """The maps of one loaded program."""

    def __init__(self, loaded: Object, holdable: Holdable) -> None:
        """Share the memory, and let the program call itself."""
        self.holdable = holdable
        self.keys = loaded.map("p4_held")
        self.cells = Cells(loaded.map("p4_hold_queues"), QUEUES, _CELL.size // 8)
        self._again = loaded.map("p4_again")
        self._again.update(_AGAIN, struct.pack("=i", loaded.program_fd))

    def close(self) -> None:
        """Let go of the memory, and of the program, which would else hold itself until the kernel looks."""
        self._again.delete(_AGAIN)
        self.cells.close()


@dataclass
class _Queue:
    asked: HoldQueue
    key: bytes
    holding: bool = True


class HoldQueues:
    """The hold queues of an engine, on the maps of its active pipeline."""

    def __init__(self, cpu_port: CpuPort) -> None:
        self._cpu_port = cpu_port
        self._plugs: Plugs | None = None
        self._made: dict[int, tuple[str, int]] = {}
        """Name and index of each queue's interface; it stays for the next queue of that number."""
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

    def _cell(self, number: int) -> tuple[int, ...]:
        return _CELL.unpack(self._active().cells.read_raw(number))

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
        packets = size = 0
        if number in self._made:
            self._plugs.close(*self._made[number])
            index = self._made[number][1]
        else:
            name = self._cpu_port.plug_name(number)
            index, packets, size = self._plugs.make(name)
            self._made[number] = (name, index)
        cell = _CELL.pack(1, packets, size, packets, size, 0, queue.budget, index, 0, len(front), front)
        maps.cells.write_raw(number, cell)
        maps.keys.update(key, struct.pack("=I", number))
        self._queues[number] = _Queue(queue, key)

    def hold(self, number: int) -> None:
        """Hold again what was let go."""
        queue = self._known(number)
        if queue.holding:
            return
        assert self._plugs is not None
        self._plugs.close(*self._made[number])
        self._set_holding(number, queue, True)

    def release(self, number: int) -> None:
        """Let go what waits, in order, and all that comes behind it; return when nothing waits any more."""
        queue = self._known(number)
        if queue.holding:
            assert self._plugs is not None
            self._set_holding(number, queue, False)
            _, in_flight, *_, cpu, _, _ = self._cell(number)
            self._plugs.open(*self._made[number], cpu if in_flight else None)
        self._wait_until_empty(number)

    def _set_holding(self, number: int, queue: _Queue, holding: bool) -> None:
        queue.holding = holding
        with self._active().cells.memory as memory:
            struct.pack_into("=Q", memory, number * _CELL.size, holding)

    def _wait_until_empty(self, number: int) -> None:
        deadline = time.monotonic() + _ALL_GONE_S
        while 0 < self._cell(number)[1] < 1 << 63:
            if time.monotonic() > deadline:
                log.warning("hold queue %d: packets were still on their way out", number)
                return
            time.sleep(_POLL_S)

    def remove(self, number: int) -> None:
        """Let go what waits, and forget the queue: such packet-ins go to the controller again."""
        self.release(number)
        self._active().keys.delete(self._queues.pop(number).key)

    def states(self) -> dict[int, QueueState]:
        """Return all hold queues."""
        return {number: self._state(number, queue) for number, queue in self._queues.items()}

    def _state(self, number: int, queue: _Queue) -> QueueState:
        _, _, waiting, packets, count, dropped, *_ = self._cell(number)
        return QueueState(queue.asked, queue.holding, packets, count, dropped, waiting)

    def close(self) -> None:
        """Close the sockets; the interfaces go with the CPU port, and with them what waits."""
        if self._plugs is not None:
            self._plugs.end()
