"""Real TCP connections: GSO packets stay whole, through the pipeline and through the controller."""

from __future__ import annotations

import hashlib
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dataplane.switch.engine import EbpfPipeline, offload
from dataplane.switch.pipeline import (
    ActionCall,
    Exact,
    Operation,
    PipelineRejected,
    TableEntry,
    Ternary,
    Update,
)
from tests.dataplane.engine import build
from tests.dataplane.engine.conftest import Lab, insert
from tests.dataplane.engine.network import Host
from tests.dataplane.engine.test_packets import ip, tcp

pytestmark = pytest.mark.net

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
MEGABYTES = 20


@contextmanager
def hosts(lab: Lab) -> Iterator[tuple[Host, Host]]:
    """Turn the far ends of ports 1 and 2 into hosts 10.0.0.1 and 10.0.0.2."""
    one = Host(lab.cables[1], "10.0.0.1", A, {"10.0.0.2": B, "10.0.9.9": B})
    two = Host(lab.cables[2], "10.0.0.2", B, {"10.0.0.1": A})
    try:
        yield one, two
    finally:
        one.close()
        two.close()


def transfer(one: Host, two: Host, address: str = "10.0.0.2") -> None:
    """Send data over one connection, and compare what arrives; the reverse direction carries its hash."""
    with two.inside():
        listener = socket.create_server(("10.0.0.2", 7000))
    data = os.urandom(1 << 20)
    digests: queue.Queue[bytes] = queue.Queue()

    def serve() -> None:
        connection, _ = listener.accept()
        hash_, left = hashlib.sha256(), MEGABYTES << 20
        while left and (part := connection.recv(1 << 20)):
            hash_.update(part)
            left -= len(part)
        connection.sendall(hash_.digest())
        connection.close()
        digests.put(hash_.digest())

    thread = threading.Thread(target=serve)
    thread.start()
    with one.inside():
        client = socket.create_connection((address, 7000), timeout=30)
    expected = hashlib.sha256()
    for _ in range(MEGABYTES):
        client.sendall(data)
        expected.update(data)
    assert client.recv(64, socket.MSG_WAITALL) == expected.digest()
    client.close()
    thread.join(30)
    listener.close()
    assert digests.get(timeout=1) == expected.digest()


def test_rewritten_stream(lab: Lab) -> None:
    """A connection to a translated address works, in packets much larger than the MTU."""
    pipeline = lab.run(build.forwarder())
    insert(
        pipeline,
        "Ingress.nat",
        [Exact(ip("10.0.9.9")), Exact(1)],
        "Ingress.rewrite",
        2,
        ip("10.0.0.1"),
        ip("10.0.0.2"),
        0x02000000000B,
    )
    insert(
        pipeline,
        "Ingress.nat",
        [Exact(ip("10.0.0.1")), Exact(2)],
        "Ingress.rewrite",
        1,
        ip("10.0.9.9"),
        ip("10.0.0.1"),
        0x02000000000A,
    )
    with hosts(lab) as (one, two):
        transfer(one, two, "10.0.9.9")
    counters = pipeline.read_direct_counters("Ingress.nat")
    there = counters[(Exact(ip("10.0.9.9")), Exact(1)), 0]
    assert there.bytes / there.packets > 4000, "GSO packets were segmented on the way"


def relay(
    lab: Lab, pipeline: EbpfPipeline, answer: Callable[[int], bytes], frames: list[bytes]
) -> threading.Thread:
    """Start a controller that sends every packet-in back, with the header that `answer` gives for its port."""

    def run() -> None:
        while True:
            kind, frame = lab.events.get()
            if kind == "stop":
                return
            if kind == "packet_in" and isinstance(frame, bytes):
                port, _ = struct.unpack_from("!HB", frame)
                frames.append(frame[3:])
                pipeline.packet_out(answer(port) + frame[3:])

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def through_controller(
    lab: Lab, pipeline: EbpfPipeline, answer: Callable[[int], bytes], address: str
) -> list[bytes]:
    """Run a connection whose every packet goes up and comes back; return the packets."""
    for port in (1, 2):
        insert(pipeline, "Ingress.where", [Ternary(0, 0), Exact(port)], "Ingress.punt", 1, priority=1)
    frames: list[bytes] = []
    with hosts(lab) as (one, two):
        thread = relay(lab, pipeline, answer, frames)
        try:
            transfer(one, two, address)
        finally:
            lab.events.put(("stop", None))
            thread.join()
    assert pipeline.lost() == {"digests": 0, "packet_ins": 0, "reshaped": 0}
    return frames


def test_stream_through_the_controller(lab: Lab) -> None:
    """Packets come up whole and with right checksums, and go out as they are."""
    pipeline = lab.run(build.controller())
    frames = through_controller(
        lab, pipeline, lambda port: struct.pack("!HB", 3 - port, build.OP_SEND), "10.0.0.2"
    )
    assert max(map(len, frames)) > 60000
    for frame in frames:
        if frame[12:14] != b"\x08\x00" or frame[23] != offload.TCP:
            continue  # a host announces itself
        found = offload.find_transport(frame)
        assert found is not None
        assert offload.is_correct(frame, found)


def test_held_stream_is_rewritten_when_resumed(lab: Lab) -> None:
    """Large packets that come back from the controller are rewritten like any other, and stay whole."""
    pipeline = lab.run(build.controller())
    forwards = {11: (2, ip("10.0.0.1"), ip("10.0.0.2")), 12: (1, ip("10.0.9.9"), ip("10.0.0.1"))}
    for port, params in forwards.items():
        insert(
            pipeline, "Ingress.where", [Ternary(0, 0), Exact(port)], "Ingress.forward", *params, priority=1
        )
    frames = through_controller(
        lab, pipeline, lambda port: struct.pack("!HB", 10 + port, build.OP_RESUME), "10.0.9.9"
    )
    assert max(map(len, frames)) > 60000


def test_replacement_under_traffic(lab: Lab) -> None:
    """While pipelines replace each other, no packet is lost or passes unprocessed."""

    def make() -> EbpfPipeline:
        pipeline = lab.engine.load(build.forwarder())
        insert(
            pipeline,
            "Ingress.nat",
            [Exact(ip("10.0.0.2")), Exact(1)],
            "Ingress.rewrite",
            2,
            ip("10.0.0.1"),
            ip("10.0.0.2"),
            0x02000000000B,
        )
        insert(
            pipeline,
            "Ingress.nat",
            [Exact(ip("10.0.0.1")), Exact(2)],
            "Ingress.rewrite",
            1,
            ip("10.0.0.2"),
            ip("10.0.0.1"),
            0x02000000000A,
        )
        return pipeline

    current = make()
    current.activate()
    with hosts(lab) as (one, two):
        stop = threading.Event()
        sent = received = 0
        with two.inside():
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
            sink.bind(("10.0.0.2", 9))
        with one.inside():
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            source.connect(("10.0.0.2", 9))

        def blast() -> None:
            nonlocal sent
            while not stop.is_set():
                source.send(b"x" * 100)
                sent += 1

        thread = threading.Thread(target=blast)
        thread.start()
        for _ in range(20):
            before, current = current, make()
            current.activate()
            before.close()
        stop.set()
        thread.join()
        sink.settimeout(0.5)
        try:
            while sink.recv(200):
                received += 1
        except TimeoutError:
            pass
        source.close()
        sink.close()
    assert sent > 1000
    assert received == sent


def test_rejected_pipeline_leaves_the_old_one(lab: Lab) -> None:
    pipeline = lab.run(build.forwarder())
    insert(pipeline, "Ingress.nat", [Exact(ip("10.0.0.2")), Exact(1)], "Ingress.rewrite", 2, 1, 2, 3)
    with pytest.raises(PipelineRejected):
        lab.engine.load(b"{}")
    lab.cables[1].send(bytes(tcp()))
    assert lab.cables[2].receive() is not None
    [error] = pipeline.apply(
        [Update(Operation.DELETE, "Ingress.nat", TableEntry((Exact(9), Exact(9)), ActionCall("x")))]
    )
    assert error is not None
