"""Real programs, real CRIU: what is moved keeps its connections, whatever they are."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from moving import PYTHON, Stage, open_descriptors, says, stage, wait_until

from apps.echo.client import gap_between
from migration import tree
from migration.images import FILES_IMAGE, split
from migration.namespaces import in_netns
from migration.report import Event, Outcome, Phase

pytestmark = pytest.mark.net

PROGRAMS = Path(__file__).parent / "programs"
CLIENTS_TIMER = 150  # ms: TCP's shortest retransmission time-out is 200
CLEAN = {"lost_bytes": 0, "duplicated_bytes": 0, "corrupt_bytes": 0, "resets": 0, "errors": []}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


def is_clean(result: dict[str, object]) -> bool:
    """Say whether a client saw nothing but echoes."""
    return {key: result[key] for key in CLEAN} == CLEAN


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.77.2.2", "::ffff:10.77.2.2"])
def test_server_moves_there_and_back(scene: Stage, host: str) -> None:
    """A server keeps its connections and accepts new ones, whatever its listener is bound to."""
    app = scene.serve("B", "--host", host)
    client = scene.measure("A", "--connect", "10.77.2.2:7000", "--connections", "4")
    client.wait_for_requests()
    migrator = scene.migrator()
    pauses = []
    for name in ("C", "B", "C"):
        report = migrator.migrate(app, scene.hosts[name])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        pauses.append(report.criu.frozen_ms + report.criu.restore_ms)
        assert report.connections.established == report.connections.kept == 4
        assert app.host.name == name
        client.wait_for_requests()
        connect_anew(scene)
    result = client.finish()
    assert is_clean(result)
    if max(pauses) < CLIENTS_TIMER:  # on a slow machine the client's kernel cannot know better
        assert result["retransmits"] == 0
    assert scene.runtime.terminate(app) == 0


def test_a_copy_keeps_the_clocks_of_the_machine(scene: Stage) -> None:
    """In a time namespace of its own its clocks would have stood still while it moved."""
    app = scene.serve("B")
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    assert Path(f"/proc/{app.pid}/ns/time").readlink() == Path("/proc/self/ns/time").readlink()


def test_files_are_known_by_their_sizes(scene: Stage) -> None:
    """No library has been read for its build id while the program stood still."""
    entries: list[Any] = []

    def look(step: str, when: str) -> None:
        if (step, when) == ("transfer", "before"):
            (image,) = migrator.images.glob(f"**/images/{FILES_IMAGE}")
            read = scene.runtime.fdinfo.file_entry.FromString
            entries.extend(read(message) for message in split(image.read_bytes())[1])

    app = scene.serve("B")
    migrator = scene.migrator(fault=look)
    assert migrator.migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    files = [entry.reg for entry in entries if entry.HasField("reg")]
    assert [file.name for file in files if file.build_id] == []
    assert any("libc" in file.name and file.size > 0 for file in files)


def test_a_program_is_stopped_while_the_hold_begins(scene: Stage) -> None:
    """CRIU has it in its hands by the time that the hold stands, or soon after, and has not looked at its sockets."""
    tracers: list[int] = []

    def look(step: str, when: str) -> None:
        if (step, when) == ("hold", "after"):
            wait_until(lambda: tree.tracer(app.pid), "CRIU stopping the program")
            tracers.append(tree.tracer(app.pid))

    app = scene.serve("B")
    assert scene.migrator(fault=look).migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    assert len(tracers) == 1


def test_a_program_with_datagrams_reads_them_before_it_is_stopped(scene: Stage) -> None:
    """No image has what waits in a UDP socket, so nothing may come once the program stands still."""
    tracers: list[int] = []

    def look(step: str, when: str) -> None:
        if (step, when) == ("hold", "after"):
            time.sleep(0.02)
            tracers.append(tree.tracer(app.pid))

    app = scene.serve("B", "--udp")
    assert scene.migrator(fault=look).migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    assert tracers == [0]


def test_a_connection_that_comes_at_the_last_moment_is_accepted(scene: Stage) -> None:
    """Stopped too early to accept it, the program runs on until it has: CRIU could not carry it."""
    log = scene.folder / "patient.log"
    command = [PYTHON, str(PROGRAMS / "patient.py")]
    app = scene.runtime.launch("patient", scene.hosts["B"], command, log)
    wait_until(lambda: says(log, "listening"), "the server listening")
    connections: list[socket.socket] = []
    openings: list[int] = []
    open_passage = scene.runtime.open_passage

    def connect(step: str, when: str) -> None:
        if (step, when) == ("hold", "before"):
            connections.append(
                in_netns(scene.hosts["A"].pid, lambda: socket.create_connection(("10.77.2.2", 7000), 5))
            )

    def opening(*arguments: Any, **options: Any) -> Any:
        openings.append(tree.tracer(app.pid))
        if len(openings) == 2:
            scene.runtime.custody.kill(app.pid, signal.SIGUSR1)
        return open_passage(*arguments, **options)

    scene.runtime.open_passage = opening  # type: ignore[method-assign]
    report = scene.migrator(fault=connect).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert openings == [0, 0]
    assert report.connections.kept == 1
    with connections[0] as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"


def connect_anew(scene: Stage) -> None:
    """Open a new connection to the server by its old address."""

    def talk() -> bytes:
        with socket.create_connection(("10.77.2.2", 7000), timeout=5) as sock:
            sock.sendall(b"hello")
            return sock.recv(5)

    assert in_netns(scene.hosts["A"].pid, talk) == b"hello"


def test_many_connections_survive(scene: Stage) -> None:
    """64 connections to one server are all kept."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000", "--connections", "64", "--rate", "2000")
    client.wait_for_requests()
    for name in ("C", "B"):
        report = scene.migrator().migrate(app, scene.hosts[name])
        assert report.outcome is Outcome.COMPLETED, report.reason
        assert report.connections.established == report.connections.kept == 64
        client.wait_for_requests()
    assert is_clean(client.finish())


def test_client_moves(scene: Stage) -> None:
    """A program's own outgoing connections stay open when it is the one that moves."""
    scene.serve()
    status = scene.folder / "client.status"
    arguments = scene.command("--connect", "10.77.2.2:7000", "--connections", "8")
    app = scene.runtime.launch("client", scene.hosts["A"], arguments, scene.folder / "client.log")
    wait_until(lambda: status.exists() and json.loads(status.read_text()).get("replies", 0) > 50, "replies")
    for name in ("C", "A", "C"):
        report = scene.migrator().migrate(app, scene.hosts[name])
        assert report.outcome is Outcome.COMPLETED, report.reason
        assert report.connections.kept == 8
        seen = json.loads(status.read_text())["replies"]
        wait_for_more(status, seen)
    assert scene.runtime.terminate(app) == 0
    assert is_clean(json.loads((scene.folder / "client.json").read_text()))


def wait_for_more(status: Path, seen: int) -> None:
    """Wait until a client has had more replies."""
    wait_until(lambda: json.loads(status.read_text())["replies"] > seen + 50, "replies again")


def test_connections_that_open_and_close_all_the_time(scene: Stage) -> None:
    """Clients that come and go while the server moves are all served: none is refused or reset."""
    app = scene.serve()
    stop = threading.Event()
    served: list[int] = []
    errors: list[str] = []

    def come_and_go() -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(("10.77.2.2", 7000), timeout=10) as sock:
                    sock.sendall(b"hello")
                    assert sock.recv(5) == b"hello"
                served.append(1)
            except OSError as ex:
                errors.append(str(ex))

    threads = [
        threading.Thread(target=in_netns, args=(scene.hosts["A"].pid, come_and_go), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    migrator = scene.migrator()
    for number in range(10):
        report = migrator.migrate(app, scene.hosts["CB"[number % 2]])
        assert report.outcome is Outcome.COMPLETED, report.reason
        before = len(served)
        wait_until(lambda before=before: len(served) > before + 20, "more clients")  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join(15)
    assert errors == []


def test_both_ends_of_a_bulk_stream_move(scene: Stage) -> None:
    """Streams at full speed in both directions lose and double nothing: the hashes are equal at both ends."""
    server = scene.serve("B", "--bulk")
    arguments = scene.command("--connect", "10.77.2.2:7000", "--connections", "2", "--bulk")
    client = scene.runtime.launch("client", scene.hosts["A"], arguments, scene.folder / "client.log")
    wait_until(lambda: scene.runtime.sockets(client), "the connections")
    time.sleep(0.3)  # full queues, not a condition that anybody could see
    migrator = scene.migrator()
    for app, name in ((server, "C"), (client, "D"), (server, "B"), (client, "A")):
        report = migrator.migrate(app, scene.hosts[name])
        assert report.outcome is Outcome.COMPLETED, report.reason
        assert report.connections.kept == 2
    assert scene.runtime.terminate(client, 60) == 0
    result = json.loads((scene.folder / "client.json").read_text())
    assert result["hashes_equal"] is True
    assert result["bytes_received"] > 10_000_000
    assert result["resets"] == 0


def test_twenty_moves_leave_nothing_behind(scene: Stage) -> None:
    """A ping-pong client waits for little more than CRIU's work; no descriptor, process or table is left over."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000")
    client.wait_for_requests()
    migrator = scene.migrator()
    migrator.migrate(app, scene.hosts["C"])
    before = open_descriptors()
    windows, pauses = [], []
    for number in range(20):
        start = time.monotonic()
        report = migrator.migrate(app, scene.hosts["BC"[number % 2]])
        assert report.outcome is Outcome.COMPLETED, report.reason
        client.wait_for_requests()
        pauses.append(report.criu.frozen_ms + report.criu.restore_ms)
        windows.append((start, time.monotonic()))
    assert open_descriptors() == before
    result = client.finish()
    assert is_clean(result)
    gaps = [gap_between(result, *window) or 0.0 for window in windows]
    print(f"gaps: {sorted(gaps)}")
    assert statistics.median(gaps) <= 3 * statistics.median(pauses) + 30


def test_events_tell_every_step(scene: Stage) -> None:
    """Each step is announced when it begins and when it has ended."""
    app = scene.serve()
    events: list[Event] = []
    report = scene.migrator().migrate(app, scene.hosts["C"], events.append)
    names = [
        "prepare",
        "hold",
        "checkpoint",
        "rewrite",
        "transfer",
        "restore",
        "switch over",
        "release",
        "verify",
    ]
    started = [event.step for event in events if event.phase is Phase.STARTED]
    ended = [event.step for event in events if event.phase is Phase.ENDED]
    assert sorted(started) == sorted(ended) == sorted(names)
    # "switch over" goes on beside the two steps that build the copy; all else is in order.
    for order in (started, ended):
        assert [name for name in order if name != "switch over"] == [n for n in names if n != "switch over"]
        assert order.index("rewrite") < order.index("switch over") < order.index("release")
    assert [step.name for step in report.steps] == names
    assert json.loads(json.dumps(report.to_json()))["criu"]["image_bytes"] > 1_000_000
    assert any(event.bytes for event in events)


def test_control_arm_without_hold_needs_retransmissions(scene: Stage) -> None:
    """With the hold off packets are dropped, and the client's kernel notices: the measurement is sensitive."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000")
    client.wait_for_requests()
    for name in ("C", "B"):
        report = scene.migrator(no_hold=True).migrate(app, scene.hosts[name])
        assert report.outcome is Outcome.COMPLETED, report.reason
        client.wait_for_requests()
    result = client.finish()
    assert is_clean(result)
    assert int(result["retransmits"]) > 0


FAMILY = r"""
import os, socket, threading, time
r, w = os.pipe()
child = os.fork()
if child == 0:
    while True:
        os.write(1, b"child got " + os.read(r, 100))
listener = socket.create_server(("0.0.0.0", 7000))
peer = socket.create_connection(("127.0.0.1", 7000))
own, _ = listener.accept()
threading.Thread(target=lambda: [own.sendall(own.recv(100)) for _ in iter(int, 1)], daemon=True).start()
number = 0
while True:
    number += 1
    peer.sendall(b"%d\n" % number)
    os.write(w, peer.recv(100))
    time.sleep(0.02)
"""


def test_family_with_threads_pipe_and_loopback_moves_as_one(scene: Stage) -> None:
    """Child processes, threads, pipes and connections within the program come along; so does its niceness."""
    log = scene.folder / "family.log"
    app = scene.runtime.launch("family", scene.hosts["B"], [PYTHON, "-c", FAMILY], log)
    wait_until(lambda: says(log, "got 5\n"), "five rounds")
    usual = os.getpriority(os.PRIO_PROCESS, app.pid)
    for name in ("C", "B"):
        report = scene.migrator().migrate(app, scene.hosts[name])
        assert report.outcome is Outcome.COMPLETED, report.reason
        lines = len(log.read_text().splitlines())
        wait_until(lambda lines=lines: len(log.read_text().splitlines()) > lines + 5, "more rounds")  # type: ignore[misc]
    numbers = [int(line.split()[-1]) for line in log.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert os.getpriority(os.PRIO_PROCESS, app.pid) == usual
    assert len(tree.processes(app.pid)) == 2
    scene.runtime.terminate(app)


UDP_CLIENT = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("10.77.2.2", 7000))
sock.settimeout(60)
number = 0
while True:
    number += 1
    sock.send(b"%d" % number)
    print("got", sock.recv(100).decode(), flush=True)
    time.sleep(0.02)
"""


def test_datagrams_follow_both_ends(scene: Stage) -> None:
    """A UDP server and a connected UDP client keep talking when either moves."""
    server = scene.serve("B", "--udp")
    log = scene.folder / "udp.log"
    client = scene.runtime.launch("udp", scene.hosts["A"], [PYTHON, "-c", UDP_CLIENT], log)
    wait_until(lambda: says(log, "got 5\n"), "five datagrams")
    for app, name in ((server, "C"), (client, "D"), (server, "B"), (client, "A")):
        report = scene.migrator().migrate(app, scene.hosts[name])
        assert report.outcome is Outcome.COMPLETED, report.reason
        lines = len(log.read_text().splitlines())
        wait_until(lambda lines=lines: len(log.read_text().splitlines()) > lines + 5, "more datagrams")  # type: ignore[misc]
    numbers = [int(line.split()[-1]) for line in log.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


TCP_CLIENT = """
import socket, time
sock = socket.create_connection(("10.77.2.2", 7000), source_address=("", 45000))
number = 0
while True:
    number += 1
    sock.sendall(b"%d" % number)
    print("got", sock.recv(100).decode(), flush=True)
    time.sleep(0.02)
"""


def test_connection_whose_port_is_taken_gets_another(scene: Stage) -> None:
    """Two clients with the same local port meet on one host: the newcomer's port changes, its peer sees the old one."""
    scene.serve("B")
    logs = {name: scene.folder / f"{name}.log" for name in "AD"}
    clients = [
        scene.runtime.launch(name, scene.hosts[name], [PYTHON, "-c", TCP_CLIENT], log)
        for name, log in logs.items()
    ]
    wait_until(lambda: all(says(log, "got 5") for log in logs.values()), "five replies each")
    for name in ("D", "A"):
        report = scene.migrator().migrate(clients[0], scene.hosts[name])
        assert report.outcome is Outcome.COMPLETED, report.reason
        [sock] = scene.runtime.sockets(clients[0])
        assert sock.local_port != 45000
        for log in logs.values():
            lines = len(log.read_text().splitlines())
            wait_until(lambda log=log, lines=lines: len(log.read_text().splitlines()) > lines + 5, "more")  # type: ignore[misc]
    for log in logs.values():
        numbers = [int(line.split()[-1]) for line in log.read_text().splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))


def test_full_log_and_memory_survive(scene: Stage) -> None:
    """A counter goes on counting from where it was, into the same log."""
    log = scene.folder / "counter.log"
    counter = [PYTHON, str(Path(__file__).parents[2] / "apps" / "counter.py"), "--interval", "0.02"]
    app = scene.runtime.launch("counter", scene.hosts["B"], counter, log)
    wait_until(lambda: says(log, "10 pid"), "ten counts")
    for name in ("C", "B"):
        assert scene.migrator().migrate(app, scene.hosts[name]).outcome is Outcome.COMPLETED
    lines = len(log.read_text().splitlines())
    wait_until(lambda: len(log.read_text().splitlines()) > lines + 5, "more counts")
    counts = [line.split() for line in log.read_text().splitlines()[1:]]
    assert [int(count[0]) for count in counts] == list(range(1, len(counts) + 1))
    assert len({tuple(count[1:]) for count in counts}) == 1


SLOW = """
import socket, threading, time
def serve(c):
    while data := c.recv(100):
        c.sendall(data)
listener = socket.create_server(("0.0.0.0", 7000), backlog=64)
print("listening", flush=True)
while True:
    time.sleep(0.1)
    c, _ = listener.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""


def test_a_long_backlog_is_waited_for(scene: Stage) -> None:
    """A program that takes its time for each connection is stopped when it has accepted all of them."""
    log = scene.folder / "slow.log"
    app = scene.runtime.launch("slow", scene.hosts["B"], [PYTHON, "-c", SLOW], log)
    wait_until(lambda: says(log, "listening"), "the server listening")
    connect = partial(socket.create_connection, (str(scene.hosts["B"].address), 7000), timeout=30)
    clients = [in_netns(scene.hosts["A"].pid, connect) for _ in range(25)]
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert (report.connections.kept, report.connections.broken) == (25, 0)
    for client in clients:
        with client:
            client.sendall(b"there?")
            assert client.recv(100) == b"there?"
