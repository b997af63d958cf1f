"""Measure the service: `python -m tests.dataplane.p4runtime.measure [ADDRESS]`.

Without an address it serves the reference model from a process of its own, which shows what the service itself costs.
With the address of a switch that runs the test program or load_balancer.p4 it shows the whole.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from finsy.proto import p4i, p4r

from dataplane.switch.p4runtime.device import Device
from dataplane.switch.p4runtime.server import P4RuntimeServer
from tests.dataplane.p4runtime.client import DEVICE_ID, Client
from tests.dataplane.p4runtime.model import ModelEngine
from tests.dataplane.p4runtime.programs import EXACT_ID


def serve(ready: Connection) -> None:
    """Serve the model until the other side closes."""
    device = Device(DEVICE_ID)
    engine = ModelEngine(device.on_packet_in, device.on_digest)
    device.attach_engine(engine)
    with P4RuntimeServer(device, "127.0.0.1:0") as server:
        ready.send(server.port)
        ready.recv()
        header = (3 << 15).to_bytes(3, "big")
        for _ in range(20_000):
            device.on_packet_in(header + bytes(1000))
        ready.recv()


def rows(table: p4i.Table, action: p4i.Action, count: int, first: int = 0) -> list[p4r.TableEntry]:
    """Return canonical rows of an exact table with different last keys."""
    made = []
    for number in range(first, first + count):
        row = p4r.TableEntry(table_id=table.preamble.id)
        *others, last = table.match_fields
        for other in others:
            row.match.add(field_id=other.id).exact.value = b"\x01"
        row.match.add(field_id=last.id).exact.value = number.to_bytes(
            max(1, (number.bit_length() + 7) // 8), "big"
        )
        row.action.action.action_id = action.preamble.id
        for param in action.params:
            row.action.action.params.add(param_id=param.id, value=b"\x01")
        made.append(row)
    return made


def timed(call: Callable[..., object], *arguments: object) -> float:
    """Return how long a call takes, in seconds."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def updates(kind: int, entries: list[p4r.TableEntry]) -> list[p4r.Update]:
    """Wrap entries."""
    return [p4r.Update(type=kind, entity=p4r.Entity(table_entry=entry)) for entry in entries]


def measure(client: Client, table: p4i.Table, action: p4i.Action) -> None:
    """Time single inserts, batches and reads, and remove what was inserted."""
    print(f"table {table.preamble.name}, {len(table.match_fields)} keys, action {action.preamble.name}")
    single = rows(table, action, 1000, first=60_000)
    times = sorted(timed(client.write, *updates(p4r.Update.INSERT, [row])) for row in single)
    print(
        f"single insert, round trip: median {statistics.median(times) * 1e6:.0f} us, p99 {times[989] * 1e6:.0f} us"
    )
    client.write(*updates(p4r.Update.DELETE, single))
    for size in (100, 1000):
        batches = [
            updates(p4r.Update.INSERT, rows(table, action, size, n * size)) for n in range(20_000 // size)
        ]
        requests = []
        for batch in batches:
            requests.append(p4r.WriteRequest(device_id=client.device_id, updates=batch))
            requests[-1].election_id.low = 1
        took = sum(timed(client.stub.Write, request) for request in requests)
        print(f"inserts in batches of {size}: {20_000 / took:,.0f} a second")
        if size == 1000:
            took = timed(client.read_table, table.preamble.id)
            print(f"reading 20,000 rows: {took * 1e3:.0f} ms")
        deletes = [updates(p4r.Update.DELETE, [u.entity.table_entry for u in batch]) for batch in batches]
        took = sum(timed(client.write, *batch) for batch in deletes)
        print(f"deletes in batches of {size}: {20_000 / took:,.0f} a second")


def main() -> None:
    """Measure the model, or the switch at an address."""
    if len(sys.argv) > 1:
        client = Client(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
        stream = client.stream()
        stream.bid(1, client.device_id)
        stream.expect("arbitration")
        info = client.get_config().config.p4info
        table = next(t for t in info.tables if t.preamble.name == "Ingress.connection")
        measure(client, table, next(a for a in info.actions if a.preamble.name == "Ingress.pin_to_backend"))
        stream.close()
        return
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
    process.start()
    client = Client(f"127.0.0.1:{ours.recv()}")
    stream = client.stream()
    stream.become_primary()
    client.set_config()
    info = client.get_config().config.p4info
    measure(client, next(t for t in info.tables if t.preamble.id == EXACT_ID), info.actions[0])
    start = time.perf_counter()
    ours.send("packets")
    for _ in range(20_000):
        stream.expect("packet")
    print(f"packet-ins of 1000 bytes: {20_000 / (time.perf_counter() - start):,.0f} a second")
    stream.close()
    ours.send("end")
    process.join()


if __name__ == "__main__":
    main()
