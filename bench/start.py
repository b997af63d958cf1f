"""How long until things are there: P4 compiler, switch process, testbed. Each is a new process, as users start it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.statistics import machine, median
from topo import paths


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench start")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    things: dict[str, Callable[[], float]] = {
        "compile load_balancer.p4": compile_load_balancer,
        "switch ready": switch_ready,
        "testbed single, to the CLI": lambda: testbed("single"),
        "testbed triangle, to the CLI": lambda: testbed("triangle"),
    }
    seen: dict[str, list[float]] = {name: [] for name in things}
    testbed("single")  # fills the caches that set-up leaves empty
    for _ in range(options.runs):
        for name, measure in things.items():
            seen[name].append(measure())
    result: dict[str, object] = {
        name: {"median_s": round(median(values), 3), "max_s": round(max(values), 3)}
        for name, values in seen.items()
    }
    result |= {"runs": options.runs, "machine": machine()}
    print(json.dumps(result, indent=2))
    return result


def compile_load_balancer() -> float:
    """Compile to both outputs, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = ["-o", f"{folder}/lb.json", "--p4runtime-files", f"{folder}/lb.p4info.txtpb"]
        command = [
            sys.executable,
            "-m",
            "dataplane.compiler",
            *outputs,
            str(paths.P4SRC / "load_balancer.p4"),
        ]
        begin = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, cwd=paths.CHECKOUT)
        return time.monotonic() - begin


def switch_ready() -> float:
    """Start a switch process; it says when it serves."""
    read, write = os.pipe()
    # fmt: off
    command = [sys.executable, "-m", "dataplane.switch", "--no-p4", "--device-id", "77", "--ready-fd", str(write),
               "--", "--grpc-server-addr", "127.0.0.1:0"]
    # fmt: on
    begin = time.monotonic()
    process = subprocess.Popen(command, pass_fds=[write], cwd=paths.CHECKOUT, stdout=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as ready:
            if not ready.readline():
                raise RuntimeError("the switch did not start")
        return time.monotonic() - begin
    finally:
        process.terminate()
        process.wait()


def testbed(topology: str) -> float:
    """Start lb.py; its first command says when the CLI is there."""
    with tempfile.TemporaryDirectory() as folder:
        script, there = Path(folder) / "script", Path(folder) / "there"
        script.write_text(f"sh date +%s.%N >{there}\n")
        command = [sys.executable, str(paths.CHECKOUT / "topo" / "lb.py"), "--topology", topology]
        begin = time.time()
        subprocess.run([*command, "--script", str(script)], check=True, capture_output=True)
        return float(there.read_text()) - begin
