"""Connections in every state that a program can hold them in, with empty and with full queues."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, stage, wait_until

from migration.inet import State
from migration.model import App
from migration.namespaces import in_netns
from migration.report import Outcome

pytestmark = pytest.mark.net

SERVER = str(Path(__file__).parent / "programs" / "closing.py")
HALF_CLOSED = Path(__file__).parent / "programs" / "half_closed.py"
STATES = {
    "close_wait": State.CLOSE_WAIT,
    "fin_wait1": State.FIN_WAIT1,
    "fin_wait2": State.FIN_WAIT2,
    "closing": State.CLOSING,
    "last_ack": State.LAST_ACK,
    "send_queue": State.ESTABLISHED,
    "receive_queue": State.ESTABLISHED,
}
HASH = 64


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("states")) as built:
        yield built


def fill(sock: socket.socket) -> str:
    """Send until nobody takes more; return the hash of what was sent."""
    sent = hashlib.sha256()
    block = bytes(range(255)) * 64
    sock.settimeout(0.3)
    try:
        while True:
            sent.update(block[: sock.send(block)])
    except TimeoutError:
        sock.settimeout(10)
    return sent.hexdigest()


def read_all(sock: socket.socket) -> str:
    """Read to the end; return the hash of what there was."""
    read = hashlib.sha256()
    while data := sock.recv(1 << 16):
        read.update(data)
    return read.hexdigest()


def sha(data: bytes) -> str:
    """Hash as the program does."""
    return hashlib.sha256(data).hexdigest()


class Peers:
    """The peers of the program's connections, in host A."""

    def __init__(self, scene: Stage, folder: Path) -> None:
        self.folder = folder
        self.socks = in_netns(scene.hosts["A"].pid, lambda: {name: self.connect(name) for name in STATES})
        self.sent = ""

    def connect(self, name: str) -> socket.socket:
        sock = socket.create_connection(("10.77.2.2", 7000), timeout=10)
        sock.sendall(name.encode() + b"\n")
        return sock

    def bring_about(self) -> None:
        """Do the peers' part of each state."""
        self.socks["close_wait"].sendall(b"goodbye")
        self.socks["close_wait"].shutdown(socket.SHUT_WR)
        self.socks["last_ack"].shutdown(socket.SHUT_WR)
        self.sent = fill(self.socks["receive_queue"])
        for name in ("fin_wait1", "closing", "last_ack", "send_queue"):
            wait_until((self.folder / f"{name}.filled").exists, f"{name} filled")
        self.socks["closing"].shutdown(socket.SHUT_WR)

    def result(self, name: str) -> str:
        """Return what the program says of a connection in the end."""
        path = self.folder / f"{name}.result"
        wait_until(path.exists, f"the end of {name}")
        return path.read_text()

    def finish(self) -> None:
        """Let everything come to its end, and see that not a byte is missing at either side."""
        (self.folder / "go").touch()
        socks = self.socks
        assert read_all(socks["close_wait"]) == sha(b"late" * 100_000)
        assert self.result("close_wait") == sha(b"goodbye")
        socks["fin_wait2"].sendall(b"still here" * 100_000)
        socks["fin_wait2"].shutdown(socket.SHUT_WR)
        assert socks["fin_wait2"].recv(1) == b""
        assert self.result("fin_wait2") == sha(b"still here" * 100_000)
        read = {name: read_all(socks[name]) for name in ("fin_wait1", "closing", "last_ack", "send_queue")}
        socks["fin_wait1"].sendall(b"seen")
        socks["fin_wait1"].shutdown(socket.SHUT_WR)
        said = {"fin_wait1": b"seen", "closing": b"", "last_ack": b""}
        for name, data in said.items():
            assert self.result(name) == read[name] + sha(data), name
        assert self.result("send_queue") == read["send_queue"]
        socks["receive_queue"].shutdown(socket.SHUT_WR)
        assert self.result("receive_queue") == self.sent

    def close(self) -> None:
        for sock in self.socks.values():
            sock.close()


def states(scene: Stage, app: App) -> list[int]:
    """List the states of the program's connections."""
    return sorted(s.state for s in scene.runtime.sockets(app) if s.is_connection)


def test_half_closed_and_closing_connections_move(scene: Stage) -> None:
    """Two moves change no connection's state, and what was left to be said is said afterwards."""
    folder = scene.folder / "closing"
    folder.mkdir()
    log = scene.folder / "closing.log"
    app = scene.runtime.launch("closing", scene.hosts["B"], [PYTHON, SERVER, str(folder)], log)
    wait_until(lambda: scene.runtime.sockets(app), "the listener")
    peers = Peers(scene, folder)
    peers.bring_about()
    expected = sorted(STATES.values())
    wait_until(lambda: states(scene, app) == expected, f"{expected}, there is {states(scene, app)}")
    for host in ("C", "B"):
        report = scene.migrator().migrate(app, scene.hosts[host])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert report.connections.kept == len(STATES)
        assert states(scene, app) == expected
    peers.finish()
    peers.close()
    assert scene.runtime.is_running(app)
    scene.runtime.terminate(app)


def test_connections_within_a_program_that_are_half_closed(tmp_path: Path, scene: Stage) -> None:
    """What their peers have not read comes at once, and then the end, as it would have come without a move."""
    host, log, go_on = scene.hosts["B"], scene.folder / "half.log", tmp_path / "go-on"
    command = [PYTHON, str(HALF_CLOSED), str(host.address), str(go_on)]
    app = scene.runtime.launch("half", host, command, log)
    try:
        wait_until(lambda: "ready" in log.read_text(), "the connections", 10)
        for to in "CBC":
            report = scene.migrator().migrate(app, scene.hosts[to])
            assert report.outcome is Outcome.COMPLETED, report.reason
        go_on.touch()
        wait_until(lambda: "took" in log.read_text(), "the end of what it reads", 60)
        said = log.read_text().splitlines()
        assert said[:-1] == ["ready"]
        # A retransmission would take three seconds at least.
        assert float(said[-1].split()[1]) < 2.0
    finally:
        os.kill(app.pid, signal.SIGKILL)
