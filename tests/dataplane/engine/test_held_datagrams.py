"""Held datagrams: their senders go on, they come out in order, and no faster than their receivers take them."""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from dataplane.switch.engine import EbpfEngine, EbpfPipeline
from dataplane.switch.engine.holdable import DATAGRAM_OVERHEAD, LONGEST
from dataplane.switch.engine.plug import Slice
from tests.dataplane.engine.conftest import DEVICE, Lab
from tests.dataplane.engine.network import Cable, own_namespace
from tests.dataplane.engine.test_hold_queues import (
    HOLD,
    PORT,
    add_row,
    delete_row,
    hold,
    network,
    queue,
    segment,
)
from tests.dataplane.engine.test_load_balancer import add
from tests.dataplane.engine.test_packets import ip
from tests.dataplane.engine.test_streams import A, B, hosts

pytestmark = pytest.mark.net

UDP_ = 17
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55  # <asm-generic/socket.h>
_RMEM_ALLOC, _RCVBUF, _DROPS = 0, 1, 8  # <linux/sock_diag.h>


@pytest.fixture
def pipeline(lab: Lab) -> EbpfPipeline:
    """Route between two hosts; the server's TCP and UDP ports are parts of the hold."""
    return both(network(lab.engine))


def both(running: EbpfPipeline) -> EbpfPipeline:
    """Add the server's UDP port to the hold."""
    add(running, "hold", (UDP_, ip("10.0.0.2"), PORT), "hold_for", HOLD)
    return running


@dataclass
class Ends:
    """A sender that never waits, and a receiver."""

    sender: socket.socket
    receiver: socket.socket

    def send(self, number: int, size: int = 4) -> None:
        """Send a numbered datagram; raises BlockingIOError if there is no room."""
        self.sender.send(struct.pack("!I", number).ljust(size, b"x"))

    def take(self) -> list[int]:
        """Read all that has arrived, and return its numbers."""
        found = []
        while True:
            try:
                found.append(int.from_bytes(self.receiver.recv(1 << 16)[:4], "big"))
            except BlockingIOError:
                return found

    def memory(self) -> tuple[int, ...]:
        """Return the receiver's SK_MEMINFO values."""
        return struct.unpack("=9I", self.receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))

    def room(self) -> int:
        """Return the bytes that the receiver's buffer has left."""
        memory = self.memory()
        return memory[_RCVBUF] - memory[_RMEM_ALLOC]


@contextmanager
def ends(lab: Lab, buffer: int = 0) -> Iterator[Ends]:
    """Make both, the receiver with a buffer of its own size, if one is given."""
    with hosts(lab) as (one, two):
        with two.inside():
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if buffer:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        receiver.bind(("10.0.0.2", PORT))
        with one.inside():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(("10.0.0.2", PORT))
        with sender, receiver:
            for end in (sender, receiver):
                end.setblocking(False)
            yield Ends(sender, receiver)


def test_a_sender_has_no_held_datagrams_on_its_account(lab: Lab, pipeline: EbpfPipeline) -> None:
    """A hundred times its send buffer is taken at once, and comes out whole and in order."""
    count, size = 20_000, 800
    with ends(lab, buffer=256 << 20) as two:
        assert count * size > 50 * two.sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        hold(pipeline, budget=1 << 30)
        for number in range(count):
            two.send(number, size)
        unsent = struct.unpack("=i", fcntl.ioctl(two.sender, termios.TIOCOUTQ, bytes(4)))[0]
        assert unsent == 0
        assert two.take() == []
        state = pipeline.queues()[3]
        assert (state.packets, state.dropped) == (count, 0)
        assert state.waiting == state.datagrams == count * (size + 42)
        pipeline.release_queue(3)
        assert two.take() == list(range(count))
        assert pipeline.queues()[3].waiting == 0
        two.send(count)
        assert two.take() == [count]


def test_a_full_queue_drops_and_counts(lab: Lab, pipeline: EbpfPipeline) -> None:
    """The newest go, their sender hears nothing of it; small ones count for the memory that they take."""
    budget = 1 << 20
    with ends(lab, buffer=64 << 20) as two:
        hold(pipeline, budget=budget)
        for number in range(5000):
            two.send(number)
        state = pipeline.queues()[3]
        assert state.packets + state.dropped == 5000
        assert budget // 1500 < state.packets < budget // 1000
        pipeline.release_queue(3)
        assert two.take() == list(range(state.packets))


@pytest.mark.parametrize(
    ("size", "buffer"),
    [(4, 0), (1400, 0), (4, 16 << 10), (1400, 16 << 10), (4, 2 << 20), (1472, 300 << 10)],
)
def test_slices_fit_into_the_receivers_buffer(
    lab: Lab, pipeline: EbpfPipeline, size: int, buffer: int
) -> None:
    """However large the buffer and the datagrams are, nothing overflows, and what is new stays behind what is old."""
    with ends(lab, buffer) as two:
        hold(pipeline, budget=1 << 30)
        full = two.memory()[_RCVBUF]
        count = 4 * full // (size + 700) + 10  # some times what fits
        for number in range(count):
            two.send(number, size)
        found: list[int] = []
        slices = 0
        while pipeline.queues()[3].datagrams:
            pipeline.release_queue(3, two.room())
            two.send(count, size)
            count += 1
            assert two.memory()[_RMEM_ALLOC] <= full
            found += two.take()
            slices += 1
            assert slices < count
        pipeline.release_queue(3)
        found += two.take()
        assert found == list(range(count))
        assert slices > 2
        assert two.memory()[_DROPS] == 0
        two.send(count, size)
        assert two.take() == [count]


def test_all_at_once_overflows(lab: Lab, pipeline: EbpfPipeline) -> None:
    """Without a room it is as it would be on a wire; what the slices are for."""
    with ends(lab) as two:
        hold(pipeline)
        for number in range(2000):
            two.send(number)
        pipeline.release_queue(3)
        dropped = two.memory()[_DROPS]
        assert dropped > 0
        assert len(two.take()) == 2000 - dropped


def test_a_connection_does_not_wait_for_datagrams(lab: Lab, pipeline: EbpfPipeline) -> None:
    """TCP's segments leave in one batch, however little room the datagrams have."""
    hold(pipeline)
    for number in range(100):
        lab.cables[1].send(datagram(number))
        lab.cables[1].send(segment(number))
    pipeline.release_queue(3, 1)
    got: list[tuple[bool, int]] = []
    while frame := lab.cables[2].receive(0.1):
        packet = Ether(frame)
        got.append((UDP in packet, int.from_bytes(bytes(packet[Raw])[:4], "big")))
    assert [number for is_udp, number in got if not is_udp] == list(range(100))
    assert [number for is_udp, number in got if is_udp] == [0]
    assert got[-1] == (True, 0), "the datagrams come after the connections"
    lab.cables[1].send(segment(100))
    assert received(lab, 0.5) == [100]
    state = pipeline.queues()[3]
    assert state.datagrams == state.waiting == 99 * len(datagram(0))
    pipeline.release_queue(3)
    assert received(lab) == list(range(1, 100))


def test_a_queue_of_datagrams_is_used_again(lab: Lab, pipeline: EbpfPipeline) -> None:
    """Held again, or removed, in the middle of its slices."""
    for again in (pipeline.hold_queue, pipeline.remove_queue):
        hold(pipeline)
        for number in range(50):
            lab.cables[1].send(datagram(number))
        pipeline.release_queue(3, 1)
        again(3)
        assert received(lab) == list(range(50))
        lab.cables[1].send(datagram(50))
        if again == pipeline.hold_queue:
            assert received(lab, 0.05) == []
            pipeline.release_queue(3, 1)
            assert received(lab) == [50]
            pipeline.remove_queue(3)
            delete_row(pipeline)


KILLED = """
import os, sys
from pathlib import Path
from dataplane.switch.engine import EbpfEngine
from tests.dataplane.engine.conftest import DEVICE
from tests.dataplane.engine.test_hold_queues import hold, network
from tests.dataplane.engine.test_held_datagrams import both
engine = EbpfEngine(DEVICE, cache=Path(sys.argv[1]), on_packet_in=print, on_digest=print)
for number in (1, 2):
    engine.add_port(number, f"sw{number}")
running = both(network(engine))
hold(running)
print("holding", flush=True)
sys.stdin.readline()
if sys.argv[2] == "slice":
    running.release_queue(3, 1)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["held", "slice"])
def test_datagrams_survive_the_switch_process(cache: Path, when: str) -> None:
    """Killed while it holds, or between two slices: the next one lets go what is left, and counts to zero."""
    with own_namespace():
        cables = {number: Cable(number) for number in (1, 2)}
        command = [sys.executable, "-c", KILLED, str(cache), when]
        first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"holding\n"
        for number in range(10):
            cables[1].send(datagram(number))
        first.stdin.write(b"\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"ready\n"
        first.kill()
        first.communicate()
        with EbpfEngine(DEVICE, cache=cache) as engine:
            for number, cable in cables.items():
                engine.add_port(number, cable.port)
            lab = Lab(engine, cables)
            gone = received(lab, 0.1)
            assert gone == ([0] if when == "slice" else [])
            running = both(network(engine))
            running.add_queue(3, queue())
            add_row(running)
            assert running.queues()[3].datagrams > 0
            running.release_queue(3)
            assert gone + received(lab) == list(range(10))
            assert running.queues()[3].waiting == 0
            cables[1].send(datagram(10))
            assert received(lab) == [10]
        assert not any(name.startswith("p4") for _, name in socket.if_nameindex())
        for cable in cables.values():
            cable.close()


@pytest.mark.parametrize("room", [0, 1, 4096, 130_000, 135_000, 212_992, 64 << 20])
@pytest.mark.parametrize("packets", [1, 3, 64])
def test_a_slice_takes_the_longest_packet(room: int, packets: int) -> None:
    """What tbf finds larger than a bucket it drops; and what a slice lets go takes no more memory than there is."""
    some = Slice.within(room, packets)
    assert some.bytes >= LONGEST
    assert 1 <= some.packets <= packets
    for length in (42, 200, 600, 1514):
        leave = min(some.packets, (some.bytes + DATAGRAM_OVERHEAD // 2) // (length + DATAGRAM_OVERHEAD // 2))
        assert leave == 1 or leave * (2 * length + DATAGRAM_OVERHEAD) <= room


def datagram(number: int) -> bytes:
    """Return a frame for the held port."""
    layers = Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=4000, dport=PORT)
    return bytes(layers / Raw(struct.pack("!I", number)))


def received(lab: Lab, timeout: float = 0.3) -> list[int]:
    """Return the numbers of all frames that arrive at the server until none does for a while."""
    found = []
    while frame := lab.cables[2].receive(timeout):
        found.append(int.from_bytes(bytes(Ether(frame)[Raw])[:4], "big"))
    return found
