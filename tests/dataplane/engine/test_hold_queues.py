"""Packets that wait in the kernel: order, counts, budget, and TCP connections that do not notice."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from dataplane.switch.engine import EbpfEngine, EbpfPipeline
from dataplane.switch.engine.libbpf import program_name
from dataplane.switch.engine.plug import Plugs
from dataplane.switch.pipeline import (
    ActionCall,
    BadEntry,
    EntryExists,
    EntryNotFound,
    Exact,
    HoldQueue,
    Lpm,
    Operation,
    PipelineError,
    QueueState,
    TableEntry,
    Update,
)
from tests.dataplane.engine import build
from tests.dataplane.engine.conftest import DEVICE, Lab, insert
from tests.dataplane.engine.network import Cable, own_namespace, wait_for
from tests.dataplane.engine.test_load_balancer import OP_RESUME, REASON_HELD, TCP_, add, mac, program
from tests.dataplane.engine.test_packets import ip
from tests.dataplane.engine.test_streams import A, B, hosts

pytestmark = pytest.mark.net

PORT, HOLD, BUDGET = 7000, 55, 8 << 20


@pytest.fixture
def pipeline(lab: Lab) -> EbpfPipeline:
    """Route between two hosts on ports 1 and 2."""
    return network(lab.engine)


def network(engine: EbpfEngine) -> EbpfPipeline:
    """Run the program with its routes, and with the server as a part of the hold."""
    running = engine.load(program())
    running.activate()
    fill(running)
    return running


def fill(running: EbpfPipeline) -> None:
    for address, port, target in (("10.0.0.1", 1, A), ("10.0.0.2", 2, B)):
        insert(running, "Ingress.route", [Lpm(ip(address), 32)], "Ingress.forward", port, 0xFE, mac(target))
    add(running, "hold", (TCP_, ip("10.0.0.2"), PORT), "hold_for", HOLD)


def hold(running: EbpfPipeline, number: int = 3, budget: int = BUDGET) -> None:
    """Begin a hold of the server, in a queue."""
    running.add_queue(number, queue(budget=budget))
    add_row(running)


def queue(id_: int = HOLD, budget: int = BUDGET, **more: int) -> HoldQueue:
    return HoldQueue({"reason": REASON_HELD, "id": id_}, {"operation": OP_RESUME, "id": id_} | more, budget)


def add_row(running: EbpfPipeline) -> None:
    add(running, "holding", (HOLD,), "keep", REASON_HELD)


def delete_row(running: EbpfPipeline) -> None:
    row = TableEntry((Exact(HOLD),), ActionCall("Ingress.keep", (REASON_HELD,)))
    assert running.apply([Update(Operation.DELETE, "Ingress.holding", row)]) == [None]


def segment(number: int, size: int = 4) -> bytes:
    layers = Ether(dst=B, src=A) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=4000, dport=PORT, flags="A")
    return bytes(layers / Raw(struct.pack("!I", number).ljust(size, b"x")))


def numbers(lab: Lab, count: int) -> list[int]:
    """Return the numbers of the next packets at the server."""
    found = []
    for _ in range(count):
        frame = lab.cables[2].receive()
        assert frame is not None
        found.append(int.from_bytes(bytes(Ether(frame)[TCP][Raw])[:4], "big"))
    return found


def test_what_waits_comes_back_in_order(lab: Lab, pipeline: EbpfPipeline) -> None:
    """Untouched, counted, and not seen by the controller; what comes while the hold still stands passes at once."""
    hold(pipeline)
    for number in range(200):
        lab.cables[1].send(segment(number))
    size = len(segment(0))
    assert lab.cables[2].receive(0.1) is None
    assert pipeline.queues()[3] == QueueState(queue(), True, 200, 200 * size, 0, 200 * size)
    pipeline.release_queue(3)
    assert numbers(lab, 200) == list(range(200))
    lab.cables[1].send(segment(777))
    assert numbers(lab, 1) == [777]
    assert pipeline.queues()[3] == QueueState(queue(), False, 200, 200 * size, 0, 0)
    delete_row(pipeline)
    lab.cables[1].send(segment(778))
    assert numbers(lab, 1) == [778]
    pipeline.remove_queue(3)
    assert lab.events.empty()


def test_newer_packets_do_not_overtake(lab: Lab, pipeline: EbpfPipeline) -> None:
    """What another CPU sends while a long queue empties stays behind it, although its own CPU has nothing to do."""
    cpus = sorted(os.sched_getaffinity(0))
    held, newer = 200, 40  # more would not fit into the send buffer of a packet socket
    frames = [segment(number) for number in range(held + newer)]
    for _ in range(10):
        hold(pipeline)
        with sender(lab.cables[1], frames[:held], cpus[0]):
            pass
        with sender(lab.cables[1], frames[held:], cpus[-1], pause=0.0003):
            pipeline.release_queue(3)
            delete_row(pipeline)
        assert numbers(lab, held + newer) == list(range(held + newer))
        pipeline.remove_queue(3)


SENDER = """
import os, socket, sys, time
interface, cpu, pause, size = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
frames = sys.stdin.buffer.read()
os.sched_setaffinity(0, {cpu})
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sender.bind((interface, 0))
print("ready", flush=True)
for at in range(0, len(frames), size):
    sender.send(frames[at : at + size])
    after = time.perf_counter() + pause
    while time.perf_counter() < after:
        pass
"""


@contextlib.contextmanager
def sender(cable: Cable, frames: list[bytes], cpu: int, pause: float = 0) -> Iterator[None]:
    """Run a process on a CPU that sends frames, one every `pause` seconds; wait for it at the end."""
    command = [sys.executable, "-c", SENDER, cable.host, str(cpu), str(pause), str(len(frames[0]))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"".join(frames))
        process.stdin.close()
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.wait(10) == 0


def test_a_queue_is_used_again(lab: Lab, pipeline: EbpfPipeline) -> None:
    """Held again after it was let go; removed, its packet-ins go to the controller; made again, it counts from zero."""
    hold(pipeline)
    for round_ in range(3):
        lab.cables[1].send(segment(round_))
        assert lab.cables[2].receive(0.05) is None
        pipeline.release_queue(3)
        assert numbers(lab, 1) == [round_]
        pipeline.hold_queue(3)
        pipeline.hold_queue(3)
    assert pipeline.queues()[3].packets == 3
    pipeline.remove_queue(3)
    lab.cables[1].send(segment(9))
    assert lab.packet_in()[:7] == struct.pack("!HBI", 1, REASON_HELD, HOLD)
    pipeline.add_queue(3, queue())
    lab.cables[1].send(segment(10))
    lab.cables[1].send(segment(11))
    pipeline.remove_queue(3)
    assert numbers(lab, 2) == [10, 11]


def test_many_queues_at_once(pipeline: EbpfPipeline) -> None:
    """Any number of queues may hold at the same time; none waits for another to be let go."""
    for number in range(16):
        pipeline.add_queue(number, queue(id_=100 + number))
    assert sum(state.holding for state in pipeline.queues().values()) == 16
    for number in range(16):
        pipeline.release_queue(number)
        pipeline.remove_queue(number)
    assert pipeline.queues() == {}


def test_a_budget_in_bytes(lab: Lab, pipeline: EbpfPipeline) -> None:
    """What does not fit is dropped and counted, the newest first."""
    size = len(segment(0, 1000))
    hold(pipeline, budget=10 * size)
    for number in range(15):
        lab.cables[1].send(segment(number, 1000))
    counts = pipeline.queues()[3]

    assert (counts.packets, counts.dropped) == (10, 5)
    pipeline.release_queue(3)
    assert numbers(lab, 10) == list(range(10))


def test_a_new_pipeline_takes_over_what_waits(lab: Lab, pipeline: EbpfPipeline) -> None:
    """A queue belongs to the switch, not to the program that filled it."""
    hold(pipeline)
    lab.cables[1].send(segment(1))
    assert lab.cables[2].receive(0.05) is None
    again = lab.engine.load(program())
    fill(again)
    add_row(again)
    again.activate()
    pipeline.close()
    with pytest.raises(PipelineError, match="need an active pipeline"):
        pipeline.queues()[3]
    lab.cables[1].send(segment(2))
    assert lab.cables[2].receive(0.05) is None
    again.release_queue(3)
    assert numbers(lab, 2) == [1, 2]
    assert again.queues()[3].packets == 2


KILLED = """
import os, sys
from pathlib import Path
from dataplane.switch.engine import EbpfEngine
from tests.dataplane.engine.conftest import DEVICE
from tests.dataplane.engine.test_hold_queues import hold, network
engine = EbpfEngine(DEVICE, cache=Path(sys.argv[1]), on_packet_in=print, on_digest=print)
for number in (1, 2):
    engine.add_port(number, f"sw{number}")
running = network(engine)
hold(running)
print("holding", flush=True)
sys.stdin.read()
"""


def test_what_waits_survives_the_switch_process(cache: Path) -> None:
    """Killed and started anew, it goes on where the first one was, packets of the meantime included."""
    events: list[bytes] = []
    with own_namespace():
        cables = {number: Cable(number) for number in (1, 2)}
        command = [sys.executable, "-c", KILLED, str(cache)]
        first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"holding\n"
        cables[1].send(segment(1))
        first.kill()
        first.communicate()
        cables[1].send(segment(2))
        with EbpfEngine(DEVICE, cache=cache, on_packet_in=events.append) as engine:
            for number, cable in cables.items():
                engine.add_port(number, cable.port)
            lab = Lab(engine, cables)
            cables[1].send(segment(3))
            assert cables[2].receive(0.05) is None
            running = network(engine)
            hold(running)
            cables[1].send(segment(4))
            size = len(segment(0))
            assert running.queues()[3] == QueueState(queue(), True, 4, 4 * size, 0, 4 * size)
            running.release_queue(3)
            assert numbers(lab, 4) == [1, 2, 3, 4]
            cables[1].send(segment(5))
            assert numbers(lab, 1) == [5]
        assert not any(name.startswith("p4") for _, name in socket.if_nameindex())
        for cable in cables.values():
            cable.close()
    assert events == []


def test_refusals(lab: Lab, pipeline: EbpfPipeline) -> None:
    """Each with its reason, and nothing changed."""
    with pytest.raises(EntryNotFound, match="no hold queue 3"):
        pipeline.release_queue(3)
    with pytest.raises(BadEntry, match="a switch has 64"):
        pipeline.add_queue(64, queue())
    with pytest.raises(BadEntry, match="needs id, reason of packet_in"):
        pipeline.add_queue(3, HoldQueue({"reason": 2}, {"operation": 1, "id": 1}, BUDGET))
    with pytest.raises(BadEntry, match="0x100 does not fit packet_out"):
        pipeline.add_queue(3, queue(operation=256))
    pipeline.add_queue(3, queue())
    with pytest.raises(EntryExists, match="hold queue 3 is there"):
        pipeline.add_queue(3, queue(56))
    with pytest.raises(EntryExists, match="another hold queue"):
        pipeline.add_queue(4, queue())
    plain = lab.run(build.forwarder())
    with pytest.raises(BadEntry, match="no packet-in and packet-out headers"):
        plain.add_queue(5, queue())


def test_a_kernel_that_cannot(lab: Lab, pipeline: EbpfPipeline) -> None:
    """Where an interface cannot be made there are no hold queues, and nothing is left."""
    names = [name for _, name in socket.if_nameindex()]
    plugs = Plugs(99999)
    with pytest.raises(PipelineError, match="no hold queues"):
        plugs.make("p4qtest.0")
    plugs.end()
    assert [name for _, name in socket.if_nameindex()] == names


def test_nothing_is_left(lab: Lab, pipeline: EbpfPipeline) -> None:
    """Interfaces go with the engine, also those in which packets wait."""
    hold(pipeline)
    lab.cables[1].send(segment(1))
    assert any(name.startswith("p4q") for _, name in socket.if_nameindex())
    program = pipeline.object.program_id()
    lab.engine.close()
    assert not any(name.startswith("p4") for _, name in socket.if_nameindex())
    wait_for(lambda: program_name(program) == "", "freeing the program, which could call itself")


@pytest.mark.parametrize("chunk", [200, 1 << 18], ids=["requests", "bulk"])
def test_a_connection_does_not_notice(lab: Lab, pipeline: EbpfPipeline, chunk: int) -> None:
    """Held for 30 ms again and again under load: every byte arrives, and the sender takes nothing for lost."""
    with hosts(lab) as (one, two):
        with two.inside():
            listener = socket.create_server(("10.0.0.2", PORT))
        if chunk < 1000:
            one.never_wait_for_acknowledgements("10.0.0.2")
        with one.inside():
            client = socket.create_connection(("10.0.0.2", PORT), timeout=30)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = retransmits(client)  # an interface that is just up may lose a SYN
        with one.inside():
            timeouts = counter("TCPTimeouts")
        server, _ = listener.accept()
        server.settimeout(30)
        ends = threading.Event()
        sent = [0]

        def send() -> None:
            block = bytes(range(256)) * (chunk // 256 + 1)
            while not ends.is_set():
                client.sendall(block[:chunk])
                sent[0] += chunk
                if chunk < 1000:
                    time.sleep(0.0005)
            client.shutdown(socket.SHUT_WR)

        got = [0]

        def receive() -> None:
            while part := server.recv(1 << 20):
                got[0] += len(part)

        threads = [threading.Thread(target=run) for run in (send, receive)]
        for thread in threads:
            thread.start()
        each = []
        for _ in range(10):
            sofar = retransmits(client)
            hold(pipeline)
            time.sleep(0.03)
            pipeline.release_queue(3)
            delete_row(pipeline)
            pipeline.remove_queue(3)
            time.sleep(0.02)
            each.append(retransmits(client) - sofar)
        ends.set()
        for thread in threads:
            thread.join(30)
        assert got == sent
        repeated = retransmits(client) - before
        with one.inside():
            timeouts = counter("TCPTimeouts") - timeouts
        for end in (client, server, listener):
            end.close()
    print(f"{sent[0]} bytes sent, {repeated} segments repeated, for each hold {each}, {timeouts} time-outs")
    # What is sent when an acknowledgement comes, or room in a queue, leaves from that event's CPU, and what the program
    # sends from its own: either may overtake the other, held or not, and some is repeated. A hold that reordered would
    # have a whole window repeated every time, which is thousands of segments.
    assert statistics.median(each) <= (0 if chunk < 1000 else 500)
    assert chunk > 1000 or repeated <= 3
    assert timeouts == 0
    assert lab.events.empty()


def retransmits(connection: socket.socket) -> int:
    """Return how many segments a connection has sent again (tcpi_total_retrans)."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("=I", info, 100)[0])


def counter(name: str) -> int:
    """Return one of the extended TCP counters of the network namespace."""
    names, values = Path("/proc/thread-self/net/netstat").read_text().splitlines()[:2]
    return int(dict(zip(names.split(), values.split(), strict=True))[name])
