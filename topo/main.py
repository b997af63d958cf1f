"""The main program's options, and the order in which it does what they ask for."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from topo.compile import Target
from topo.errors import TestbedError
from topo.plan import LoadBalancerNetwork, Topology

INTERRUPTED = 130  # as a shell reports SIGINT


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog="lb.py", description="A testbed in which running programs move between hosts, connections open."
    )
    add = made.add_argument
    add("--target", choices=[t.value for t in Target], default="ebpf", help="what runs the P4 programs")
    add("--topology", choices=[t.value for t in Topology], default="single", help="which network")
    add("--hosts", choices=["process", "docker", "podman"], default="process", help="what the hosts are")
    add("--demo", choices=["echo", "redis"], help="run a scripted scenario with its measuring client")
    add("--count", type=positive, default=2, metavar="N", help="migrations of the demo (default: 2)")
    add("--connections", type=positive, default=1, metavar="N", help="the demo client's connections")
    add("--bulk", action="store_true", help="the demo's client streams at full speed in both directions")
    add("--no-hold", action="store_true", help="do not hold packets during a migration (for comparison)")
    add("--script", type=Path, metavar="FILE", help="read CLI commands from FILE")
    add("--json", type=Path, metavar="FILE", help="write the report to FILE")
    add("--http-port", type=port, default=5000, metavar="PORT", help="of the HTTP API (default: 5000)")
    add("--doctor", action="store_true", help="say what works on this machine, and leave")
    add("--clean", action="store_true", help="remove what crashed runs left behind, and leave")
    return made


def positive(text: str) -> int:
    """Parse a count."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def port(text: str) -> int:
    """Parse a TCP port."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.doctor:
        from topo.doctor import doctor

        return doctor()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        _check(options)
        return _clean() if options.clean else _run(options)
    except TestbedError as ex:
        print(f"lb.py: {ex}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlb.py: interrupted; everything that it had started is gone", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is built."""
    if os.geteuid() != 0:
        raise TestbedError("networks need root: type sudo python topo/lb.py")
    if options.hosts != "process":
        raise TestbedError(f"--hosts {options.hosts} is not supported yet; use --hosts process")
    if options.demo == "redis":
        raise TestbedError("--demo redis is not supported yet; use --demo echo")
    if options.script and not options.script.is_file():
        raise TestbedError(f"--script {options.script}: there is no such file")
    if options.json:
        folder = options.json.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or options.json.is_dir():
            raise TestbedError(f"--json {options.json}: a file cannot be written there")


def _clean() -> int:
    from topo.runs import clean_up

    found = clean_up()
    for left in found:
        links = f", links {' '.join(left.links)}" if left.links else ""
        print(f"run {left.run}: {left.processes} processes ended{links}, files removed")
    if not found:
        print("nothing was left behind")
    return 0


def _run(options: argparse.Namespace) -> int:
    from topo.cli import FerryCLI
    from topo.testbed import Testbed

    network = LoadBalancerNetwork(topology=options.topology, target=options.target)
    status = 0
    with Testbed(network, hold=not options.no_hold, http_port=options.http_port) as bed:
        print(f"network {options.topology} on {options.target} is up; HTTP API at {bed.url}", flush=True)
        try:
            if options.demo:
                from topo.demo import echo_demo

                passed = echo_demo(bed, options.count, options.connections, options.bulk)
                status = 0 if passed else 1
            if options.script or not options.demo or sys.stdin.isatty():
                cli = FerryCLI(bed.mininet, bed, script=options.script)
                if options.script and cli.failed:
                    status = 1
        finally:
            if options.json:
                write_report(options.json, options.target, bed.migrations())
    return status


def write_report(path: Path, target: str, migrations: list[dict[str, Any]]) -> None:
    """Write design.md's report; a half-written one never replaces an earlier one."""
    text = json.dumps({"version": 1, "target": target, "migrations": migrations}, indent=2) + "\n"
    if path.exists() and not path.is_file():  # a device or a pipe, such as /dev/stdout
        path.write_text(text)
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)
