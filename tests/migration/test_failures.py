"""Whatever fails, the program runs on at its source with its connections, and the report says why."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from moving import PYTHON, Stage, stage, wait_until

from migration.baggage import enter_groups
from migration.criu import Criu, Worker
from migration.errors import CriuFailed, CriuMissing, LaunchFailed, MigrationError
from migration.model import Host
from migration.process import ProcessRuntime
from migration.report import Outcome
from migration.steering import Move
from tests.faults.cells import STEPS

pytestmark = pytest.mark.net


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


class FailAt:
    """Makes one step fail, before or after it has acted."""

    def __init__(self, step: str, when: str) -> None:
        self.where = (step, when)

    def __call__(self, step: str, when: str) -> None:
        if (step, when) == self.where:
            raise MigrationError(f"injected {when} {step}")


def test_every_step_can_fail(scene: Stage) -> None:
    """Before and after every step: rolled back, nothing lost, nothing to retransmit, and then it works."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000", "--connections", "3")
    client.wait_for_requests()
    for step in STEPS:
        for when in ("before", "after"):
            report = scene.migrator(fault=FailAt(step, when)).migrate(app, scene.hosts["C"])
            assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, f"injected {when} {step}")
            assert app.host.name == "B"
            assert report.connections.broken == 0
            client.wait_for_requests(30)
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    client.wait_for_requests()
    result = client.finish()
    assert (
        result["lost_bytes"] == result["duplicated_bytes"] == result["resets"] == result["retransmits"] == 0
    )


def test_steering_that_fails_is_undone(scene: Stage) -> None:
    """A network that refuses is no reason to lose the program."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000")
    client.wait_for_requests()
    steering = scene.net.steering
    for method in ("prepare", "hold", "switch_over", "release", "finish"):
        steering.fail_once = method
        report = scene.migrator().migrate(app, scene.hosts["C"])
        assert report.outcome is Outcome.ROLLED_BACK
        assert report.reason == f"the router refuses to {method}"
        assert app.host.name == "B"
        client.wait_for_requests(30)
    result = client.finish()
    assert result["lost_bytes"] == result["resets"] == 0


def test_death_of_the_copy_before_it_runs(scene: Stage) -> None:
    """The copy is killed while it waits to run: the original thaws."""
    app = scene.serve()
    client = scene.measure("A", "--connect", "10.77.2.2:7000")
    client.wait_for_requests()

    def kill_the_copy(step: str, when: str) -> None:
        if (step, when) == ("restore", "after"):
            for pid in copies(scene, app.pid):
                os.kill(pid, signal.SIGKILL)
            raise MigrationError("the copy is dead")

    report = scene.migrator(fault=kill_the_copy).migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.ROLLED_BACK
    client.wait_for_requests()
    assert client.finish()["lost_bytes"] == 0


def test_death_of_the_frozen_original(scene: Stage) -> None:
    """The original is killed while it is frozen: it is restored from its image, its connections are kept."""
    app = scene.serve()
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
    result = client.finish()
    assert result["lost_bytes"] == result["resets"] == 0


def test_death_of_the_original_while_it_is_dumped(scene: Stage) -> None:
    """It was the program that was killed, not CRIU, and that is what the report says."""
    app = scene.serve("B", name="large")
    steering = scene.net.steering
    quiesce = steering.muted

    def kill(move: Move) -> None:
        quiesce(move)
        os.kill(app.pid, signal.SIGKILL)  # CRIU has stopped it, and is about to write it down

    steering.muted = kill  # type: ignore[method-assign]
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.FAILED
    assert f"process {app.pid} was killed by SIGKILL before its image was complete" in str(report.reason)
    assert not scene.runtime.is_running(app)


def test_lost_program_leaves_its_image_for_a_recovery(scene: Stage) -> None:
    """When not even the way back works, the report says so, and what is needed to restore it is kept."""
    app = scene.serve()

    def kill(step: str, when: str) -> None:
        if (step, when) == ("transfer", "after"):
            os.kill(app.pid, signal.SIGKILL)
            wait_until(lambda: not scene.runtime.is_running(app), "its death")
            hidden = next(Path("/dev/shm").glob(f"p4ferry-test-{os.getpid()}/*/images/pstree.img"))
            hidden.rename(hidden.with_name("hidden"))
            raise MigrationError("the original is dead")

    migrator = scene.migrator(fault=kill)
    report = migrator.migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.FAILED
    assert "the original is dead; echo could not be brought back to B: CRIU could not restore" in str(
        report.reason
    )
    [hidden] = Path("/dev/shm").glob(f"p4ferry-test-{os.getpid()}/*/images/hidden")
    hidden.rename(hidden.with_name("pstree.img"))
    [recovered] = migrator.recover()
    assert recovered.verdict.value == "revived", recovered.reason
    assert scene.runtime.is_running(recovered.app)


def copies(scene: Stage, original: int) -> list[int]:
    """List the keeper's children in the same program as the original."""
    keeper = scene.runtime.custody.pid
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    wanted = Path(f"/proc/{original}/exe").readlink()
    return [int(c) for c in children if int(c) != original and Path(f"/proc/{c}/exe").readlink() == wanted]


def test_death_of_the_copy_after_it_ran(scene: Stage) -> None:
    """The copy is killed right after its arrival: it has a history that no image holds, and so it has ended."""
    app = scene.serve()

    def kill(step: str, when: str) -> None:
        if (step, when) == ("release", "after"):
            os.kill(app.pid, signal.SIGKILL)
            wait_until(lambda: not scene.runtime.is_running(app), "the copy's death")

    report = scene.migrator(fault=kill).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert report.ended == {"status": None, "signal": "SIGKILL"}
    assert app.host.name == "C"
    assert not scene.runtime.is_running(app)
    assert scene.runtime.sockets(app) == []


def test_what_cannot_be_moved_is_refused_by_name(scene: Stage) -> None:
    """Refusals name the thing, and touch nothing."""
    app = scene.serve()
    other = scene.serve("C", "--udp", name="other")
    migrator = scene.migrator()
    a, b, c = (scene.hosts[name] for name in "ABC")

    def reason(app_: object, host: Host) -> str:
        report = migrator.migrate(app_, host)  # type: ignore[arg-type]
        assert report.outcome is Outcome.REFUSED
        return str(report.reason)

    assert reason(app, b) == "echo is on B already"
    assert reason(app, Host("Z", 999_999, a.address)) == "host Z is not there (its process 999999 has ended)"
    assert reason(app, c) == "echo cannot be moved: TCP port 7000 is taken on C"
    assert scene.net.steering.calls == []
    scene.runtime.terminate(other)
    assert reason(other, a).startswith("other is not running on C")
    assert scene.runtime.is_running(app)


def test_loopback_peer_outside_is_refused(scene: Stage) -> None:
    """A connection with another program on the same host would be cut; so it is refused by name."""
    scene.serve()
    log = scene.folder / "local.log"
    code = "import socket,time; s=socket.create_connection(('127.0.0.1',7000)); print('up',flush=True); time.sleep(99)"
    app = scene.runtime.launch("local", scene.hosts["B"], [PYTHON, "-c", code], log)
    wait_until(lambda: log.exists() and "up" in log.read_text(), "the connection")
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.REFUSED
    assert "to 127.0.0.1:7000 is connected with process" in str(report.reason)


def test_peer_with_the_destinations_address_is_refused(scene: Stage) -> None:
    """At the host whose address its peer has, a program would talk to that host instead."""
    scene.serve("B")
    log = scene.folder / "client.log"
    app = scene.runtime.launch("client", scene.hosts["A"], scene.command("--connect", "10.77.2.2:7000"), log)
    wait_until(lambda: scene.runtime.sockets(app), "the connection")
    report = scene.migrator().migrate(app, scene.hosts["B"])
    assert report.outcome is Outcome.REFUSED
    assert "has B's own address as its peer" in str(report.reason)


def test_a_program_is_on_one_way_at_a_time(scene: Stage) -> None:
    """A second migration of the same program is refused while the first goes on; cancel turns it back."""
    app = scene.serve()
    arrived, go_on = threading.Event(), threading.Event()

    def wait(step: str, when: str) -> None:
        if (step, when) == ("hold", "before"):
            arrived.set()
            go_on.wait(10)

    migrator = scene.migrator(fault=wait)
    reports = []
    thread = threading.Thread(
        target=lambda: reports.append(migrator.migrate(app, scene.hosts["C"], identity="one"))
    )
    thread.start()
    assert arrived.wait(10)
    second = migrator.migrate(app, scene.hosts["A"])
    assert (second.outcome, second.reason) == (Outcome.REFUSED, "echo is already on the move (migration one)")
    assert migrator.cancel("one")
    assert not migrator.cancel("two")
    go_on.set()
    thread.join(10)
    assert (reports[0].outcome, reports[0].reason) == (
        Outcome.ROLLED_BACK,
        "cancelled before the step 'checkpoint'",
    )
    assert scene.runtime.is_running(app)


def test_two_programs_move_at_the_same_time(scene: Stage) -> None:
    """Migrations of different programs do not disturb each other."""
    apps = [scene.serve("B", "--port", str(port), name=f"echo{port}") for port in (7001, 7002, 7003)]
    migrator = scene.migrator()
    for name in ("C", "B"):
        reports = []
        threads = [
            threading.Thread(target=lambda app=app: reports.append(migrator.migrate(app, scene.hosts[name])))  # noqa: B023
            for app in apps
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [report.outcome for report in reports] == [Outcome.COMPLETED] * 3, reports


def test_missing_or_broken_criu_is_one_sentence(tmp_path: Path) -> None:
    """Who has no CRIU is told so, and what to do."""
    with pytest.raises(CriuMissing, match=r"cannot be run .*run `make setup` again"):
        Criu.find(tmp_path / "criu")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'wrong libc' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(CriuMissing, match=r"does not work \(wrong libc\)"):
        Criu.find(broken)


def test_a_criu_that_was_named_is_its_namers_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set-up again would not help."""
    monkeypatch.setenv("P4FERRY_CRIU", str(tmp_path / "criu"))
    said = rf"CRIU at {tmp_path}/criu cannot be run \(No such file or directory\): name another one in P4FERRY_CRIU"
    with pytest.raises(CriuMissing, match=said):
        Criu.find()


def test_criu_that_breaks_later_costs_nothing(scene: Stage, tmp_path: Path) -> None:
    """A CRIU that vanished or dies at once is told in one sentence, and the program runs on."""
    app = scene.serve()
    dead = tmp_path / "dead"
    dead.write_text("#!/bin/sh\nexit 1\n")
    dead.chmod(0o755)
    good = scene.runtime.criu
    for binary, words in ((tmp_path / "gone", "gone: No such file"), (dead, "it ended without saying why")):
        scene.runtime.criu = replace(good, binary=binary)
        report = scene.migrator().migrate(app, scene.hosts["C"])
        assert report.outcome is Outcome.ROLLED_BACK
        assert words in str(report.reason)
        assert scene.runtime.is_running(app)
    scene.runtime.criu = good
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED


def test_a_worker_that_has_ended_says_so_itself(scene: Stage, tmp_path: Path) -> None:
    """Whoever comes to a worker that is gone gives its failure, not that of its own system call."""
    dead = tmp_path / "dead"
    dead.write_text("#!/bin/sh\nexit 1\n")
    dead.chmod(0o755)
    custody = scene.runtime.custody
    worker = Worker(
        replace(scene.runtime.criu, binary=dead),
        custody,
        scene.hosts["B"].pid,
        "restore it",
        tmp_path / "log",
    )
    assert custody.wait_for_exit(worker.pid, 20) == 1
    groups = [group for group in Path("/sys/fs/cgroup").rglob("*") if (group / "cgroup.procs").exists()]
    assert groups
    with pytest.raises(CriuFailed, match="could not restore it: it ended without saying why"):
        enter_groups(worker, groups[:1])
    worker.close()


def test_criu_that_fails_to_dump_is_told(scene: Stage, tmp_path: Path) -> None:
    """A program that only CRIU finds unmovable is refused or rolled back with CRIU's own words."""
    log = tmp_path / "packet.log"
    code = (
        "import mmap,os,time,ctypes; fd=ctypes.CDLL(None).syscall(425,4,ctypes.create_string_buffer(120));"
        "print('up' if fd>=0 else 'no',flush=True); time.sleep(99)"
    )
    app = scene.runtime.launch("ring", scene.hosts["B"], [PYTHON, "-c", code], log)
    wait_until(lambda: log.exists() and log.read_text(), "the program")
    if "no" in log.read_text():
        pytest.skip("this kernel has no io_uring")
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.REFUSED
    assert "io_uring" in str(report.reason)


def test_program_that_cannot_be_started_is_named(scene: Stage) -> None:
    """A wrong command or folder is one sentence."""
    log = scene.folder / "none.log"
    with pytest.raises(
        LaunchFailed, match="x could not be started on B: /no/such: No such file or directory"
    ):
        scene.runtime.launch("x", scene.hosts["B"], ["/no/such"], log)
    with pytest.raises(LaunchFailed, match="No such file or directory: '/no/folder'"):
        scene.runtime.launch("x", scene.hosts["B"], ["true"], log, cwd=Path("/no/folder"))


def test_programs_end_with_their_keeper(scene: Stage) -> None:
    """When the testbed dies its programs die, moved ones included."""
    with ProcessRuntime() as runtime:
        inner = Stage(scene.net, runtime, scene.folder)
        app = inner.serve("B", name="inner")
        assert inner.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
        os.kill(runtime.custody.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(app.pid), "the program's death")


def is_alive(pid: int) -> bool:
    """Say whether a process runs (zombies of the machine's PID 1 do not count)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
