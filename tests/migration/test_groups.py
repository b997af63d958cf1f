"""Programs that move together, with everything between them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, says, stage, wait_until

from migration.errors import MigrationError
from migration.groups import Member, Party
from migration.model import App
from migration.namespaces import in_netns
from migration.netstat import counters
from migration.report import Outcome
from migration.transfer.modes import Mode, Wish
from migration.tree import is_running

pytestmark = pytest.mark.net

# A server that answers over a UNIX socket and over TCP, and its client; both go on for ever.
SERVER = """
import os, socket, sys, threading
def serve(listener):
    while True:
        c, _ = listener.accept()
        threading.Thread(target=lambda c=c: [c.sendall(c.recv(100)) for _ in iter(int, 1)], daemon=True).start()
unix = socket.socket(socket.AF_UNIX)
unix.bind(sys.argv[1])
unix.listen()
threading.Thread(target=serve, args=(unix,), daemon=True).start()
listener = socket.create_server(("0.0.0.0", 7000))
print("listening", flush=True)
serve(listener)
"""
CLIENT = """
import os, socket, sys, time
socks = []
for where in sys.argv[1:]:
    s = socket.socket(socket.AF_UNIX if where.startswith("/") else socket.AF_INET)
    s.connect(where if where.startswith("/") else (where, 7000))
    socks.append(s)
me, number = os.getpid(), 0
while True:
    number += 1
    for s in socks:
        s.sendall(b"%d" % number)
        assert s.recv(100) == b"%d" % number
    assert os.getpid() == me
    print(number, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


def lines(app: App) -> list[int]:
    """Return the numbers that a client has counted."""
    return [int(line) for line in app.log.read_text().splitlines()]


def wait_for_lines(*apps: App) -> None:
    """Wait until clients have counted on, without a gap."""
    before = {app.name: len(lines(app)) for app in apps}
    for app in apps:
        wait_until(lambda app=app: len(lines(app)) > before[app.name] + 5, f"more of {app.name}")  # type: ignore[misc]
        assert lines(app) == list(range(1, len(lines(app)) + 1))


def start_pod(scene: Stage) -> tuple[App, Member, Member]:
    """Start a group of a server and a client that talk in every way."""
    folder, runtime = scene.folder, scene.runtime
    pod = runtime.launch_group("pod", scene.hosts["B"], folder / "pod.log")
    unix = str(folder / "unix")
    server = runtime.launch_in(pod, "server", [PYTHON, "-c", SERVER, unix], folder / "server.log")
    wait_until(lambda: says(server.log, "listening"), "the server listening")
    addresses = [unix, "127.0.0.1", "10.77.2.2"]
    client = runtime.launch_in(pod, "client", [PYTHON, "-c", CLIENT, *addresses], folder / "client.log")
    wait_until(client.log.exists, "the client's log")
    wait_for_lines(client)
    return pod, server, client


def test_group_moves_as_one(scene: Stage) -> None:
    """UNIX sockets and connections over the loopback and the host's own address live on in the group."""
    pod, server, client = start_pod(scene)
    outside = scene.measure("A", "--connect", "10.77.2.2:7000")
    outside.wait_for_requests()
    for host in ("C", "B", "D"):
        report = scene.migrator().migrate(pod, scene.hosts[host])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert report.connections.kept == 5  # both ends of two, and the one from outside
        assert pod.host is client.host is server.host is scene.hosts[host]
        assert scene.runtime.is_running(client)
        assert scene.runtime.is_running(server)
        wait_for_lines(client)
        outside.wait_for_requests()
    result = outside.finish()
    assert result["lost_bytes"] == result["resets"] == 0


def test_member_alone_is_refused(scene: Stage) -> None:
    """The sentence says what to name instead."""
    _, _, client = start_pod(scene)
    report = scene.migrator().migrate(client, scene.hosts["C"])
    assert report.outcome is Outcome.REFUSED
    assert report.reason == "client belongs to the group pod, which moves as one: migrate pod"
    wait_for_lines(client)


def test_group_that_fails_to_move_stays(scene: Stage) -> None:
    """Rolled back before and after the switch-over, the group talks on where it was."""
    pod, _, client = start_pod(scene)
    for where in (("restore", "after"), ("release", "after")):

        def fail(step: str, when: str, where: tuple[str, str] = where) -> None:
            if (step, when) == where:
                raise MigrationError("injected")

        report = scene.migrator(fault=fail).migrate(pod, scene.hosts["C"])
        assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "injected")
        assert client.host is scene.hosts["B"]
        wait_for_lines(client)


def test_members_come_and_go(scene: Stage) -> None:
    """A member that ends is reaped by its group; another can join where the group is now; all end together."""
    pod, server, client = start_pod(scene)
    process = client.pid
    scene.runtime.terminate(client)
    assert not is_running(process)
    assert client.pid == 0
    assert not scene.runtime.is_running(client)
    assert not Path(f"/proc/{process}").exists()
    assert scene.runtime.is_running(server)
    report = scene.migrator().migrate(pod, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    again = scene.runtime.launch_in(
        pod, "again", [PYTHON, "-c", CLIENT, "127.0.0.1", "10.77.3.2"], scene.folder / "again.log"
    )
    wait_until(again.log.exists, "its log")
    wait_for_lines(again)
    process = again.pid
    scene.runtime.terminate(pod)
    wait_until(lambda: not is_running(process), "the end of the group")


def start_apart(scene: Stage) -> list[App]:
    """Start a server and a client by themselves, connected over the loopback and the host's own address."""
    folder, runtime, host = scene.folder, scene.runtime, scene.hosts["B"]
    server = runtime.launch(
        "server", host, [PYTHON, "-c", SERVER, str(folder / "unix")], folder / "server.log"
    )
    wait_until(lambda: says(server.log, "listening"), "the server listening")
    addresses = ["127.0.0.1", "10.77.2.2"]
    client = runtime.launch("client", host, [PYTHON, "-c", CLIENT, *addresses], folder / "client.log")
    wait_until(client.log.exists, "the client's log")
    wait_for_lines(client)
    return [server, client]


def test_programs_started_apart_move_together(scene: Stage) -> None:
    """Their connections with each other live on, as does one from outside, and one whose port is taken on the way."""
    apps = start_apart(scene)
    outside = scene.measure("A", "--connect", "10.77.2.2:7000")
    outside.wait_for_requests()
    [port] = [s.local_port for s in scene.runtime.sockets(apps[1]) if s.local == scene.hosts["B"].address]
    with in_netns(scene.hosts["C"].pid, lambda: socket.create_server(("10.77.3.2", port))):
        for host in ("C", "B", "D"):
            report = scene.migrator().migrate(Party(apps), scene.hosts[host])
            assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
            assert report.app == "server,client"
            assert report.connections.kept == 5
            assert [app.host.name for app in apps] == [host, host]
            assert all(map(scene.runtime.is_running, apps))
            wait_for_lines(apps[1])
            outside.wait_for_requests()
    result = outside.finish()
    assert result["lost_bytes"] == result["resets"] == 0


@pytest.mark.parametrize("step", ["prepare", "checkpoint", "restore", "switch over", "release"])
def test_party_that_fails_to_move_stays(scene: Stage, step: str) -> None:
    """All of it is back, with its connections, whatever failed."""
    apps = start_apart(scene)

    def fail(name: str, when: str) -> None:
        if (name, when) == (step, "after"):
            raise MigrationError("injected")

    report = scene.migrator(fault=fail).migrate(Party(apps), scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "injected")
    assert [app.host.name for app in apps] == ["B", "B"]
    wait_for_lines(apps[1])
    assert scene.migrator().migrate(Party(apps), scene.hosts["C"]).outcome is Outcome.COMPLETED
    wait_for_lines(apps[1])


def test_death_of_one_frozen_original(scene: Stage) -> None:
    """The one that dies is restored from its image, the other thaws, and they still know each other."""
    apps = start_apart(scene)

    def kill(name: str, when: str) -> None:
        if (name, when) == ("transfer", "after"):
            os.kill(apps[0].pid, signal.SIGKILL)
            wait_until(lambda: not scene.runtime.is_running(apps[0]), "its death")
            raise MigrationError("the server is dead")

    report = scene.migrator(fault=kill).migrate(Party(apps), scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "the server is dead")
    wait_for_lines(apps[1])


def test_parties_that_are_none(scene: Stage) -> None:
    """Programs of two hosts, and members of a group, cannot be moved in one."""
    pod, _, client = start_pod(scene)
    other = scene.serve("C", name="other")
    report = scene.migrator().migrate(Party([pod, other]), scene.hosts["D"])
    assert report.reason == "pod,other cannot be moved together: other is on C, pod on B"
    report = scene.migrator().migrate(Party([client, pod]), scene.hosts["C"])
    assert report.reason == "client belongs to the group pod, which moves as one: migrate pod"


BULK = """
import hashlib, os, socket, sys
rng, sent, received = os.urandom(1 << 16), hashlib.sha256(), hashlib.sha256()
s = socket.create_connection((sys.argv[1], 7000))
s.setblocking(False)
import select, time
pending, total = b"", 0
end = time.monotonic() + 1000
stop = sys.argv[2]
while True:
    r, w, _ = select.select([s], [s] if not os.path.exists(stop) or pending else [], [], 0.05)
    if r:
        data = s.recv(1 << 16)
        received.update(data)
        total -= len(data)
    if w:
        pending = pending or rng
        n = s.send(pending)
        sent.update(pending[:n])
        total += n
        pending = pending[n:]
    if os.path.exists(stop) and not pending and total == 0:
        break
print("equal" if sent.digest() == received.digest() else "different", flush=True)
"""
STREAM_ECHO = """
import socket, sys
l = socket.create_server(("0.0.0.0", 7000))
print("listening", flush=True)
c, _ = l.accept()
while True:
    c.sendall(c.recv(1 << 20))
"""


@pytest.mark.parametrize("kind", ["group", "party"])
def test_full_streams_between_them_lose_nothing(scene: Stage, kind: str) -> None:
    """What the kernel moves between two frozen programs is in both images, or in neither; and goes on at once."""
    folder, runtime, host = scene.folder, scene.runtime, scene.hosts["B"]
    stop = folder / "stop"
    pod = runtime.launch_group("pod", host, folder / "pod.log")

    def start(name: str, *argv: str) -> App:
        if kind == "group":
            return runtime.launch_in(pod, name, [PYTHON, "-c", *argv], folder / f"{name}.log")
        return runtime.launch(name, host, [PYTHON, "-c", *argv], folder / f"{name}.log")

    echo = start("echo", STREAM_ECHO)
    wait_until(lambda: says(echo.log, "listening"), "the server listening")
    bulk = start("bulk", BULK, "10.77.2.2", str(stop))
    wait_until(lambda: len(runtime.sockets(bulk)) == 1, "the connection")
    for number in range(4):
        moved = pod if kind == "group" else Party([echo, bulk])
        report = scene.migrator().migrate(moved, scene.hosts["CB"[number % 2]], wish=Wish(Mode.STOP))
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    stop.touch()
    wait_until(lambda: bulk.log.read_text() != "", "the end of the stream", 60)
    assert bulk.log.read_text() == "equal\n"
    for place in "BC":  # nobody had to wait for TCP to notice that something was missing
        assert counters(scene.hosts[place].pid)["TcpExt.TCPTimeouts"] == 0
