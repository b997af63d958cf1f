"""Containers of Docker's and Podman's that move under an open connection, and everything that may go wrong meanwhile.

The server is two processes, a shell and what it has made of nc for the connection, with state in memory and in a file;
the client is one socket of this process in h1's network, which must never notice.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from migration.engines import criuconf, gate
from migration.engines.docker import DockerDriver
from migration.engines.driver import TWIN, EngineSilent
from migration.engines.passage import EnginePassage
from migration.migrator import Migrator
from migration.model import App
from migration.namespaces import in_netns
from migration.tree import is_running
from tests.topo.containers.conftest import TOOLS, apart, containers, own_dockerd
from topo.containers.engine import Engine
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("leaves_nothing")]
REMOVE = {"docker": ["docker", "rm", "-f"], "podman": ["podman", "rm", "-f", "-t", "0"]}
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


@contextmanager
def serving(engine: Engine, faults: Faults) -> Iterator[tuple[Testbed, App, Connection]]:
    """Build a testbed with the server on h2 and a connection from h1."""
    before = temporary()
    with Testbed(LoadBalancerNetwork(hosts=3), hosts=engine.name, fault=faults) as net:
        app = net.run("echo", "h2", SERVER, service="10.0.0.100:7000", image=TOOLS).app
        connection = Connection(net.hosts["h1"].pid)
        connection.ask()
        try:
            yield net, app, connection
        finally:
            connection.close()
    assert containers(engine) == []
    assert temporary() == before


def test_what_a_container_prints_is_in_its_log(engine: Engine) -> None:
    """Every line once and in order, also those of the time in which its copy is made."""
    count = "i=0; while :; do echo $i; i=$((i+1)); usleep 5000; done"
    with Testbed(LoadBalancerNetwork(hosts=3), hosts=engine.name) as net:
        net.run("count", "h2", ["sh", "-c", count], image=TOOLS)
        for destination in ("h3", "h2", "h3"):
            report = net.migrate("count", destination)
            assert report.outcome == "completed", report.reason
            assert not any("log" in warning for warning in report.warnings)
        before = len(net.output("count"))
        assert wait_until(lambda: len(net.output("count")) > before, 10.0)
        printed = net.output("count").split()
        assert printed == [str(number) for number in range(len(printed))]
        assert len(printed) > 20


def test_moves_and_ways_back(engine: Engine) -> None:
    """To and fro, then a failure behind every step: the connection, the file and the name stay what they are."""
    faults = Faults()
    with serving(engine, faults) as (net, app, connection):
        for destination in ("h3", "h2"):
            report = net.migrate("echo", destination)
            assert (report.outcome, report.runtime) == ("completed", engine.name), report.reason
            assert (report.connections.established, report.connections.broken) == (1, 0)
            connection.ask()
            check_place(net, engine, app, destination)
        root = Path(f"/proc/{app.pid}/root")
        assert (root / "words").read_text().split() == connection.words
        assert not (root / "old").exists()  # removed behind a move: a whiteout came along
        assert net.output("echo") == "ready\n"  # printed before the moves

        for step in ("prepare", "hold", "checkpoint", "transfer", "restore", "switch over"):
            faults.fail(step, "after")
            report = net.migrate("echo", "h3")
            assert (report.outcome, report.reason) == ("rolled_back", f"injected after {step}")
            connection.ask()
            check_place(net, engine, app, "h2")
        faults.fail("release", "after")  # the copy has run by then: it comes back by another migration
        report = net.migrate("echo", "h3")
        assert report.outcome == "rolled_back", report.reason
        connection.ask()
        check_place(net, engine, app, "h2")
        assert (Path(f"/proc/{app.pid}/root") / "words").read_text().split() == connection.words


def test_what_dies_midway(engine: Engine) -> None:
    """CRIU at its gate, the copy before it runs, and the copy after its original has ended."""
    faults = Faults()
    with serving(engine, faults) as (net, app, connection):

        def kill_restore() -> None:
            (waiting,) = gate.waiting()
            os.kill(waiting, signal.SIGKILL)

        def kill_copy() -> None:
            copies = stopped_containers(app)
            for pid in copies:
                os.kill(pid, signal.SIGKILL)
            assert copies
            assert wait_until(lambda: not stopped_containers(app), 5.0)

        def kill_command() -> None:
            restoring = "container\0restore\0"
            pids = [pid for pid in processes() if pid != os.getpid() and restoring in command_of(pid)]
            assert pids
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

        cases = [(("transfer", "before"), kill_restore), (("release", "before"), kill_copy)]
        if engine.name == "podman":
            cases.append((("restore", "before"), kill_command))
        for at, action in cases:
            faults.at, faults.action = at, action
            report = net.migrate("echo", "h3")
            assert report.outcome == "rolled_back", (at, report.reason)
            connection.ask()
            check_place(net, engine, app, "h2")
        report = net.migrate("echo", "h3")
        assert report.outcome == "completed", report.reason
        connection.ask()


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


def test_the_controller_dies(engine: Engine) -> None:
    """At a step, for good: its thread never goes on, and another migrator settles what the journal says."""
    faults = Faults()
    ever = threading.Event()
    cases = [(step, "after", "undone") for step in ("prepare", "checkpoint", "transfer", "restore")]
    cases += [("resume", "before", "finished"), ("release", "after", "finished")]
    with serving(engine, faults) as (net, app, connection), pytest.MonkeyPatch.context() as patch:
        migrator = net._migrator
        for step, when, verdict in cases:
            reached = threading.Event()

            def die(reached: threading.Event = reached) -> None:
                reached.set()
                ever.wait()

            if step == "resume":  # the original has been ended, the copy has not run
                patch.setattr(EnginePassage, "resume", lambda passage, releasing, die=die: die())
            faults.at, faults.action = (step, when), die
            source, destination = app.host.name, "h3" if app.host.name == "h2" else "h2"
            arguments = (replace(app, engine=replace(app.engine)), net.hosts[destination])  # type: ignore[type-var]
            threading.Thread(target=migrator.migrate, args=arguments, daemon=True).start()
            assert reached.wait(20)
            patch.undo()
            successor = Migrator(
                net.controller.steering, net.runtime, images=migrator.images, journals=migrator.journals
            )
            (recovered,) = successor.recover()
            assert recovered.verdict.value == verdict, (step, recovered)
            app.host, app.pid, app.engine = recovered.app.host, recovered.app.pid, recovered.app.engine
            migrator._moving.clear()
            criuconf._SHARED._users = 0  # the dead one's
            connection.ask()
            check_place(net, engine, app, source if verdict == "undone" else destination)


def test_kill_9_in_the_middle(engine: Engine) -> None:
    """Of a migration whose copy has been built: the run is taken over, and the program is where it was."""
    code = (
        "import os, signal, sys\n"
        "from topo.testbed import LoadBalancerNetwork, Testbed\n"
        "def fault(step, when):\n"
        "    if (step, when) == ('restore', 'after'): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"with Testbed(LoadBalancerNetwork(hosts=3), hosts={engine.name!r}, fault=fault) as net:\n"
        f"    net.run('echo', 'h2', {SERVER!r}, service='10.0.0.100:7000', image={TOOLS!r})\n"
        "    print(net.hosts['h1'].pid, flush=True); sys.stdin.readline()\n"
        "    net.migrate('echo', 'h3')"
    )
    before = temporary()
    with apart(code) as process:
        assert process.stdout is not None
        connection = Connection(int(process.stdout.readline()))
        connection.ask()
        process.communicate("go\n", timeout=30)
    assert process.returncode == -signal.SIGKILL
    with Testbed.recover() as net:
        (recovered,) = net.recovered
        assert recovered.verdict.value == "undone"
        connection.ask()
        assert net.migrate("echo", "h3").outcome == "completed"
        connection.ask()
        connection.close()
        check_place(net, engine, net._apps["echo"].app, "h3")
    assert containers(engine) == []
    assert temporary() == before


def test_refusals(engine: Engine, tmp_path: Path) -> None:
    """By name, before anything is touched."""
    with serving(engine, Faults()) as (net, app, connection):
        node = net.host("h2")
        assert app.engine is not None

        def refused(container: str, reason: str) -> None:
            known, pid = app.engine.id, app.pid  # type: ignore[union-attr]
            app.engine.id, app.pid = container, engine.pid(container)  # type: ignore[union-attr]
            report = net.migrate("echo", "h3")
            app.engine.id, app.pid = known, pid  # type: ignore[union-attr]
            assert report.outcome == "refused" and reason in str(report.reason), report.reason
            subprocess.run([*REMOVE[engine.name], container], capture_output=True, check=True)

        option = ["--pod", node.pod] if engine.name == "podman" else ["--network", f"container:{node.pod}"]
        runtime = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"] if engine.name == "podman" else []
        shared = ["--volume", f"{tmp_path}:/shared"]
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]

        def run(*options: str) -> str:
            command = [
                engine.name,
                *runtime,
                "run",
                "--detach",
                *option,
                *limits,
                *options,
                TOOLS,
                "sleep",
                "99",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip().splitlines()[-1]

        refused(run("-t"), "it has a terminal")
        refused(run("--rm"), "it was started with --rm")
        refused(run("--restart", "always"), "it has a restart policy")
        refused(run("--health-cmd", "true"), "it has a health check")
        other = run("--name", "other", *shared)
        refused(run(*shared), f"its volume {tmp_path} is shared with other")
        subprocess.run([*REMOVE[engine.name], other], capture_output=True, check=True)
        taken = run("--name", f"mn.echo{TWIN}")
        report = net.migrate("echo", "h3")
        assert (report.outcome, report.reason) == (
            "refused",
            f"echo cannot be moved: the name mn.echo{TWIN}, which its copy is to have, is taken",
        )
        subprocess.run([*REMOVE[engine.name], taken], capture_output=True, check=True)
        report = net.migrate("echo", "h3", mode="lazy")
        assert (report.outcome, str(report.reason)) == (
            "refused",
            f"echo cannot be moved in mode lazy by {engine.name}: ask for mode stop",
        )
        connection.ask()
        check_place(net, engine, app, "h2")


def test_a_docker_that_cannot(installed: None, tmp_path: Path) -> None:
    """Without `experimental`, and with nobody at home."""
    with own_dockerd(tmp_path) as (address, _):
        assert 'was started without "experimental"' in str(DockerDriver(address).check())
    with pytest.raises(EngineSilent, match="Docker does not answer at"):
        DockerDriver(address).check()


def test_dockerd_is_killed(
    installed: None, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the restore: the container runs on where it was, and when Docker is back nothing is left."""
    before = temporary()
    with own_dockerd(tmp_path, experimental=True, **{"live-restore": True}) as (address, start):
        monkeypatch.setenv("DOCKER_HOST", address)
        subprocess.run(["docker", "import", images[TOOLS], TOOLS], check=True, capture_output=True)
        faults = Faults()
        with Testbed(LoadBalancerNetwork(hosts=3), hosts="docker", fault=faults) as net:
            app = net.run("echo", "h2", SERVER, service="10.0.0.100:7000", image=TOOLS).app
            connection = Connection(net.hosts["h1"].pid)
            connection.ask()

            def kill() -> None:
                pid = int((tmp_path / "pid").read_text())
                os.kill(pid, signal.SIGKILL)
                assert wait_until(lambda: not is_running(pid), 5.0)

            faults.at, faults.action = ("restore", "before"), kill
            report = net.migrate("echo", "h3")
            assert report.outcome == "rolled_back", report.reason
            connection.ask()
            report = net.migrate("echo", "h3")
            assert report.outcome == "refused" and "Docker does not answer" in str(report.reason)
            start()
            connection.ask()
            # Docker 20.10 cannot checkpoint what has outlived its daemon; what it was spared is done all the same.
            report = net.migrate("echo", "h3")
            assert report.outcome == "completed" or "invalid task checkpoint option" in str(report.reason)
            connection.ask()
            connection.close()
            names = {host: [m.name for m in net.host(host).containers()] for host in ("h2", "h3")}
            assert names == {host: ["mn.echo"] if host == app.host.name else [] for host in names}
        assert temporary() == before
        shims = ["pgrep", "--full", f"containerd-shim.*{tmp_path}"]
        assert wait_until(lambda: subprocess.run(shims, capture_output=True).stdout == b"", 5.0, 0.1)
