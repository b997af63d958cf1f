"""Migrations as a service, under live connections: several at once, cancelling, Ctrl-C, traces, captures."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.utils import rdpcap

from controllers.cli import Client
from dataplane.switch.capture import PcapFile
from migration.report import Outcome
from tests.migration.shiviz import Logged, read
from tests.topo.clients import assert_clean
from tests.topo.machine import leftovers
from topo import paths
from topo.cli import FerryCLI
from topo.measure import TCP_ECHO, Load, MeasuringClient
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
VIP = "10.0.0.100:7000"


class Stop:
    """Stops a migration at a step until it may go on."""

    def __init__(self) -> None:
        self.at: tuple[str, str] | None = None
        self.there, self.go_on = threading.Event(), threading.Event()

    def __call__(self, step: str, when: str) -> None:
        if (step, when) == self.at:
            self.there.set()
            assert self.go_on.wait(20)

    def before(self, step: str) -> None:
        """Stop before a step from now on."""
        self.at = (step, "before")
        self.there.clear()
        self.go_on.clear()


@pytest.fixture
def stop() -> Stop:
    """Make something that stops nothing yet."""
    return Stop()


@pytest.fixture
def net(leaves_nothing: None, stop: Stop) -> Iterator[Testbed]:
    """A running network of four hosts with an echo server on h2."""
    with Testbed(LoadBalancerNetwork(hosts=4), fault=stop) as bed:
        bed.run("echo", "h2", SERVER, service=VIP)
        yield bed


@pytest.fixture
def http(net: Testbed) -> Iterator[httpx.Client]:
    """Talk to its API."""
    assert net.url is not None
    with httpx.Client(base_url=net.url, trust_env=False) as api:
        yield api


def ended(http: httpx.Client, id: str) -> dict[str, Any]:
    """Wait for a migration's end and return its report."""
    assert wait_until(lambda: http.get(f"/migrations/{id}").json()["outcome"], 30.0), id
    return dict(http.get(f"/migrations/{id}").json())


def post(http: httpx.Client, app: str, host: str) -> str:
    """Ask for a migration."""
    answer = http.post("/migrations", json={"app": app, "destination": host})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@contextmanager
def measured(bed: Testbed, folder: Path, *services: str) -> Iterator[list[MeasuringClient]]:
    """Run a client for each service on h1; at the end each must be clean."""
    with ExitStack() as stack:
        clients = []
        for number, service in enumerate(services):
            own = folder / f"client{number}"
            own.mkdir()
            load = Load(connections=2, rate=200)
            clients.append(stack.enter_context(MeasuringClient(bed.host("h1").pid, service, load, own)))
        yield clients
        for client in clients:
            assert_clean(client.stop())


def test_five_at_once(net: Testbed, http: httpx.Client, tmp_path: Path) -> None:
    """All arrive with their connections; events, reports, traces and metrics agree with one another."""
    services = [f"10.0.0.10{n}:700{n}" for n in range(1, 6)]
    for n, service in enumerate(services, 1):
        net.run(f"echo{n}", "h2", [*SERVER, "--port", f"700{n}"], service=service)
    with measured(net, tmp_path, *services):
        ids = [post(http, f"echo{n}", "h3") for n in range(1, 6)]
        reports = [ended(http, id) for id in ids]
    assert [r["outcome"] for r in reports] == ["completed"] * 5, reports
    assert [(r["connections"]["kept"], r["connections"]["broken"]) for r in reports] == [(2, 0)] * 5
    assert {app["host"] for app in net.apps() if app["name"] != "echo"} == {"h3"}
    for report in reports:
        assert steps_of_events(net, report["id"]) == report["steps"]
        check_trace(read(http.get(f"/migrations/{report['id']}/trace").text), report)
    text = http.get("/metrics").text
    assert 'p4ferry_migrations_total{outcome="completed"} 5.0' in text
    assert 'p4ferry_migration_step_seconds_count{step="restore"} 5.0' in text
    assert "p4ferry_image_bytes_count 5.0" in text
    assert "p4ferry_migration_gap_seconds_count 0.0" in text  # no client was asked about single migrations


def steps_of_events(net: Testbed, id: str) -> list[dict[str, Any]]:
    """Add up a migration's stream of events to what its report says."""
    assert net.url is not None
    steps, size = [], 0
    for event in Client(net.url).events(after=0):
        if event.data.get("id") != id:
            continue
        if event.kind == "migration_progress" and event.data["phase"] == "ended":
            steps.append({"name": event.data["step"], "ms": event.data["ms"]})
            size += event.data["bytes"] or 0
        if event.kind == "migration_ended":
            assert event.data["criu"]["image_bytes"] == size
            order = [step["name"] for step in event.data["steps"]]
            return sorted(steps, key=lambda step: order.index(step["name"]))
    raise AssertionError(f"{id} did not end")


def check_trace(events: list[Logged], report: dict[str, Any]) -> None:
    """Check what must have come before what in every migration that was completed."""
    clocks = {f"{event.host}: {event.text}": event.clock for event in events}
    assert {event.host for event in events} == {"controller", "switch", "source", "destination"}
    held = next(c for text, c in clocks.items() if text.startswith("switch: gets: write insert hold"))
    switched = next(
        c
        for text, c in clocks.items()
        if text.startswith("switch: gets: write modify") and "modify backend" in text
    )
    order = [
        held,
        clocks["source: gets: freeze"],
        clocks["source: says: frozen, the image is complete"],
        clocks["destination: gets: restore"],
        clocks["source: gets: end"],
        clocks["destination: gets: run"],
        clocks["destination: says: runs"],
        clocks["switch: gets: let go what waits, in order"],
        clocks["controller: verify: started"],
    ]
    for earlier, later in pairwise(order):
        assert all(count <= later.get(host, 0) for host, count in earlier.items()), (earlier, later)
    # Nothing runs at the destination before the network is switched over, which needs the image.
    assert switched["switch"] <= clocks["destination: gets: run"]["switch"]
    assert clocks["source: says: frozen, the image is complete"]["source"] <= switched["source"]
    done = [event.text for event in events if event.host == "controller" and ": ended, after " in event.text]
    assert sorted(text.split(":")[0] for text in done) == sorted(step["name"] for step in report["steps"])


def test_one_program_goes_one_way_at_a_time(
    net: Testbed, http: httpx.Client, stop: Stop, tmp_path: Path
) -> None:
    """What was asked for first is done first; a cancelled one in between is left out."""
    with measured(net, tmp_path, VIP):
        stop.before("prepare")
        ids = [post(http, "echo", host) for host in ("h3", "h2", "h4")]
        assert stop.there.wait(20)
        states = [http.get(f"/migrations/{id}").json()["state"] for id in ids]
        assert states == ["running", "queued", "queued"]
        assert http.delete(f"/migrations/{ids[1]}").json()["state"] == "cancelled"
        stop.at = None
        stop.go_on.set()
        reports = [ended(http, id) for id in ids]
    assert [(r["source"], r["destination"], r["outcome"]) for r in reports] == [
        ("h2", "h3", "completed"), ("h2", "h2", "rolled_back"), ("h3", "h4", "completed"),
    ]  # fmt: skip
    assert reports[1]["reason"] == "cancelled while it was queued"
    assert net.wait_for_migration(ids[1]).outcome is Outcome.ROLLED_BACK
    assert [r["id"] for r in net.migrations()] == ids


def test_cancelling_before_and_after_the_point_of_no_return(
    net: Testbed, http: httpx.Client, stop: Stop, tmp_path: Path
) -> None:
    """Before it the program runs on where it was; behind it the caller is told, and the program arrives."""
    with measured(net, tmp_path, VIP) as (client,):
        for step in ("hold", "checkpoint", "restore"):
            stop.before(step)
            id = post(http, "echo", "h3")
            assert stop.there.wait(20)
            assert http.delete(f"/migrations/{id}").json()["state"] == "cancelling"
            stop.go_on.set()
            report = ended(http, id)
            assert (report["outcome"], report["state"]) == ("rolled_back", "rolled_back")
            assert re.fullmatch(r"cancelled before the step '.+'", report["reason"]), report
            assert [app["host"] for app in net.apps()] == ["h2"]
            assert wait_until(lambda: client.measure(0, time.monotonic()), 5.0)
        stop.before("release")
        id = post(http, "echo", "h3")
        assert stop.there.wait(20)
        refused = http.delete(f"/migrations/{id}")
        assert (refused.status_code, refused.json()["error"]) == (
            409,
            f"migration {id} cannot be cancelled any more: echo is being started on h3",
        )
        stop.go_on.set()
        report = ended(http, id)
        assert (report["outcome"], report["connections"]["kept"]) == ("completed", 2)
        assert http.delete(f"/migrations/{id}").json()["error"] == f"migration {id} is over: it is completed"


def test_ctrl_c_cancels_a_scripts_migration(
    net: Testbed,
    stop: Stop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what came of it, the script fails there, and the testbed goes on."""
    script = tmp_path / "script"
    script.write_text("migrate echo h3\nnodes\n")

    def interrupt() -> None:
        assert stop.there.wait(20)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        wait_until(lambda: net.controller.migrations.get("m1").state == "cancelling", 10.0)
        stop.go_on.set()

    stop.before("checkpoint")
    with measured(net, tmp_path, VIP), Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)  # Mininet's CLI wants one with a descriptor
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert FerryCLI(net.mininet, net, script=script).failed
        thread.join()
        out, err = capsys.readouterr()
        assert "cancelling m1" in out and f"{script}:1: failed: migrate echo h3" in err
        assert "m1: echo h2 -> h3: rolled_back: cancelled before the step" in out
        stop.at = None
        script.write_text("migrate echo h3\n")
        assert not FerryCLI(net.mininet, net, script=script).failed


def test_ctrl_c_in_python(net: Testbed, stop: Stop) -> None:
    """`Testbed.migrate` turns back and lets the interrupt go on to whoever asked."""

    def interrupt() -> None:
        assert stop.there.wait(20)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        wait_until(lambda: net.controller.migrations.get("m1").state == "cancelling", 10.0)
        stop.go_on.set()

    stop.before("restore")
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        net.migrate("echo", to="h3")
    thread.join()
    assert [report["outcome"] for report in net.migrations()] == ["rolled_back"]
    assert [app["host"] for app in net.apps()] == ["h2"]


def test_ctrl_c_at_the_prompt_leaves_it_alive() -> None:
    """In a terminal: the migration ends, one way or the other, the prompt takes the next command; SIGTERM ends it."""
    before = leftovers()
    pid, terminal = pty.fork()
    if pid == 0:
        lb = [sys.executable, str(paths.CHECKOUT / "topo" / "lb.py"), "--http-port", "5098"]
        os.execv(sys.executable, lb)
    status = None
    try:
        read_until(terminal, "p4ferry> ")
        command = " ".join(SERVER)
        assert "echo runs on h2" in at_prompt(terminal, f"run echo h2 --service {VIP} -- {command}")
        os.write(terminal, b"migrate echo h3\n")
        read_until(terminal, "m1: echo to h3")
        os.write(terminal, b"\x03")
        out = read_until(terminal, "p4ferry> ")
        assert "cancelling m1" in out or "m1 cannot be cancelled any more" in out, out
        assert re.search(r"m1: echo h2 -> h3: (rolled_back: cancelled before|completed)", out), out
        assert "running" in at_prompt(terminal, "apps")
        os.kill(pid, signal.SIGTERM)
        read_until(terminal, "everything that it had started is gone")
        _, status = os.waitpid(pid, 0)  # while it has a terminal, the end of which is a SIGHUP
    finally:
        os.close(terminal)
        if status is None:
            os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert wait_until(lambda: leftovers()["processes"] == before["processes"], 5.0)


def at_prompt(terminal: int, command: str) -> str:
    """Type a command, and return what it says."""
    os.write(terminal, command.encode() + b"\n")
    return read_until(terminal, "p4ferry> ")


def read_until(terminal: int, text: str, timeout: float = 60.0) -> str:
    """Read a terminal up to a text."""
    seen, deadline = "", time.monotonic() + timeout
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {text!r} in {seen!r}"
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


def test_captures_of_both_ends(tmp_path: Path) -> None:
    """The hold's marker is the last that the source gets; what was held comes to the destination after the restore."""
    out = tmp_path / "pcap"
    out.mkdir()
    times: dict[str, float] = {}

    def note(step: str, when: str) -> None:
        times[f"{step} {when}"] = time.time()

    with Testbed(LoadBalancerNetwork(hosts=4), pcap=out, fault=note) as net:
        net.run("echo", "h2", SERVER, service=VIP)
        with MeasuringClient(net.host("h1").pid, VIP, Load(rate=1000), tmp_path) as client:
            report = net.migrate("echo", "h3")
            assert_clean(client.stop())
        assert report.outcome is Outcome.COMPLETED and report.held.packets > 0
        assert sorted(p.name for p in out.iterdir()) == ["m1-destination-h3.pcap", "m1-source-h2.pcap"]
        check_captures(out, times)
        out.joinpath("m1-source-h2.pcap").unlink()
        out.joinpath("m1-destination-h3.pcap").unlink()
        out.rmdir()  # a capture that cannot be written is no reason not to move
        assert net.migrate("echo", "h2").outcome is Outcome.COMPLETED
        assert "m2-source-h3.pcap is not written" in (net.folder / "controller.log").read_text()
    assert not out.exists()


def check_captures(out: Path, times: dict[str, float]) -> None:
    """Compare the packets to each end with the migration's steps, and with each other."""
    source, destination = rdpcap(str(out / "m1-source-h2.pcap")), rdpcap(str(out / "m1-destination-h3.pcap"))
    assert source[0].time < times["hold before"]
    to_source = [p for p in source if IP in p and p[IP].dst == "10.0.2.2"]
    # The one before it, in "prepare", only measures the way.
    *_, marker = (p for p in to_source if UDP in p and p[UDP].dport == 9)
    assert to_source[-1].time == marker.time, to_source[-1].summary()
    assert times["hold before"] <= marker.time <= times["hold after"]
    data = [
        p for p in destination if IP in p and p[IP].dst == "10.0.3.3" and TCP in p and len(p[TCP].payload)
    ]
    assert data[0].time >= times["restore after"]
    # The destination's first byte follows the source's last: nothing was lost, nothing was sent to both.
    last = [p for p in to_source if TCP in p and len(p[TCP].payload)][-1]
    assert data[0][TCP].seq == (last[TCP].seq + len(last[TCP].payload)) % 2**32


def test_a_capture_file_that_is_full_ends_early(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With whole packets only, and a word about it."""
    file = PcapFile(tmp_path / "x.pcap", 300)
    for n in range(9):
        file.write(1000 + n, 5, bytes(84))
    file.close()
    packets = rdpcap(str(tmp_path / "x.pcap"))
    assert [(float(p.time), len(p)) for p in packets] == [(1000 + n + 5e-9, 84) for n in range(3)]
    assert caplog.text.count("ends early: it has reached its limit") == 1
