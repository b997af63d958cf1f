"""Post-copy: the memory that arrives is that of the frozen original, and no program is ended by it."""

from __future__ import annotations

import os
import platform
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moving import PYTHON, Stage, says, wait_until
from transferring import helpers, managed

from migration import tree
from migration.model import App
from migration.report import Outcome
from migration.transfer.carrier import Carrier
from migration.transfer.lazy import STOPPED
from migration.transfer.link import connect, enlarge, pair
from migration.transfer.missing import userfaultfds
from migration.transfer.modes import Mode, Via, Wish

pytestmark = pytest.mark.net

PROGRAMS = Path(__file__).parent / "programs"
WAYS = [(mode, via) for mode in (Mode.STOP, Mode.LAZY) for via in Via]
PAGE = 4096
RSEQ = 32  # bytes of struct rseq
REQUEST = 32  # bytes of CRIU's struct page_server_iov
THREADS = 32_768  # as many as a kernel has by default


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with managed(tmp_path) as built:
        yield built


def start(scene: Stage, name: str, *arguments: object, word: str = "ready") -> App:
    """Start one of our programs on B, and wait until it says a word."""
    log = scene.folder / f"{name}.log"
    command = [PYTHON, str(PROGRAMS / f"{name}.py"), *map(str, arguments)]
    app = scene.runtime.launch(name, scene.hosts["B"], command, log)
    wait_until(lambda: says(log, word), f"{name} being ready", timeout=30)
    return app


def writable_memory(pid: int) -> dict[int, bytes]:
    """Read the private, writable memory of a process, by the addresses of its areas."""
    found = {}
    with (tree.PROC / str(pid) / "mem").open("rb", buffering=0) as memory:
        for line in (tree.PROC / str(pid) / "maps").read_text().splitlines():
            area, rights, *_ = line.split()
            begin, _, end = area.partition("-")
            if rights.startswith("rw") and rights.endswith("p"):
                memory.seek(int(begin, 16))
                found[int(begin, 16)] = memory.read(int(end, 16) - int(begin, 16))
    return found


def differences(here: dict[int, bytes], there: dict[int, bytes]) -> list[int]:
    """List the addresses at which two memories differ."""
    assert {at: len(content) for at, content in here.items()} == {
        at: len(content) for at, content in there.items()
    }
    return [
        at + page + i
        for at, content in here.items()
        for page in range(0, len(content), PAGE)
        if (one := content[page : page + PAGE]) != (other := there[at][page : page + PAGE])
        for i, (a, b) in enumerate(zip(one, other, strict=True))
        if a != b
    ]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the program knows x86-64's system calls")
@pytest.mark.parametrize(("mode", "via"), WAYS)
def test_memory_is_that_of_the_frozen_original(scene: Stage, mode: Mode, via: Via) -> None:
    """Byte for byte, with threads, robust mutexes and asynchronous I/O: the kernel writes there when a process ends."""
    app = start(scene, "kernel_writes", 30)
    areas = [int(word) for word in app.log.read_text().split()[1:]]
    assert len(areas) == 9
    memory: dict[str, dict[int, bytes]] = {}

    def look(step: str, when: str) -> None:
        if (step, when) == ("release", "before"):
            memory["original"] = writable_memory(app.pid)

    for to in ("C", "B", "C"):
        report = scene.migrator(fault=look).migrate(app, scene.hosts[to], wish=Wish(mode, via))
        assert report.outcome is Outcome.COMPLETED, report.reason
        wrong = [
            at
            for at in differences(memory["original"], writable_memory(app.pid))
            if not any(area <= at < area + RSEQ for area in areas)
        ]
        assert wrong == []


def last_round(log: Path) -> tuple[int, str]:
    """Return the number of a program's last complete round, and how it was."""
    number, word = log.read_text().rpartition("\n")[0].rpartition("\n")[2].split()
    return int(number), word


def see_it_right(app: App) -> None:
    """See that a program goes on for some rounds, with the memory that it has to have."""
    number, _ = last_round(app.log)
    wait_until(lambda: last_round(app.log)[0] > number + 2, "some more rounds")
    assert last_round(app.log)[1] == "ok"


@pytest.mark.parametrize("via", list(Via))
def test_children_that_nobody_reaped_move_along(scene: Stage, via: Via) -> None:
    """A zombie has no memory to be fetched, and does not keep that of its parent from being."""
    app = start(scene, "unreaped", 30, 3)
    for to in ("C", "B", "C"):
        report = scene.migrator().migrate(app, scene.hosts[to], wish=Wish(Mode.LAZY, via))
        assert report.outcome is Outcome.COMPLETED, report.reason
        assert [tree.state(child) for child in tree.children(app.pid)] == ["Z"] * 3
        see_it_right(app)


@pytest.mark.parametrize("threads", [1, 4])
def test_mappings_may_change_while_pages_come(tmp_path: Path, threads: int) -> None:
    """Protection, removal, moves and forks do not keep the rest from coming, and what comes is right.

    Nor is the program stopped for it, of which there would be a warning.
    """
    with managed(tmp_path, rate=400_000_000) as scene:
        app = start(scene, "remapping", 30, threads)
        wait_until(
            lambda: last_round(app.log)[0] > 5 if "ok" in app.log.read_text() else False, "some rounds"
        )
        for number in range(4):
            to = scene.hosts["CB"[number % 2]]
            report = scene.migrator().migrate(app, to, wish=Wish(Mode.LAZY, Via.NETWORK))
            assert report.outcome is Outcome.COMPLETED, report.reason
            assert STOPPED not in report.warnings
            see_it_right(app)


def test_busy_processes_get_their_pages(scene: Stage) -> None:
    """Those whose pages are all there take new ones while others still wait for theirs."""
    app = start(scene, "workers", 4, 12)
    kept = []

    def look(step: str, when: str) -> None:
        if (step, when) == ("pages", "before"):
            kept.append(len(userfaultfds(os.getpid())))

    for number in range(6):
        to = scene.hosts["CB"[number % 2]]
        report = scene.migrator(fault=look).migrate(app, to, wish=Wish(Mode.LAZY, Via.NETWORK))
        assert report.outcome is Outcome.COMPLETED, report.reason
        see_it_right(app)
    # A second descriptor would keep a userfaultfd in the daemon's epoll set when the daemon has closed its own.
    assert kept == [0] * 6


@pytest.mark.parametrize("via", list(Via))
def test_requests_of_all_threads_fit(scene: Stage, via: Via) -> None:
    """All threads may want a page at once, and the daemon's socket, which does not wait, has room for what they ask."""
    host = scene.hosts
    link = connect(host["B"], host["C"]) if via is Via.NETWORK else pair()
    try:
        enlarge(link.far)
        for _ in range(THREADS):
            assert link.far.send(bytes(REQUEST), socket.MSG_DONTWAIT) == REQUEST
    finally:
        link.close()


def test_copy_that_cannot_be_let_go_leads_back(scene: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original is the way back until the copy runs, also when its restore worker is killed after the commit."""
    app = start(scene, "unreaped", 30, 0)
    pid = app.pid
    commit = Carrier.commit

    def commit_and_kill(*arguments: Any) -> None:
        commit(*arguments)
        (worker,) = helpers(scene.runtime, "restore --rpc")
        os.kill(worker, signal.SIGKILL)
        assert scene.runtime.custody.wait_for_death(worker, 5)

    monkeypatch.setattr(Carrier, "commit", commit_and_kill)
    report = scene.migrator().migrate(app, scene.hosts["C"], wish=Wish(Mode.LAZY, Via.NETWORK))
    assert report.outcome is Outcome.ROLLED_BACK, report.reason
    assert "that was while the copy was let go" in str(report.reason)
    assert (app.host.name, app.pid) == ("B", pid)
    see_it_right(app)


@pytest.mark.parametrize(
    ("who", "what"), [("dump --rpc", "checkpoint it on B"), ("lazy-pages", "fetch the pages")]
)
def test_a_copy_does_not_wait_for_pages_that_nobody_sends(
    scene: Stage, monkeypatch: pytest.MonkeyPatch, who: str, what: str
) -> None:
    """Whoever has them, or fetches them, ends while the copy is built: that is over at once, not after a time-out."""
    app = start(scene, "unreaped", 30, 0)
    pid = app.pid
    restore_begun = Carrier.restore_begun

    def kill_and_begin(carrier: Carrier) -> None:
        (helper,) = helpers(scene.runtime, who)
        os.kill(helper, signal.SIGKILL)
        restore_begun(carrier)

    monkeypatch.setattr(Carrier, "restore_begun", kill_and_begin)
    report = scene.migrator().migrate(app, scene.hosts["C"], wish=Wish(Mode.LAZY, Via.NETWORK))
    assert report.outcome is Outcome.ROLLED_BACK
    assert f"CRIU could not {what}" in str(report.reason)
    assert report.criu.frozen_ms < 30_000
    assert (app.host.name, app.pid) == ("B", pid)
    see_it_right(app)
