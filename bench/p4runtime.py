"""P4Runtime's cost: single inserts, batches, deletes and reads, over gRPC into the kernel.

A switch process runs load_balancer.p4; the client holds the raw stubs (tests/dataplane/p4runtime/client.py), so that
only little of what is measured is the client's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from finsy.proto import p4i, p4r
from google.protobuf import text_format

from bench.statistics import machine, median, percentile
from tests.dataplane.p4runtime.client import Client
from topo import paths
from topo.compile import Target, compile_p4

DEVICE_ID = 77
ROWS = 20_000


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench p4runtime")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    program = compile_p4(paths.P4SRC / "load_balancer.p4", Target.EBPF)
    info = text_format.Parse(program.p4info.read_text(), p4i.P4Info())
    seen: dict[str, list[float]] = {}
    with switch() as address:
        client = Client(address, DEVICE_ID)
        stream = client.stream()
        stream.bid(1, DEVICE_ID)
        stream.expect("arbitration")
        client.set_config(p4info=info, device_config=program.bmv2_json.read_bytes())
        for _ in range(options.rounds):
            for name, values in measure(client, info).items():
                seen.setdefault(name, []).extend(values)
        stream.close()
        client.close()
    single = seen.pop("single insert")
    result: dict[str, object] = {
        "single_insert_us": {
            "p50": round(median(single) * 1e6),
            "p99": round(percentile(single, 99) * 1e6),
        },
        "per_second": {name: round(median(values)) for name, values in seen.items()},
        "rounds": options.rounds,
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    return result


@contextmanager
def switch() -> Iterator[str]:
    """Run a switch process without ports; yields its address."""
    read, write = os.pipe()
    # fmt: off
    command = [sys.executable, "-m", "dataplane.switch", "--no-p4", "--device-id", str(DEVICE_ID),
               "--ready-fd", str(write), "--", "--grpc-server-addr", "127.0.0.1:0"]
    # fmt: on
    process = subprocess.Popen(command, pass_fds=[write], cwd=paths.CHECKOUT, stdout=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as ready:
            yield ready.readline().strip()
    finally:
        process.terminate()
        process.wait()


def measure(client: Client, info: p4i.P4Info) -> dict[str, list[float]]:
    """Do one round; seconds of single inserts, rows a second of everything else."""
    table = next(t for t in info.tables if t.preamble.alias == "connection")
    action = next(a for a in info.actions if a.preamble.alias == "pin_to_backend")
    single = rows(table, action, 1000, first=1 << 15)
    seen = {"single insert": [timed(client.write, *updates(p4r.Update.INSERT, [row])) for row in single]}
    client.write(*updates(p4r.Update.DELETE, single))
    for size in (100, 1000):
        batches = [rows(table, action, size, number * size) for number in range(ROWS // size)]
        for kind, name in ((p4r.Update.INSERT, "inserts"), (p4r.Update.DELETE, "deletes")):
            if kind == p4r.Update.DELETE and size == 1000:
                seen["rows read"] = [ROWS / timed(client.read_table, table.preamble.id)]
            ready = [updates(kind, batch) for batch in batches]
            seen[f"{name}, batches of {size}"] = [ROWS / sum(timed(client.write, *batch) for batch in ready)]
    return seen


def rows(table: p4i.Table, action: p4i.Action, count: int, first: int = 0) -> list[p4r.TableEntry]:
    """Return canonical rows of an exact table with different last keys."""
    made = []
    for number in range(first, first + count):
        row = p4r.TableEntry(table_id=table.preamble.id)
        *others, last = table.match_fields
        for other in others:
            row.match.add(field_id=other.id).exact.value = b"\x01"
        value = number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")
        row.match.add(field_id=last.id).exact.value = value
        row.action.action.action_id = action.preamble.id
        for param in action.params:
            row.action.action.params.add(param_id=param.id, value=b"\x01")
        made.append(row)
    return made


def updates(kind: int, entries: list[p4r.TableEntry]) -> list[p4r.Update]:
    """Wrap entries."""
    return [p4r.Update(type=kind, entity=p4r.Entity(table_entry=entry)) for entry in entries]


def timed(call: Callable[..., object], *arguments: object) -> float:
    """Return how long a call takes, in seconds."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start
