"""What is done in a program for it, when CRIU is killed in the middle of its dump: see guard.py."""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from moving import PYTHON, Stage, stage, wait_until
from transferring import helpers

from migration import descriptors, tree
from migration.passage import ProcessPassage
from migration.report import Outcome
from migration.transfer.modes import Mode, Wish

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the guard executes calls on x86-64 only"),
]
PROGRAM = Path(__file__).parent / "programs" / "filtered.py"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as built:
        yield built


def test_a_seccomp_filter_does_not_mind_what_is_taken_away(
    scene: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program executes close and munmap for what CRIU has left in it, which its filter would have it killed for."""
    log = scene.folder / "filtered.log"
    app = scene.runtime.launch("filtered", scene.hosts["B"], [PYTHON, str(PROGRAM)], log)
    wait_until(lambda: log.read_text().count("\n") > 3, "the count")
    pid = app.pid
    killed: list[int] = []

    def kill_in_the_middle() -> None:
        (worker,) = helpers(scene.runtime, "dump --rpc")
        deadline = time.monotonic() + 5.0
        while not killed and time.monotonic() < deadline:
            if "/memfd:CRIU" in tree.read_or_empty(tree.PROC / str(pid) / "maps"):
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    def write_image(passage: ProcessPassage) -> None:
        watching = threading.Thread(target=kill_in_the_middle)
        watching.start()
        try:
            written(passage)
        finally:
            watching.join()

    written = ProcessPassage._write_image
    monkeypatch.setattr(ProcessPassage, "_write_image", write_image)
    report = scene.migrator().migrate(app, scene.hosts["C"], wish=Wish(Mode.STOP))
    assert killed
    assert report.outcome is Outcome.ROLLED_BACK, report.reason
    assert app.pid == pid
    assert "/memfd:CRIU" not in tree.read(tree.PROC / str(pid) / "maps")
    before = log.read_text().count("\n")
    wait_until(lambda: log.read_text().count("\n") > before + 3, "the count going on")
    monkeypatch.undo()
    assert scene.migrator().migrate(app, scene.hosts["C"], wish=Wish(Mode.STOP)).outcome is Outcome.COMPLETED


def test_a_seccomp_filter_does_not_mind_that_criu_gives_up(
    scene: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that sleeps with a time-out goes on without restart_syscall(2), which its filter does not know."""
    log = scene.folder / "filtered.log"
    app = scene.runtime.launch("filtered", scene.hosts["B"], [PYTHON, str(PROGRAM), "3"], log)
    wait_until(lambda: log.read_text().count("\n") > 3, "the count")
    monkeypatch.setattr(descriptors, "full_at", lambda pid: None)  # it would be refused
    for _ in range(5):
        report = scene.migrator().migrate(app, scene.hosts["C"], wish=Wish(Mode.STOP))
        assert report.outcome is Outcome.ROLLED_BACK
        assert "Too many open files" in str(report.reason)
        before = log.read_text().count("\n")
        wait_until(partial(_counts_on, log, before), "the count going on")


def _counts_on(log: Path, before: int) -> bool:
    return log.read_text().count("\n") > before + 3
