"""The main program's options, and the order in which it does what they ask for."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from controllers.migrations import WORKERS
from migration.deadline import Timeouts
from migration.transfer.modes import PAUSE_BUDGET, Mode, Via, parse_budget
from topo import ready
from topo.compile import Target
from topo.containers import engine as engines
from topo.containers.engine import ENGINES
from topo.errors import Terminated, TestbedError
from topo.kinds import HostKind
from topo.plan import LoadBalancerNetwork, Topology
from topo.report_file import write_report
from topo.transfers import DEFAULT_MODE, DEFAULT_TRANSFER, parse_rate

if TYPE_CHECKING:
    from topo.testbed import Testbed

DEMO_IMAGES = {"echo": ("tcp-echo",), "redis": ("redis", "app"), "pod": ("redis", "app")}
INTERRUPTED = 130  # as a shell reports SIGINT
STANDARD_OUTPUT = Path("-")


def parser(prog: str = "lb.py") -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog=prog, description="A testbed in which running programs move between hosts, connections open."
    )
    add = made.add_argument
    add("--target", choices=[t.value for t in Target], default="ebpf", help="what runs the P4 programs")
    add("--topology", choices=[t.value for t in Topology], default="single", help="which network")
    add(
        "--hosts",
        choices=[kind.value for kind in HostKind],
        default=HostKind.PROCESS.value,
        help="what programs run in: plain processes, containers started by runc, or an engine's",
    )
    add(
        "--switch-container",
        choices=ENGINES,
        help="run the switches' processes in containers of this engine, on the machine's network",
    )
    add("--demo", choices=list(DEMO_IMAGES), help="run a scripted scenario with its measuring client")
    add(
        "--count",
        type=positive,
        metavar="N",
        help="migrations of the echo server or the pod (2), of Redis (3)",
    )
    add("--connections", type=positive, default=1, metavar="N", help="the demo client's connections")
    add("--bulk", action="store_true", help="the demo's client streams at full speed in both directions")
    add("--no-hold", action="store_true", help="do not hold packets during a migration (for comparison)")
    add("--script", type=Path, metavar="FILE", help="read CLI commands from FILE")
    add(
        "--json",
        type=Path,
        nargs="?",
        const=None,
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="write the report to FILE; with --doctor the findings (without FILE: print them)",
    )
    add("--http-port", type=port, default=5000, metavar="PORT", help="of the HTTP API (default: 5000)")
    add(
        "--step-timeout",
        type=seconds,
        metavar="SECONDS",
        help="roll a migration back when a step takes longer",
    )
    add("--recover", action="store_true", help="take over a run that was killed, and go on with it")
    add("--workers", type=positive, default=WORKERS, metavar="N", help=f"migrations at once ({WORKERS})")
    add("--mode", choices=[m.value for m in Mode], default=DEFAULT_MODE, help="when a program's memory moves")
    add("--transfer", choices=[v.value for v in Via], default=DEFAULT_TRANSFER, help="where it moves")
    add(
        "--pause-budget",
        type=budget,
        default=PAUSE_BUDGET,
        metavar="SECONDS",
        help="for how long mode auto may stop a program rather than risk it (default: %(default)g)",
    )
    add("--management-rate", metavar="RATE", help="bandwidth of the hosts' management links, such as 1gbit")
    add("--trace", type=Path, metavar="DIR", help="keep the causal trace of each migration in DIR")
    add(
        "--pcap",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="DIR",
        help="capture both ends of each migration",
    )
    add("--doctor", action="store_true", help="say what works on this machine, and leave")
    add(
        "--bundle",
        type=Path,
        metavar="FILE",
        help="with --doctor: pack all that a bug report needs into FILE",
    )
    add("--clean", action="store_true", help="remove what crashed runs left behind, and leave")
    add("--check", action="store_true", help="look at the options, and leave")
    return made


def positive(text: str) -> int:
    """Parse a count."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def budget(text: str) -> float:
    """Parse a pause budget."""
    try:
        return parse_budget(text)
    except ValueError as ex:
        raise argparse.ArgumentTypeError(str(ex)) from ex


def seconds(text: str) -> float:
    """Parse a time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds, more than 0")
    return value


def port(text: str) -> int:
    """Parse a TCP port."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def main(arguments: Sequence[str], prog: str = "lb.py") -> int:
    """Do what the command line asks for; returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # lb.py's
        signal.signal(signal.SIGINT, signal.default_int_handler)
    options = _parse(arguments, prog)
    if options.doctor and not options.check:
        return _doctor(options, prog)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        _check_options(options)
        if options.check:
            return 0
        _check_machine(options)
        return _clean() if options.clean else _run(options)
    except TestbedError as ex:
        print(f"{prog}: {ex}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Terminated):
        print(f"\n{prog}: interrupted; everything that it had started is gone", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    made = parser(prog)
    options = made.parse_args(arguments)
    has_json = "json" in options
    options.json = getattr(options, "json", None)
    if options.doctor:
        options.json = options.json or (STANDARD_OUTPUT if has_json else None)
    elif has_json and options.json is None:
        made.error("argument --json: expected one argument")
    if options.bundle and not options.doctor:
        made.error("argument --bundle: it is an option of --doctor")
    return options


def _doctor(options: argparse.Namespace, prog: str) -> int:
    from topo.doctor import doctor

    try:
        return doctor(options.json, options.bundle)
    except TestbedError as ex:
        print(f"{prog}: {ex}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number: int, frame: object) -> NoReturn:
    raise Terminated


def _check_options(options: argparse.Namespace) -> None:
    """Refuse what cannot work anywhere, with what Python itself has: set-up asks before it installs anything."""
    if options.demo == "pod" and HostKind(options.hosts).engine is None:
        raise TestbedError("--demo pod needs hosts that are pods: --hosts docker or --hosts podman")
    if options.demo in ("redis", "pod") and (options.bulk or options.connections != 1):
        raise TestbedError(
            f"--bulk and --connections are options of --demo echo; --demo {options.demo} has its own load"
        )
    if options.management_rate:
        parse_rate(options.management_rate)
    if options.script and not options.script.is_file():
        raise TestbedError(f"--script {options.script}: there is no such file")


def _check_criu() -> None:
    """Refuse a CRIU that the user has named and that is none; set-up has tried the other ones."""
    from migration.criu import Criu, from_environment
    from migration.errors import CriuMissing

    if from_environment() is not None:
        try:
            Criu.find()
        except CriuMissing as ex:
            raise TestbedError(str(ex)) from ex


def _check_machine(options: argparse.Namespace) -> None:
    """Refuse what cannot work here before anything is built."""
    if os.geteuid() != 0:
        raise TestbedError("networks need root: type sudo python3 topo/lb.py")
    ready.check(HostKind(options.hosts), DEMO_IMAGES.get(options.demo, ()))
    _check_criu()
    if options.switch_container:
        engines.connect(options.switch_container)
    for option in ("trace", "pcap"):
        if (wanted := getattr(options, option)) is not None:
            _make_folder(f"--{option}", wanted)
    if options.json:
        folder = options.json.absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK) or options.json.is_dir():
            raise TestbedError(f"--json {options.json}: a file cannot be written there")


def _make_folder(option: str, path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as ex:
        raise TestbedError(f"{option} {path}: files cannot be written there: {ex.strerror}") from ex


def _clean() -> int:
    from topo.runs import clean_up

    found = clean_up()
    for left in found:
        links = f", links {' '.join(left.links)}" if left.links else ""
        containers = f", {left.containers} containers removed" if left.containers else ""
        print(f"run {left.run}: {left.processes} processes ended{containers}{links}, files removed")
        for engine in left.silent_engines:
            print(f"  {engine} does not answer: containers that it has of this run are removed when it does")
    if not found:
        print("nothing was left behind")
    return 0


def _testbed(options: argparse.Namespace) -> Testbed:
    """Return a new testbed, or the one that takes a killed run over: on request, or if it was in a migration."""
    from topo.left import is_in_the_middle
    from topo.runs import dead_runs
    from topo.testbed import Testbed

    interrupted = [run for run in dead_runs() if is_in_the_middle(run)]
    if options.demo and (options.recover or interrupted):
        name = (
            f"run {interrupted[-1].name} was killed in the middle of a migration"
            if interrupted
            else "--recover"
        )
        raise TestbedError(
            f"{name}: the demo needs a network of its own; type lb.py --recover without --demo to go on with what "
            "is there, or lb.py --clean to remove it"
        )
    common = {
        "http_port": options.http_port,
        "workers": options.workers,
        "traces": options.trace,
        "pcap": options.pcap,
        "mode": options.mode,
        "transfer": options.transfer,
        "pause_budget": options.pause_budget,
        "timeouts": Timeouts(options.step_timeout) if options.step_timeout else None,
    }
    if options.recover or interrupted:
        folder = interrupted[-1] if interrupted else None
        return Testbed.recover(folder, **common)
    network = LoadBalancerNetwork(topology=options.topology, target=options.target)
    return Testbed(
        network,
        hold=not options.no_hold,
        management_rate=options.management_rate,
        hosts=options.hosts,
        switch_container=options.switch_container,
        **common,
    )


def _say_recovered(bed: Testbed) -> None:
    """Say in a line what was taken over, and what became of every migration that had not ended."""
    apps = ", ".join(f"{app['name']} {app['state']} on {app['host']}" for app in bed.apps()) or "no programs"
    print(f"run {bed.folder.name} was killed and is taken over: {apps}", flush=True)
    for found in bed.recovered:
        print(f"  {found}", flush=True)


def _run(options: argparse.Namespace) -> int:
    from topo.cli import FerryCLI

    status = 0
    with _testbed(options) as bed:
        if bed.is_recovered:
            _say_recovered(bed)
        kind, target = Topology(bed.network.topology).value, Target(bed.network.target).value
        print(f"network {kind} on {target} is up; HTTP API at {bed.url}", flush=True)
        try:
            if options.demo:
                status = 0 if _demo(bed, options) else 1
            if options.script or not options.demo or sys.stdin.isatty():
                cli = FerryCLI(bed.mininet, bed, script=options.script)
                if options.script and cli.failed:
                    status = 1
        finally:
            if options.json:
                write_report(options.json, Target(bed.network.target).value, bed.migrations())
    return status


def _demo(bed: Testbed, options: argparse.Namespace) -> bool:
    """Run a scripted scenario; says whether nothing at all went wrong."""
    if options.demo == "redis":
        from topo.redis_demo import redis_demo

        return redis_demo(bed, options.count or 3)
    if options.demo == "pod":
        from topo.pod_demo import pod_demo

        return pod_demo(bed, options.count or 2)
    from topo.demo import echo_demo

    return echo_demo(bed, options.count or 2, options.connections, options.bulk)


if __name__ == "__main__":  # set-up, with the system's Python; anybody else runs lb.py
    sys.exit(main(sys.argv[1:]))
