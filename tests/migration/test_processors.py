"""CRIU has a processor to itself while a program stands still, and a program keeps its affinity when it moves."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from moving import PYTHON, Stage, stage, wait_until

from migration import processors, tree
from migration.errors import MigrationError
from migration.model import App
from migration.processors import Apart, assisting
from migration.report import Outcome

ALL = os.sched_getaffinity(0)
one_is_enough = pytest.mark.skipif(len(ALL) < 2, reason="this machine has one processor")
SLEEP = ["sleep", "60"]
# Two more threads, each with an affinity of its own.
THREADS = """
import os, threading, time
def run(where):
    os.sched_setaffinity(0, {where})
    time.sleep(600)
for where in sorted(os.sched_getaffinity(0))[:2]:
    threading.Thread(target=run, args=(where,)).start()
time.sleep(0.2)
print("ready", flush=True)
"""


@pytest.fixture
def sleepers() -> Iterator[list[int]]:
    """Run four processes."""
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(SLEEP)) for _ in range(4)]
        yield [process.pid for process in processes]
        for process in processes:
            process.kill()


@pytest.fixture
def assistant() -> Iterator[int]:
    """Run a thread that works for migrations."""
    yield from thread(True)


@pytest.fixture
def bystander() -> Iterator[int]:
    """Run a thread that does not."""
    yield from thread(False)


def thread(assists: bool) -> Iterator[int]:
    ids: list[int] = []
    is_there, is_over = threading.Event(), threading.Event()

    def run() -> None:
        with assisting() if assists else ExitStack():
            ids.append(threading.get_native_id())
            is_there.set()
            is_over.wait(60)

    running = threading.Thread(target=run)
    running.start()
    assert is_there.wait(5)
    yield ids[0]
    is_over.set()
    running.join()


@one_is_enough
def test_workers_are_apart_from_the_rest(sleepers: list[int], assistant: int, bystander: int) -> None:
    """Workers have the original's processor, helpers and our threads the others; who else there is may go anywhere."""
    original, worker, helper, other = sleepers
    one = tree.processor(original)
    apart = Apart([original])
    apart.begin([worker], [helper])
    try:
        assert os.sched_getaffinity(worker) == {one}
        for aside in (helper, assistant, threading.get_native_id()):
            assert os.sched_getaffinity(aside) == ALL - {one}
        for anywhere in (original, other, bystander):
            assert os.sched_getaffinity(anywhere) == ALL
    finally:
        apart.leave()
    for back in (assistant, threading.get_native_id()):
        assert os.sched_getaffinity(back) == ALL
    apart.leave()


@one_is_enough
def test_the_next_one_waits(sleepers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two freezes would only delay each other, the second begins when the first is over."""
    monkeypatch.setattr(processors, "FEW", len(ALL))
    first, second = Apart(sleepers[:1]), Apart(sleepers[1:2])
    has_begun = threading.Event()

    def wait_and_begin() -> None:
        has_begun.wait()
        second.begin([sleepers[3]], [])

    thread = threading.Thread(target=wait_and_begin)
    thread.start()
    first.begin([sleepers[2]], [])
    has_begun.set()
    thread.join(0.1)
    assert thread.is_alive()
    first.leave()
    thread.join(5)
    assert len(os.sched_getaffinity(sleepers[3])) == 1
    second.leave()


@one_is_enough
def test_one_at_a_time(sleepers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second freeze waits for a while, then takes place as it comes; its end changes nothing for the first."""
    monkeypatch.setattr(processors, "PATIENCE", 0.05)
    first, second = Apart(sleepers[:1]), Apart(sleepers[1:2])
    first.begin([sleepers[2]], [])
    try:
        aside = os.sched_getaffinity(0)
        second.begin([sleepers[3]], [])
        assert os.sched_getaffinity(sleepers[3]) == ALL
        second.leave()
        assert os.sched_getaffinity(0) == aside != ALL
    finally:
        first.leave()
    second.begin([sleepers[3]], [])
    assert len(os.sched_getaffinity(sleepers[3])) == 1
    second.leave()


def test_without_another_processor(sleepers: list[int]) -> None:
    """Where there is one processor only, everything runs there."""
    one = min(ALL)
    os.sched_setaffinity(0, {one})
    try:
        apart = Apart(sleepers[:1])
        apart.begin([sleepers[1]], [])
        assert os.sched_getaffinity(sleepers[1]) == ALL
        apart.leave()
        assert os.sched_getaffinity(0) == {one}
    finally:
        os.sched_setaffinity(0, ALL)


def test_what_has_ended_is_no_error() -> None:
    """Neither an original, nor a worker, nor a copy has to be there."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    apart = Apart([process.pid])
    apart.begin([process.pid], [process.pid])
    apart.give_back(process.pid, is_alone=True)
    apart.leave()
    assert os.sched_getaffinity(0) == ALL


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    """Build a network."""
    with stage(tmp_path) as built:
        yield built


def affinities(app: App) -> dict[int, set[int]]:
    """Return where a program's threads may run, by their IDs in its PID namespace."""
    return {
        tree.inside(thread): os.sched_getaffinity(thread)
        for pid in tree.processes(app.pid)
        for thread in tree.threads(pid)
    }


def own() -> dict[int, set[int]]:
    """Return where the threads of this process may run."""
    return {thread: os.sched_getaffinity(thread) for thread in tree.threads(os.getpid())}


@pytest.mark.net
@pytest.mark.parametrize("forks", [False, True])
def test_a_program_keeps_its_affinity(scene: Stage, forks: bool) -> None:
    """Of each thread, there and back, also in a tree; and so do we."""
    command = [PYTHON, "-c", ("import os; os.fork()\n" if forks else "") + THREADS]
    log = scene.folder / "app.log"
    app = scene.runtime.launch("app", scene.hosts["B"], command, log)
    wait_until(lambda: log.exists() and log.read_text().count("ready") == 1 + forks, "its threads")
    before, ours = affinities(app), own()
    assert len(before) == 3 * (1 + forks)
    assert sum(where != ALL for where in before.values()) == (2 * (1 + forks) if len(ALL) > 1 else 0)
    for to in "CB":
        report = scene.migrator().migrate(app, scene.hosts[to])
        assert report.outcome is Outcome.COMPLETED, report.reason
        assert affinities(app) == before
    assert all(own()[thread] == where for thread, where in ours.items() if thread in own())


@pytest.mark.net
@pytest.mark.parametrize("step", ["hold", "checkpoint", "restore", "release"])
def test_a_failure_leaves_nobody_aside(scene: Stage, step: str) -> None:
    """Whatever fails, threads here and the program may run where they might before."""

    def fail(name: str, when: str) -> None:
        if (name, when) == (step, "after"):
            raise MigrationError("injected")

    app = scene.serve()
    before = affinities(app)
    report = scene.migrator(fault=fail).migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.ROLLED_BACK
    assert affinities(app) == before
    assert set(map(frozenset, own().values())) == {frozenset(ALL)}
