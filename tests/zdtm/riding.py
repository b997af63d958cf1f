"""A test on its way: started in a group of a host, moved to and fro, told to end, and heard.

Tests go into the background, so they cannot be PID 1 of what moves. A group has an init for just that: the test's
starter is a program of the group, ends when the test is ready, and leaves the test to the init.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from migration import tree
from migration.cancellation import Cancellation
from migration.errors import LaunchFailed
from migration.groups import Member
from migration.model import App
from migration.report import Outcome, Report
from migration.slowness import scaled
from migration.transfer.modes import Mode, Wish
from topo.waiting import wait_until

from . import suite, visible
from .suite import Case
from .verdicts import Result, Said, Verdict, against, judge

_STAGE = Path(__file__).parents[1] / "migration"
_HOME, _AWAY = "B", "C"
_GROUP = "zdtm"


class CannotStart(Exception):
    """A test does not come up; the message says why."""


@contextmanager
def hosts(folder: Path) -> Iterator[Any]:
    """Build the hosts of tests/migration, with a management network between them: a moving.Stage."""
    sys.path.append(str(_STAGE))
    managed = importlib.import_module("transferring").managed  # its folder is no package

    images = Path("/dev/shm") / f"p4ferry-test-{os.getpid()}"
    try:
        with managed(folder) as scene:
            yield scene
    finally:
        shutil.rmtree(images, ignore_errors=True)


class Interruption:
    """Ctrl-C: a move under way turns back first, all else is left at once; so is a move at the second one."""

    def __init__(self) -> None:
        self._moving: Cancellation | None = None
        self._is_asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM."""
        if self._moving is None or self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True
        self._moving.request()

    @contextmanager
    def held(self) -> Iterator[Cancellation]:
        """Keep it away from a move; raise KeyboardInterrupt at its end if somebody has asked."""
        self._moving = Cancellation()
        try:
            yield self._moving
        finally:
            self._moving = None
        if self._is_asked:
            raise KeyboardInterrupt


class Ride:
    """One start of a test."""

    def __init__(self, scene: Any, case: Case) -> None:
        self._scene = scene
        self._case = case
        self._limit_s = case.description.limit_s
        self._log = scene.folder / f"{case.name}.log"

    def __enter__(self) -> Ride:
        """Start it, and wait until it is ready; raises CannotStart."""
        self.app: App = self._scene.runtime.launch_group(_GROUP, self._scene.hosts[_HOME], self._log)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._scene.runtime.terminate(self.app)
        self._clean()
        for place in (_HOME, _AWAY):
            _clear_firewall(self._scene.hosts[place].pid)
        for journal in (self._scene.folder / "journals").glob("*"):
            journal.unlink()  # of a program that a move has lost, which the report has said

    def _start(self) -> None:
        runtime, case = self._scene.runtime, self._case
        command = ["make", "--no-print-directory", case.pidfile.name]
        log = self._log.with_suffix(".start")
        try:
            starter: Member = runtime.launch_in(
                self.app, "starter", command, log, env=suite.environment(case), cwd=case.place
            )
        except LaunchFailed as ex:
            raise CannotStart(str(ex)) from ex
        if not wait_until(lambda: starter.pid == 0, self._limit_s):
            raise CannotStart(f"it is not ready within {scaled(self._limit_s):.0f} s")
        if not case.pidfile.exists():
            said = self._heard().text or log.read_text(errors="replace")
            raise CannotStart(f"it does not start: {Said(said)}")
        self._inner = int(case.pidfile.read_text())
        if self.pid == 0:
            raise CannotStart(f"it has ended at once: {self._heard()}")

    def _clean(self) -> None:
        """Remove what an earlier start has left, as its Makefile knows it."""
        with contextlib.suppress(OSError):
            suite.make(self._case, "cleanout", limit_s=self._limit_s)
        for path in (self._case.pidfile, self._case.outfile, self._case.unfinished):
            path.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The test's process as we see it, which every move changes; 0 if it has ended."""
        for pid in tree.processes(self.app.pid):
            if tree.inside(pid) == self._inner:
                return pid
        return 0

    def move(self, mode: Mode, interruption: Interruption) -> Report:
        """Move it to the other host."""
        there = _AWAY if self.app.host.name == _HOME else _HOME
        migrator = self._scene.migrator()
        with interruption.held() as cancellation:
            report: Report = migrator.migrate(
                self.app, self._scene.hosts[there], cancellation=cancellation, wish=Wish(mode)
            )
        return report

    def seen(self) -> visible.State:
        """Look at all processes of the test from outside; the group's init may have hardly begun."""
        seen = visible.look(self.app.pid)
        return {key: value for key, value in seen.items() if key.partition(",")[0] != "process 1"}

    def finish(self) -> Said:
        """Tell it to end, and hear what it has found."""
        pid = self.pid
        if pid == 0:
            said = self._heard()
            return said if said.is_pass else Said(f"{said.text}\nERR: it had ended before it was told to")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        has_ended = tree.ends_within(pid, scaled(self._limit_s))
        return Said(self._heard().text, has_ended)

    def _heard(self) -> Said:
        for path in (self._case.outfile, self._case.unfinished):
            with contextlib.suppress(FileNotFoundError):
                return Said(path.read_text(errors="replace"))
        return Said("")


def _clear_firewall(pid: int) -> None:
    """Remove the rules that a test of root's has left in the network of a host, where others meet them."""
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net"]
    for command in (["nft", "flush", "ruleset"], ["iptables-legacy", "-F"], ["ip6tables-legacy", "-F"]):
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(
                [*enter, *command], stdin=subprocess.DEVNULL, capture_output=True, timeout=scaled(20)
            )


def ride(scene: Any, case: Case, mode: Mode, moves: int, interruption: Interruption) -> Result:
    """Start a test, move it until something goes wrong, and judge; what failed is started again and left alone."""
    begin = time.monotonic()
    try:
        with Ride(scene, case) as test:
            result = _moved(test, case, mode, moves, interruption)
    except CannotStart as ex:
        result = Result(Verdict.IMPOSSIBLE, str(ex))
    seconds = time.monotonic() - begin
    if result.verdict is Verdict.FAILED and not case.description.needs_move:
        with contextlib.suppress(CannotStart), Ride(scene, case) as test:
            before, again = test.seen(), test.seen()
            time.sleep(seconds)  # in which the moved one may have changed by itself
            unlike = visible.differences(before, again, test.seen())
            result = against(result, test.finish(), bool(unlike))
    return Result(result.verdict, result.detail, seconds)


def _moved(test: Ride, case: Case, mode: Mode, moves: int, interruption: Interruption) -> Result:
    reports: list[Report] = []
    before, again = test.seen(), test.seen()
    while len(reports) < moves and (not reports or reports[-1].outcome is Outcome.COMPLETED):
        reports.append(test.move(mode, interruption))
    unlike = visible.differences(before, again, test.seen()) if case.is_still else ""
    return judge(case.description, reports, test.finish(), unlike)
