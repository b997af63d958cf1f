"""A testbed of pods with a server in a container, an open connection to it, and what a test makes go wrong.

The server is two processes, a shell and what it has made of nc for the connection, with state in memory and in a file;
the client is one socket of this process in h1's network, which must never notice.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from migration.engines import criuconf, gate
from migration.model import App
from migration.namespaces import in_netns
from tests.topo.containers.conftest import TOOLS, containers
from topo.containers.engine import Engine
from topo.testbed import LoadBalancerNetwork, Testbed

VIP = ("10.0.0.100", 7000)
SCRIPT = "n=0; while read word; do n=$((n+1)); echo $word >> /words; rm -f /old; echo $n $word; done"
SERVER = ["sh", "-c", f"echo ready; touch /old; while true; do nc -l -p 7000 -e sh -c '{SCRIPT}'; done"]


class Injected(OSError):
    """What a test makes go wrong."""


class Faults:
    """Calls something at a step, once."""

    def __init__(self) -> None:
        self.at: tuple[str, str] | None = None
        self.action: Callable[[], None] = lambda: None

    def __call__(self, step: str, when: str) -> None:
        if (step, when) == self.at:
            self.at = None
            self.action()

    def fail(self, step: str, when: str) -> None:
        """Let a step fail the next time."""

        def action() -> None:
            raise Injected(f"injected {when} {step}")

        self.at, self.action = (step, when), action


class Connection:
    """An open connection with the server, which counts."""

    def __init__(self, host: int) -> None:
        self._count = 0
        self._socket = in_netns(host, lambda: socket.create_connection(VIP, 10))
        self._socket.settimeout(10)
        self._lines = self._socket.makefile("r")

    def ask(self) -> None:
        """Send a word; the reply has the next number."""
        self._count += 1
        self._socket.sendall(f"word{self._count}\n".encode())
        assert self._lines.readline() == f"{self._count} word{self._count}\n"

    @property
    def words(self) -> list[str]:
        """What the server has written down."""
        return [f"word{number}" for number in range(1, self._count + 1)]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def temporary() -> set[Path]:
    """List what engines and CRIU leave in /tmp."""
    return {path for pattern in ("ctrd-*", "ctd-*", ".criu.*") for path in Path("/tmp").glob(pattern)}


def check_place(net: Testbed, engine: Engine, app: App, host: str) -> None:
    """See that the container is on a host, is called as ever, and that there is nothing else of it."""
    assert app.host.name == host and app.engine is not None
    assert engine.pid(app.engine.id) == app.pid
    assert (
        Path(f"/proc/{app.pid}/ns/net").readlink() == Path(f"/proc/{net.hosts[host].pid}/ns/net").readlink()
    )
    named = {h: [m.name for m in net.host(h).containers()] for h in ("h2", "h3")}
    assert named == {h: ["mn.echo"] if h == host else [] for h in named}
    assert len(containers(engine)) == 4  # three sandboxes
    assert gate.waiting() == []
    assert not criuconf.NOTE.exists() and not criuconf.CONF.exists()


@dataclass
class Scene:
    """What there is."""

    engine: Engine
    faults: Faults
    net: Testbed
    app: App
    connection: Connection

    def check_place(self, host: str) -> None:
        """See that the container is on a host, is called as ever, and that there is nothing else of it."""
        check_place(self.net, self.engine, self.app, host)


@contextmanager
def serving(engine: Engine) -> Iterator[Scene]:
    """Build a testbed with the server on h2 and a connection from h1."""
    before = temporary()
    faults = Faults()
    with Testbed(LoadBalancerNetwork(hosts=3), hosts=engine.name, fault=faults) as net:
        app = net.run("echo", "h2", SERVER, service="10.0.0.100:7000", image=TOOLS).app
        connection = Connection(net.hosts["h1"].pid)
        connection.ask()
        try:
            yield Scene(engine, faults, net, app, connection)
        finally:
            connection.close()
    assert containers(engine) == []
    assert temporary() == before


def processes() -> list[int]:
    """List all processes."""
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def command_of(pid: int) -> str:
    """Return a process's command, its words ended by NUL."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def stopped_containers(app: App) -> list[int]:
    """List first processes of containers that were restored and have not run."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            status = (folder / "status").read_text() if folder.name.isdigit() else ""
        except OSError:
            continue
        if "State:\tT" in status and any(
            line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2
            for line in status.splitlines()
        ):
            found.append(int(folder.name))
    return [pid for pid in found if pid != app.pid]
