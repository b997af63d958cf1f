"""What a hold costs by itself: datagrams held and let go, in the switch's queue and at the controller.

One socket sends numbered datagrams to a host while a hold of its address stands; then the hold is released. The
figures are the time from the call of `release` to the arrival of the last datagram, and whether any was missing or out
of order. No program moves.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bench.statistics import machine, median, percentile
from migration.namespaces import in_netns
from migration.steering import Endpoint, HeldStats, IpProtocol, Move, MovedListener
from topo.plan import LoadBalancerNetwork
from topo.testbed import Testbed

PORT = 7777
_NUMBER = struct.Struct("!I")
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ROOM = 256 << 20
SETTLE = 0.05


@dataclass(frozen=True)
class Round:
    """One hold."""

    held: HeldStats
    ms: float
    missing: int
    overtaken: int


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench hold")
    parser.add_argument("--packets", type=int, nargs="*", default=[10, 100, 1000, 5000], metavar="N")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(arguments)
    rounds: dict[tuple[str, int], list[Round]] = {}
    with Testbed(LoadBalancerNetwork(hosts=3)) as bed:
        receiver = in_netns(bed.host("h2").pid, _receiver)
        sender = in_netns(bed.host("h1").pid, _sender)
        target = Endpoint(IpProtocol.UDP, bed.hosts["h2"].address, PORT)
        offered = bed.controller.balancer.queues.offered
        for number in range(options.rounds):
            for count in options.packets:
                for arm in ("switch", "controller"):
                    bed.controller.balancer.queues.offered = offered and arm == "switch"
                    done = measure(bed, sender, receiver, target, count, f"{arm}{count}-{number}")
                    rounds.setdefault((arm, count), []).append(done)
        sender.close()
        receiver.close()
    result = {
        "arms": [summary(arm, count, found) for (arm, count), found in rounds.items()],
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    return result


def _receiver() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    made.bind(("0.0.0.0", PORT))
    made.settimeout(1.0)
    return made


def _sender() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(
        socket.SOL_SOCKET, _SO_SNDBUFFORCE, _ROOM
    )  # what waits in the kernel is still the sender's
    return made


def measure(
    bed: Testbed, sender: socket.socket, receiver: socket.socket, target: Endpoint, count: int, name: str
) -> Round:
    """Hold, send, let go, and look at what arrives."""
    steering = bed.controller.steering
    move = Move(name, "h2", "h2", [MovedListener(target, target)])
    steering.prepare(move)
    steering.hold(move)
    for number in range(count):
        sender.sendto(_NUMBER.pack(number), (str(target.address), target.port))
    time.sleep(SETTLE + count * 0.0005)  # the controller's arm takes a while to take them all up
    found: list[int] = []
    arrived = [0.0]

    def collect() -> None:
        try:
            while len(found) < count:
                found.append(_NUMBER.unpack(receiver.recv(64))[0])
                arrived[0] = time.monotonic()
        except TimeoutError:
            pass

    thread = threading.Thread(target=collect)
    thread.start()
    begin = time.monotonic()
    held = steering.release(move)
    thread.join()
    steering.finish(move)
    overtaken = sum(1 for before, after in pairwise(found) if after < before)
    return Round(held, (arrived[0] - begin) * 1000, count - len(found), overtaken)


def summary(arm: str, count: int, rounds: Sequence[Round]) -> dict[str, Any]:
    """Sum up the holds of one arm and size."""
    times = [r.ms for r in rounds]
    return {
        "held_in": arm,
        "packets": count,
        "release_to_last_ms": {"p50": round(median(times), 2), "p99": round(percentile(times, 99), 2)},
        "us_per_packet": round(median(times) * 1000 / count, 1),
        "missing": sum(r.missing for r in rounds),
        "overtaken": sum(r.overtaken for r in rounds),
        "dropped": sum(r.held.dropped for r in rounds),
    }
