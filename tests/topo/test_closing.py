"""Connections that the program has closed: what it has written arrives, wherever the program goes meanwhile."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migration.diag import Diag
from migration.inet import State
from migration.namespaces import in_netns
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
SERVER = ["/usr/bin/python3", str(Path(__file__).parent / "programs" / "download.py"), "7000"]
DIRECT, VIP = ("10.0.2.2", 7000), ("10.0.0.100", 7000)
SIZE = 3_000_000
WHOLE = hashlib.sha256((bytes(range(256)) * (SIZE // 256 + 1))[:SIZE]).hexdigest()


@pytest.fixture
def net(leaves_nothing: None) -> Iterator[Testbed]:
    """A running network of four hosts."""
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed:
        yield bed


class Download:
    """A client on h1 that reads when it is told to."""

    def __init__(self, bed: Testbed, target: tuple[str, int]) -> None:
        self.hash = hashlib.sha256()
        self.size = 0
        self._socket = in_netns(bed.hosts["h1"].pid, lambda: self._connect(target))
        self.port = int(self._socket.getsockname()[1])
        self._socket.sendall(str(SIZE).encode())

    @staticmethod
    def _connect(target: tuple[str, int]) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        made.settimeout(20)
        made.connect(target)
        return made

    def read(self, size: int = SIZE) -> int:
        """Read so many bytes, or up to the end."""
        left = size
        while left and (data := self._socket.recv(min(left, 1 << 16))):
            self.hash.update(data)
            self.size += len(data)
            left -= len(data)
        return self.size

    def finish(self) -> str:
        """Read to the end of the file and close; return the hash of everything."""
        self.read()
        assert self._socket.recv(1) == b""
        self._socket.close()
        return self.hash.hexdigest()


def queued(bed: Testbed, host: str) -> list[int]:
    """Return the peers' ports of connections that nobody holds on a host and that have something to send."""
    with Diag(bed.hosts[host].pid) as diag:
        states = (State.FIN_WAIT1, State.CLOSING, State.LAST_ACK)
        found = [s for s in diag.tcp_closing() if s.state in states and s.send_queue and not s.inode]
    return [s.remote_port for s in found]


def rows_of(bed: Testbed, client: Download) -> list[dict[str, Any]]:
    """Return the pins of a download."""
    return [c for c in bed.connections() if c["source"] == f"10.0.1.1:{client.port}"]


def begin(bed: Testbed, target: tuple[str, int], host: str) -> Download:
    """Ask for a download that its program, on `host`, has closed when this returns."""
    made = Download(bed, target)
    assert wait_until(lambda: made.port in queued(bed, host), 10.0)
    made.read(100_000)
    return made


@pytest.mark.parametrize("mode", ["stop", "lazy"])
@pytest.mark.parametrize("target", [DIRECT, VIP], ids=["direct", "vip"])
def test_a_closed_download_arrives(net: Testbed, target: tuple[str, int], mode: str) -> None:
    """It stays with the kernel that has it, in moves there, onwards and back, and leaves no row behind."""
    service = None if target == DIRECT else f"{VIP[0]}:{VIP[1]}"
    net.run("server", "h2", [*SERVER, "8"], service=service)
    assert wait_until(lambda: "listens" in net.output("server"), 5.0)
    downloads = []
    for here, there in (("h2", "h3"), ("h3", "h4"), ("h4", "h2")):
        downloads.append(begin(net, target, here))
        report = net.migrate("server", there, mode=mode)
        assert report.outcome == "completed", report
        assert (report.connections.established, report.connections.kept) == (1, 1)
        for download in downloads:
            assert rows_of(net, download)
            download.read(100_000)
    assert [d.port for d in downloads] == [*queued(net, "h2"), *queued(net, "h3"), *queued(net, "h4")]
    assert [d.finish() for d in downloads] == [WHOLE] * 3
    assert Download(net, target).finish() == WHOLE  # from where the program is now
    assert wait_until(lambda: not any(rows_of(net, d) for d in downloads), 10.0), net.connections()


@pytest.mark.parametrize("target", [DIRECT, VIP], ids=["direct", "vip"])
def test_a_closed_download_outlives_its_program(net: Testbed, target: tuple[str, int]) -> None:
    """Of a program that is stopped where it has moved to, what it had written arrives all the same."""
    service = None if target == DIRECT else f"{VIP[0]}:{VIP[1]}"
    net.run("server", "h2", SERVER, service=service)
    assert wait_until(lambda: "listens" in net.output("server"), 5.0)
    assert net.migrate("server", "h3").outcome == "completed"
    download = begin(net, target, "h3")
    net.stop("server")
    net.run("other", "h2", SERVER, service=service)
    assert wait_until(lambda: "listens" in net.output("other"), 5.0)
    assert Download(net, target).finish() == WHOLE
    assert download.finish() == WHOLE
    assert wait_until(lambda: not rows_of(net, download), 10.0), net.connections()


@pytest.mark.parametrize("step", ["rewrite", "switch over", "release"])
def test_a_closed_download_arrives_when_the_move_fails(step: str, leaves_nothing: None) -> None:
    """Before and after the connection's own rows are there, and on the way back by a second migration."""
    failing = True

    def fault(name: str, moment: str) -> None:
        if failing and (name, moment) == (step, "after"):
            raise OSError(f"injected after {step}")

    with Testbed(LoadBalancerNetwork(hosts=3), fault=fault) as net:
        net.run("server", "h2", SERVER, service=f"{VIP[0]}:{VIP[1]}")
        download = begin(net, VIP, "h2")
        report = net.migrate("server", "h3")
        assert (report.outcome, [app["host"] for app in net.apps()]) == ("rolled_back", ["h2"]), report
        download.read(100_000)
        failing = False
        assert net.migrate("server", "h3").outcome == "completed"
        assert Download(net, VIP).finish() == WHOLE
        assert download.finish() == WHOLE


def test_a_listener_without_reuseaddr_comes_back(net: Testbed) -> None:
    """To where a connection of its own is in TIME_WAIT, at once; to where one is being sent, when that is over."""
    program = str(Path(__file__).parent / "programs" / "strict.py")
    net.run("server", "h2", ["/usr/bin/python3", program, "7000"], service=f"{VIP[0]}:{VIP[1]}")

    for host in ("h3", "h2", "h3"):
        assert download(connect(net)) == 200_000
        assert net.migrate("server", host).outcome == "completed"
    slow = connect(net)
    assert wait_until(lambda: slow.getsockname()[1] in queued(net, "h3"), 10.0)
    assert net.migrate("server", "h2").outcome == "completed"
    report = net.migrate("server", "h3")
    assert (report.outcome, report.criu.frozen_ms) == ("refused", 0), report
    assert "which it has closed on h3, is not over, and its listener has no SO_REUSEADDR" in str(
        report.reason
    )
    assert download(slow) == 200_000
    assert wait_until(lambda: net.migrate("server", "h3").outcome == "completed", 10.0)


def test_a_listener_without_reuseaddr_is_restored_where_it_was(leaves_nothing: None, tmp_path: Path) -> None:
    """From its image, when its original has had to end before the copy was built, and that failed."""

    def fault(name: str, moment: str) -> None:
        if (name, moment) == ("restore", "after"):
            raise OSError("injected")

    program = str(Path(__file__).parent / "programs" / "strict.py")
    with Testbed(LoadBalancerNetwork(hosts=3), fault=fault) as net:
        argv = ["/usr/bin/python3", program, "7000", str(tmp_path / "lock")]
        net.run("server", "h2", argv, service=f"{VIP[0]}:{VIP[1]}")
        pid = net.apps()[0]["pid"]
        assert download(connect(net)) == 200_000
        report = net.migrate("server", "h3")
        assert report.outcome == "rolled_back", report
        assert net.apps()[0]["pid"] != pid
        assert download(connect(net)) == 200_000


def connect(bed: Testbed) -> socket.socket:
    """Open a connection from h1 that has little room for what it is sent."""

    def make() -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        made.settimeout(20)
        made.connect(VIP)
        return made

    return in_netns(bed.hosts["h1"].pid, make)


def download(client: socket.socket) -> int:
    """Read to the end of the file, and return how much there was."""
    with client:
        return sum(len(data) for data in iter(lambda: client.recv(1 << 16), b""))
