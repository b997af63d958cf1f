"""A program that comes to its end right after its arrival has ended: its last work is done once, never twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moving import PYTHON, Stage, says, wait_until
from transferring import managed

from migration import tree
from migration.errors import MigrationError
from migration.groups import Party
from migration.model import App
from migration.report import Outcome
from migration.transfer.modes import Mode, Via, Wish

pytestmark = pytest.mark.net

ORDER = Path(__file__).parent / "programs" / "order.py"
DONE = {"status": 0, "signal": None}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with managed(tmp_path) as built:
        yield built


def order(
    scene: Stage, status: int = 0, mebibytes: int = 1, children: int = 0, name: str = "order", host: str = "B"
) -> App:
    """Start a program that will do its work once its flag is there."""
    log = scene.folder / f"{name}.log"
    files = [str(scene.folder / f"{name}.{kind}") for kind in ("flag", "out")]
    argv = [PYTHON, str(ORDER), *files, str(status), str(mebibytes), str(children)]
    app = scene.runtime.launch(name, scene.hosts[host], argv, log)
    wait_until(lambda: says(log, "ready"), "the program being ready")
    return app


def let_end(scene: Stage, name: str = "order") -> Callable[[str, str], None]:
    """Set the flag while the program stands still: it ends with the first thing that it does."""

    def fault(step: str, when: str) -> None:
        if (step, when) == ("restore", "after"):
            (scene.folder / f"{name}.flag").touch()
        if (step, when) == ("verify", "before"):
            wait_until((scene.folder / f"{name}.out").exists, "its last work")
            time.sleep(0.1)  # in which it ends, and is reaped

    return fault


def work_of(scene: Stage, name: str = "order") -> list[str]:
    """Return what a program has done."""
    return (scene.folder / f"{name}.out").read_text().splitlines()


@pytest.mark.parametrize("via", list(Via))
@pytest.mark.parametrize(
    ("mode", "status", "mebibytes", "children", "ended"),
    [
        (Mode.STOP, 0, 1, 0, DONE),
        (Mode.STOP, 3, 1, 3, {"status": 3, "signal": None}),
        (Mode.LAZY, 0, 60, 0, DONE),
        (Mode.LAZY, 0, 30, 3, DONE),
    ],
)
def test_a_program_that_ends_on_arrival_has_ended(
    scene: Stage, mode: Mode, via: Via, status: int, mebibytes: int, children: int, ended: dict[str, Any]
) -> None:
    """Completed, at its destination, its work done once, and how it ended is in the report."""
    app = order(scene, status, mebibytes, children)
    report = scene.migrator(fault=let_end(scene)).migrate(app, scene.hosts["C"], wish=Wish(mode, via))
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    wait_until(lambda: not scene.runtime.is_running(app), "its end")
    assert app.host.name == "C"
    assert report.to_json()["ended"] == ended
    assert work_of(scene) == ["order shipped"]


def test_a_program_that_lives_has_not_ended(scene: Stage) -> None:
    """The report says nothing of an end."""
    app = order(scene)
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert (report.outcome, report.to_json()["ended"]) == (Outcome.COMPLETED, None)
    assert scene.runtime.is_running(app)


@pytest.mark.parametrize("step", ["release", "verify"])
def test_what_fails_after_its_end_does_not_bring_it_back(scene: Stage, step: str) -> None:
    """Whatever the migration runs into when the program has done its work: it is not done a second time."""
    app = order(scene)
    end = let_end(scene)

    def fault(at: str, when: str) -> None:
        end(at, when)
        if (at, when) == (step, "after"):
            wait_until(lambda: not scene.runtime.is_running(app), "its end")
            raise MigrationError("injected")

    report = scene.migrator(fault=fault).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason, report.ended) == (Outcome.COMPLETED, None, DONE)
    assert work_of(scene) == ["order shipped"]


def test_a_network_that_fails_after_its_end_is_told(scene: Stage) -> None:
    """Then something is left in the network: the migration has failed, and the program has ended all the same."""
    app = order(scene)
    end = let_end(scene)

    def fault(at: str, when: str) -> None:
        end(at, when)
        if (at, when) == ("verify", "before"):
            wait_until(lambda: not scene.runtime.is_running(app), "its end")
            scene.net.steering.fail_once = "finish"

    report = scene.migrator(fault=fault).migrate(app, scene.hosts["C"])
    assert (report.outcome, report.ended) == (Outcome.COMPLETED, DONE)  # the second attempt is enough
    assert work_of(scene) == ["order shipped"]


def test_a_network_that_does_not_let_go_never_lets_the_copy_run(scene: Stage) -> None:
    """The packets cannot be released when the copy is about to be let go: the original's image is restored, alone."""
    app = order(scene)
    scene.net.steering.fail_once = "release"
    report = scene.migrator(fault=let_end(scene)).migrate(app, scene.hosts["C"])
    wait_until(lambda: not scene.runtime.is_running(app), "its end")
    assert work_of(scene) == ["order shipped"], report
    assert report.outcome in (Outcome.COMPLETED, Outcome.ROLLED_BACK)


def test_none_of_two_runs_before_both_can(scene: Stage) -> None:
    """The restore worker of the one is killed when the other one could run: both are restored, and work once."""
    apps = [order(scene, name=name) for name in ("first", "second")]

    def fault(step: str, when: str) -> None:
        if (step, when) == ("restore", "after"):
            for name in ("first", "second"):
                (scene.folder / f"{name}.flag").touch()
        if (step, when) == ("release", "before"):
            keeper = scene.runtime.custody
            restorers = [
                pid for pid in keeper.children("worker") if netns(pid) == netns(scene.hosts["C"].pid)
            ]
            assert len(restorers) == 2
            os.kill(restorers[0], signal.SIGKILL)
            wait_until(lambda: restorers[0] not in keeper.children("worker"), "the death of a worker")

    report = scene.migrator(fault=fault).migrate(Party(apps), scene.hosts["C"])
    assert report.outcome is Outcome.ROLLED_BACK, report
    for app in apps:
        wait_until(lambda app=app: not scene.runtime.is_running(app), "its end")  # type: ignore[misc]
        assert work_of(scene, app.name) == ["order shipped"]


def netns(pid: int) -> Path:
    """Name the network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net").readlink()


def test_one_of_two_that_move_together_ends(scene: Stage) -> None:
    """The one has ended, the other lives where both have moved to."""
    apps = [order(scene, name=name) for name in ("first", "second")]
    report = scene.migrator(fault=let_end(scene, "first")).migrate(Party(apps), scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert report.ended == {"first": DONE}
    assert work_of(scene, "first") == ["order shipped"]
    assert scene.runtime.is_running(apps[1])
    assert {app.host.name for app in apps} == {"C"}


def test_a_program_whose_main_thread_has_ended_lives(scene: Stage) -> None:
    """It is not taken for ended, its descriptors are seen, and it is refused by name before it is touched."""
    log = scene.folder / "leader_gone.log"
    program = str(Path(__file__).parent / "programs" / "leader_gone.py")
    app = scene.runtime.launch("leader_gone", scene.hosts["B"], [PYTHON, program], log)
    wait_until(lambda: says(log, "5"), "the program counting")
    wait_until(lambda: tree.state(app.pid) == "Z", "the end of its main thread")
    assert scene.runtime.is_running(app)
    assert {0, 1, 2} <= {file.fd for file in tree.open_files([app.pid])}
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.REFUSED
    assert f"the main thread of process {app.pid} has ended (pthread_exit)" in str(report.reason)
    assert report.criu.frozen_ms == 0
    said = len(log.read_text().splitlines())
    wait_until(lambda: len(log.read_text().splitlines()) > said + 3, "the program going on")
    assert not scene.runtime.custody.wait(app.pid, 0.1)
    scene.runtime.custody.kill(app.pid, signal.SIGKILL)
    assert scene.runtime.custody.wait(app.pid, 5)
    assert not scene.runtime.is_running(app)
