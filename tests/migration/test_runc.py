"""Containers that runc has started move like any program: connections, files, name and all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contained import ContainerStage, container_stage, control_groups, descendants, in_namespace
from moving import open_descriptors, says, wait_until
from test_failures import STEPS, FailAt

from migration.containers import Image, launch, place_of
from migration.errors import LaunchFailed, MigrationError
from migration.groups import Party
from migration.model import App
from migration.namespaces import in_netns
from migration.report import Outcome
from tests.roots import ECHO, build_root, need_runc

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_runc()
    return build_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def scene(tmp_path: Path, root: Path) -> Iterator[ContainerStage]:
    with container_stage(tmp_path, root) as built:
        yield built


def test_container_moves_with_its_connections_and_files(scene: ContainerStage) -> None:
    """To and fro: no byte is lost, and what it has written, moved and removed is as it was."""
    app = scene.serve(volumes=["/data"])
    assert scene.listed("B") == {"echo": ("running", app.pid)}
    scene.shell(
        app,
        "echo note > /note; echo more >> /data/from-image; echo own > /data/own; rm -r /srv/apps/kept; "
        "mv /var/lib /var/moved; mkdir /srv/apps/kept; touch /srv/apps/kept/new; mkdir -m 700 /root/secret",
    )
    client = scene.measure("A", "--connect", "10.77.2.2:7000", "--connections", "3")
    client.wait_for_requests()
    for host, source in (("C", "B"), ("B", "C")):
        report = scene.migrator().migrate(app, scene.hosts[host])
        assert (report.outcome, report.runtime) == (Outcome.COMPLETED, "runc"), report.reason
        assert (report.connections.kept, report.connections.broken) == (3, 0)
        client.wait_for_requests()
        assert scene.listed(host) == {"echo": ("running", app.pid)}
        assert scene.listed(source) == {}
        assert scene.leftovers(app) == []
        said = scene.shell(
            app, "cat /note /data/from-image /data/own; ls /srv/apps/kept; ls -ld /root/secret"
        )
        assert said.startswith("note\noriginal\nmore\nown\nnew\ndrwx------")
        scene.shell(app, f"touch /data/was-on-{host}")
    assert scene.shell(app, "ls /var /var/moved").split() == ["/var:", "moved", "/var/moved:", "redis"]
    assert scene.shell(app, "ls /data").split() == ["from-image", "own", "was-on-B", "was-on-C"]
    assert (scene.root / "data/from-image").read_text() == "original\n"
    result = client.finish()
    assert result["lost_bytes"] == result["duplicated_bytes"] == result["resets"] == 0
    assert result["retransmits"] == 0


def test_container_that_ends_on_arrival_has_ended(scene: ContainerStage) -> None:
    """Completed, its last work done once, its exit status in the report, and runc has it as stopped."""
    code = (
        "import os, time\nprint('ready', flush=True)\nwhile not os.path.exists('/flag'): time.sleep(0.0005)\n"
        "print('order shipped', flush=True)\nos._exit(3)"
    )
    app = scene.run("order", "B", ["python3", "-c", code])
    wait_until(lambda: says(app.log, "ready"), "the program being ready")

    def fault(step: str, when: str) -> None:
        if (step, when) == ("restore", "after"):
            [copy] = {*scene.runtime.custody.children("restored")} - {app.pid}
            Path(f"/proc/{copy}/root/flag").touch()
        if (step, when) == ("verify", "before"):
            wait_until(lambda: not scene.runtime.is_running(app), "its end")

    report = scene.migrator(fault=fault).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert report.ended == {"status": 3, "signal": None}
    assert app.log.read_text() == "ready\norder shipped\n"
    assert scene.listed("C")["order"][0] == "stopped"
    assert scene.listed("B") == {}


def test_container_logs_into_one_file_and_keeps_its_name(scene: ContainerStage) -> None:
    """Its log goes on, its host name stays, and runc ends it at its destination."""
    counter = ["python3", "/srv/apps/counter.py", "--interval", "0.02"]
    app = scene.run("counter", "B", counter)
    wait_until(lambda: says(app.log, "10 pid"), "ten counts")
    for name in ("C", "B", "D"):
        assert scene.migrator().migrate(app, scene.hosts[name]).outcome is Outcome.COMPLETED
    lines = len(app.log.read_text().splitlines())
    wait_until(lambda: len(app.log.read_text().splitlines()) > lines + 5, "more counts")
    counts = [line.split() for line in app.log.read_text().splitlines()[1:]]
    assert [int(count[0]) for count in counts] == list(range(1, len(counts) + 1))
    assert scene.shell(app, "cat /proc/sys/kernel/hostname") == "counter\n"
    assert all(str(app.pid) in (group / "cgroup.procs").read_text().split() for group in control_groups())
    scene.runc("D", "kill", "counter", "KILL")
    wait_until(lambda: not scene.runtime.is_running(app), "its end")
    assert scene.listed("D")["counter"][0] == "stopped"
    scene.runtime.terminate(app)
    assert scene.listed("D") == {}
    assert control_groups() == []
    assert not place_of(app, app.host).folder.exists()


def test_every_step_can_fail(scene: ContainerStage) -> None:
    """Before and after every step: rolled back with files and connections, nothing left, and then it works."""
    app = scene.serve(volumes=["/data"])
    client = scene.measure("A", "--connect", "10.77.2.2:7000", "--connections", "2")
    client.wait_for_requests()
    for step in STEPS:
        for when in ("before", "after"):
            scene.shell(app, f"echo {when} > '/data/{step}'; echo {when} > '/tmp/{step}'")
            report = scene.migrator(fault=FailAt(step, when)).migrate(app, scene.hosts["C"])
            assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, f"injected {when} {step}")
            assert scene.leftovers(app) == []
            assert scene.listed("B") == {"echo": ("running", app.pid)}
            assert scene.listed("C") == {}
            assert scene.shell(app, f"cat '/data/{step}' '/tmp/{step}'") == f"{when}\n{when}\n"
            client.wait_for_requests(30)
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    client.wait_for_requests()
    result = client.finish()
    assert result["lost_bytes"] == result["duplicated_bytes"] == result["resets"] == 0


def workers(scene: ContainerStage, host: str) -> list[int]:
    """List the CRIU workers in a host."""
    here = os.stat(f"/proc/{scene.hosts[host].pid}/ns/net")  # noqa: PTH116
    found = []
    for pid in scene.runtime.custody.children("worker"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), here):  # noqa: PTH116
                found.append(pid)
    return found


@pytest.mark.parametrize(("step", "when"), [("hold", "after"), ("transfer", "after"), ("restore", "after")])
def test_restore_worker_is_killed(scene: ContainerStage, step: str, when: str) -> None:
    """The CRIU that builds the copy dies at its gate, before, or after it has built it: the original goes on."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000")
    client.wait_for_requests()

    def kill(at: str, moment: str) -> None:
        if (at, moment) == (step, when):
            for pid in workers(scene, "C"):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: workers(scene, "C") == [], "the death of the worker")

    report = scene.migrator(fault=kill).migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.ROLLED_BACK, report.reason
    client.wait_for_requests()
    assert scene.leftovers(app) == []
    assert client.finish()["lost_bytes"] == 0


def test_restore_worker_is_killed_at_work(scene: ContainerStage) -> None:
    """The same in the middle of its work, wherever that is."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000")
    client.wait_for_requests()
    for delay in (0.002, 0.004, 0.006, 0.008):
        timers: list[threading.Timer] = []

        def kill(at: str, moment: str, delay: float = delay, timers: list[threading.Timer] = timers) -> None:
            if (at, moment) == ("restore", "before"):
                for pid in workers(scene, "C"):
                    timers.append(threading.Timer(delay, scene.runtime.custody.kill, (pid, signal.SIGKILL)))
                    timers[-1].start()
            elif (at, moment) == ("restore", "after"):
                for (
                    timer
                ) in timers:  # a kill while it lets the copy go is another story: docs/crash-safety.md
                    timer.cancel()

        report = scene.migrator(fault=kill).migrate(app, scene.hosts["C"])
        if report.outcome is Outcome.COMPLETED:  # it was through before
            assert scene.migrator().migrate(app, scene.hosts["B"]).outcome is Outcome.COMPLETED
        assert app.host.name == "B"
        client.wait_for_requests()
        assert scene.leftovers(app) == []
    assert client.finish()["lost_bytes"] == 0


def test_frozen_original_is_killed(scene: ContainerStage) -> None:
    """The original dies while it is frozen: it is restored where it was, and runc knows it, its files and its log."""
    app = scene.serve()
    scene.shell(app, "echo note > /note")
    client = scene.measure("A", "--connect", "10.77.2.2:7000", "--connections", "3")
    client.wait_for_requests()

    def kill(step: str, when: str) -> None:
        if (step, when) == ("transfer", "after"):
            os.kill(app.pid, signal.SIGKILL)
            wait_until(lambda: not scene.runtime.is_running(app), "its death")
            raise MigrationError("the original is dead")

    report = scene.migrator(fault=kill).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "the original is dead")
    client.wait_for_requests()
    assert scene.listed("B") == {"echo": ("running", app.pid)}
    assert scene.shell(app, "cat /note") == "note\n"
    assert scene.leftovers(app) == []
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    client.wait_for_requests()
    result = client.finish()
    assert result["lost_bytes"] == result["resets"] == 0


def test_copy_dies_after_it_ran(scene: ContainerStage) -> None:
    """The copy dies right after its arrival: it has ended there, and nothing of it is run a second time."""
    app = scene.serve()

    def kill(step: str, when: str) -> None:
        if (step, when) == ("release", "after"):
            os.kill(app.pid, signal.SIGKILL)
            wait_until(lambda: not scene.runtime.is_running(app), "the copy's death")

    report = scene.migrator(fault=kill).migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.COMPLETED, report.reason
    assert report.to_json()["ended"] == {"status": None, "signal": "SIGKILL"}
    assert not scene.runtime.is_running(app)


def test_recovery_restores_a_container(scene: ContainerStage) -> None:
    """What a controller could not finish its successor does: the container is restored, and nothing left elsewhere."""
    app = scene.serve()
    images = Path("/dev/shm") / f"p4ferry-test-{os.getpid()}"

    def kill(step: str, when: str) -> None:
        if (step, when) == ("transfer", "after"):
            os.kill(app.pid, signal.SIGKILL)
            wait_until(lambda: not scene.runtime.is_running(app), "its death")
            hidden = next(images.glob("*/images/pstree.img"))
            hidden.rename(hidden.with_name("hidden"))
            raise MigrationError("the original is dead")

    migrator = scene.migrator(fault=kill)
    assert migrator.migrate(app, scene.hosts["C"]).outcome is Outcome.FAILED
    [hidden] = images.glob("*/images/hidden")
    hidden.rename(hidden.with_name("pstree.img"))
    [recovered] = migrator.recover()
    assert recovered.verdict.value == "revived", recovered.reason
    assert recovered.app.container == app.container
    assert scene.listed("B") == {"echo": ("running", recovered.app.pid)}
    assert scene.leftovers(recovered.app) == []
    assert scene.migrator().migrate(recovered.app, scene.hosts["C"]).outcome is Outcome.COMPLETED


def test_twenty_moves_leave_nothing_behind(scene: ContainerStage) -> None:
    """Neither mounts nor processes, descriptors, folders, states of runc or control groups."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000", "--connections", "2")
    client.wait_for_requests()
    groups = len(control_groups())
    before = (
        open_descriptors(),
        len(scene.runtime.custody.children("program", "restored", "worker", "tool")),
    )
    mounts = mounts_everywhere(scene)
    for number in range(20):
        report = scene.migrator().migrate(app, scene.hosts["CB"[number % 2]])
        assert (report.outcome, report.connections.broken) == (Outcome.COMPLETED, 0), report.reason
    client.wait_for_requests()
    after = (open_descriptors(), len(scene.runtime.custody.children("program", "restored", "worker", "tool")))
    assert after == before
    assert mounts_everywhere(scene) == mounts
    assert scene.leftovers(app) == []
    assert len(control_groups()) == groups
    assert sorted(p.name for p in (scene.store / "C").iterdir()) == ["runc"]
    assert scene.listed("B") == {"echo": ("running", app.pid)}
    result = client.finish()
    assert result["lost_bytes"] == result["duplicated_bytes"] == result["resets"] == 0


def mounts_everywhere(scene: ContainerStage) -> list[int]:
    """Count the mounts of the machine and of every host."""
    pids: list[object] = ["self", *(host.pid for host in scene.hosts.values())]
    return [len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()) for pid in pids]


class Redis:
    """The least of a client: commands in a line, replies in a line or of a given length."""

    def __init__(self, scene: ContainerStage, host: str, address: str) -> None:
        self._socket = in_netns(scene.hosts[host].pid, lambda: socket.create_connection((address, 6379), 5))
        self._file = self._socket.makefile("rb")

    def ask(self, command: str) -> str:
        """Send a command and return the reply."""
        self._socket.sendall(command.encode() + b"\r\n")
        line = self._file.readline().decode().rstrip()
        if line.startswith("$"):
            return self._file.read(int(line[1:]) + 2).decode().rstrip()
        return line

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()


def redis(scene: ContainerStage, host: str) -> App:
    """Start a Redis that appends to a file of its writable layer."""
    if not (scene.root / "usr/bin/redis-server").exists():
        pytest.skip("redis-server is not installed")
    options = ["--protected-mode", "no", "--save", "", "--appendonly", "yes", "--dir", "/var/lib/redis"]
    app = scene.run("redis", host, ["redis-server", *options])
    wait_until(lambda: says(app.log, "eady to accept connections"), "Redis")
    return app


def test_redis_in_a_container(scene: ContainerStage) -> None:
    """Its data, its append-only file and its client's connection go along, twenty times."""
    app = redis(scene, "B")
    client = Redis(scene, "A", "10.77.2.2")
    uptime = 0
    for number in range(20):
        assert client.ask("INCR counter") == f":{number + 1}"
        report = scene.migrator().migrate(app, scene.hosts["CB"[number % 2]])
        assert (report.outcome, report.connections.broken) == (Outcome.COMPLETED, 0), report.reason
        said = dict(line.split(":", 1) for line in client.ask("INFO").splitlines() if ":" in line)
        assert int(said["uptime_in_seconds"]) >= uptime
        uptime = int(said["uptime_in_seconds"])
        assert (said["connected_clients"], said["total_connections_received"]) == ("1", "1")
    assert client.ask("GET counter") == "20"
    log = scene.shell(
        app, "cat /var/lib/redis/appendonly* /var/lib/redis/appendonlydir/* 2> /dev/null || true"
    )
    assert log.count("INCR") == 20
    client.close()


def test_containers_that_share_localhost_move_together(scene: ContainerStage) -> None:
    """A pod without an engine: two containers of one host, connected over localhost, in one migration."""
    server = scene.serve()
    talk = ["python3", ECHO, "client", "--connect", "127.0.0.1:7000", "--rate", "200"]
    talker = scene.run("talker", "B", [*talk, "--json", "/tmp/result", "--status", "/tmp/status"])
    client = scene.measure("A", "--connect", "10.77.2.2:7000")
    client.wait_for_requests()
    for number in range(20):
        report = scene.migrator().migrate(Party([server, talker]), scene.hosts["CB"[number % 2]])
        assert (report.outcome, report.connections.broken) == (Outcome.COMPLETED, 0), report.reason
        client.wait_for_requests()
        assert scene.leftovers(server, talker) == []
    for app in (server, talker):
        assert scene.listed("B")[app.name] == ("running", app.pid)
    status = json.loads(scene.shell(talker, "cat /tmp/status"))
    assert (status["lost_bytes"], status["resets"]) == (0, 0)
    assert status["replies"] > 20
    result = client.finish()
    assert result["lost_bytes"] == result["resets"] == 0


def test_what_cannot_move_is_refused_by_name(scene: ContainerStage) -> None:
    """A guest of the container, a file that is not its own, a name that is taken: refused, and nothing touched."""
    app = scene.serve()

    def reason(**options: Any) -> str:
        report = scene.migrator(**options).migrate(app, scene.hosts["C"])
        assert report.outcome is Outcome.REFUSED
        return str(report.reason)

    scene.runc("B", "exec", "--detach", "echo", "sh", "-c", "exec sleep 60 > /dev/null 2> /dev/null")
    assert "(sleep) was started in it from outside" in reason()
    end_guests(app)
    other = scene.run("other", "C", ["sleep", "60"])
    place_of(other, other.host).folder.rename(scene.store / "C" / "echo")
    assert reason() == "echo cannot be moved: C has a container of that name"
    (scene.store / "C" / "echo").rename(place_of(other, other.host).folder)
    assert scene.runtime.is_running(app)
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED


def end_guests(app: App) -> None:
    """End what runs in a container without being its own."""

    def guests() -> list[int]:
        return [pid for pid in in_namespace(app.pid) if pid not in descendants(app.pid)]

    for pid in guests():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: guests() == [], "the end of the guest")


def test_what_cannot_be_started_is_one_sentence(scene: ContainerStage) -> None:
    """A wrong command, name, user or image: named, and nothing left."""
    custody, host, log = scene.runtime.custody, scene.hosts["B"], scene.folder / "x.log"
    common: dict[str, Any] = {"store": scene.store, "cgroup": "p4ferry-x"}

    def start(name: str, image: Image, *argv: str) -> str:
        with pytest.raises(LaunchFailed) as caught:
            launch(custody, name, host, image, log, argv=argv, **common)
        assert not (scene.store / "B" / name).exists()
        return str(caught.value)

    assert "no/such" in start("x", Image(scene.root), "/no/such")
    assert start("x", Image(scene.root)).endswith("neither was a command given, nor has its image one")
    assert "no root file system at /no/root" in start("x", Image(Path("/no/root")), "sh")
    assert "there is no user 'her' in the image" in start("x", Image(scene.root, user="her"), "sh")
    assert "letters, digits" in start("a b", Image(scene.root), "sh")
    app = scene.run("x", "B", ["sleep", "60"])
    with pytest.raises(LaunchFailed, match="there is a container of that name already"):
        scene.run("x", "B", ["sleep", "60"])
    assert scene.runtime.is_running(app)
