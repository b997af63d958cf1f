"""After a crash of the controller the journal says how to finish or undo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from moving import ECHO, PROJECT, stage, wait_until

from migration.journal import Journal, Note, app_to_json, host_to_json, move_to_json, read
from migration.model import App, Host
from migration.recovery import Verdict, recover, understand
from migration.steering import Endpoint, IpProtocol, Move, MovedConnection, MovedListener, NullSteering
from migration.transfer.home import LAZY_CONFIG

OLD, NEW = IPv4Address("10.0.2.2"), IPv4Address("10.0.3.3")
APP = App("echo", Host("h2", 2, OLD), 22, Path("/tmp/echo.log"))
HERE, THERE = Endpoint(IpProtocol.TCP, OLD, 7000), Endpoint(IpProtocol.TCP, NEW, 7000)
PEER = Endpoint(IpProtocol.TCP, IPv4Address("10.0.1.1"), 40000)
MOVE = Move("one", "h2", "h3", (MovedListener(HERE, THERE),), (MovedConnection(HERE, THERE, PEER),))


def write_journal(folder: Path, *records: str) -> Path:
    """Write a journal that ends after some records."""
    path = folder / "journals" / "one.jsonl"
    journal = Journal(path)
    facts: dict[str, dict[str, Any]] = {
        "begin": {
            "id": "one",
            "app": app_to_json(APP),
            "destination": host_to_json(Host("h3", 3, NEW)),
            "folder": str(folder / "one"),
        },
        "move": {"move": move_to_json(MOVE)},
        "copy": {"pids": [33]},
        "commit": {"pids": [33]},
        "revived": {"pids": [44]},
        "resumed": {},
        "running": {"pid": 33},
        "end": {"outcome": "completed"},
    }
    for record in records:
        journal.write(record, **facts[record])
    journal.close()
    return path


class Programs:
    """Who lives, by PID; `half_built` have not run yet. Says what was done to them."""

    def __init__(self, running: set[int], half_built: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.running, self.half_built = set(running), set(half_built)
        self.done: list[str] = []

    def end_leftovers(self) -> None:
        self.done.append("end leftovers")

    def is_running(self, app: App) -> bool:
        return app.pid in self.running

    def end_copy(self, pid: int, *, if_half_built: bool) -> None:
        if pid in self.running and (pid in self.half_built or not if_half_built):
            self.running.discard(pid)
            self.done.append(f"end {pid}")

    def wake(self, app: App) -> None:
        self.done.append(f"wake {app.pid}")

    def tidy(self, app: App, other: Host) -> None:
        assert other.name != app.host.name

    def revive(self, app: App, host: Host, images: Path, note: Note) -> int:
        assert (app.host, host) == (APP.host, APP.host)
        note(44)
        self.running.add(44)
        return 44


def test_journal_keeps_every_fact(tmp_path: Path) -> None:
    """What is written is read back, and a torn last line does not count."""
    path = write_journal(tmp_path, "begin", "move", "commit")
    with path.open("a") as file:
        file.write('{"record": "runn')
    found = understand(read(path))
    assert found is not None
    assert (found.app, found.destination.name, found.move) == (APP, "h3", MOVE)
    assert (found.copy_pids, found.is_committed) == ((33,), True)


FORWARD, BACK = ["switch_over", "release", "finish"], ["switch_back", "release"]
# What is restored at the source needs its ports there first.
AGAIN = ["disown", *BACK]
FROZEN = ["begin", "move", "copy"]


@pytest.mark.parametrize(
    ("records", "running", "half_built", "has_image", "verdict", "alive", "calls"),
    [
        (["begin"], {22}, set(), False, Verdict.UNDONE, {22}, []),
        (["begin", "move"], {22}, set(), False, Verdict.UNDONE, {22}, BACK),
        (["begin", "move"], set(), set(), False, Verdict.LOST, set(), AGAIN),
        (["begin", "move"], set(), set(), True, Verdict.REVIVED, {44}, AGAIN),
        (FROZEN, {22, 33}, {33}, True, Verdict.UNDONE, {22}, BACK),
        (FROZEN, {22, 33}, set(), True, Verdict.UNDONE, {22}, BACK),
        (FROZEN, {33}, set(), True, Verdict.REVIVED, {44}, AGAIN),
        ([*FROZEN, "commit"], {22, 33}, {33}, True, Verdict.UNDONE, {22}, BACK),
        ([*FROZEN, "commit"], {33}, {33}, True, Verdict.REVIVED, {44}, AGAIN),
        ([*FROZEN, "commit"], {33}, set(), True, Verdict.FINISHED, {33}, FORWARD),
        ([*FROZEN, "commit"], set(), set(), True, Verdict.REVIVED, {44}, AGAIN),
        ([*FROZEN, "commit", "revived"], {44}, set(), True, Verdict.UNDONE, {44}, BACK),
        ([*FROZEN, "commit", "resumed"], {33}, set(), True, Verdict.FINISHED, {33}, FORWARD),
        ([*FROZEN, "commit", "resumed"], set(), set(), True, Verdict.LOST, set(), BACK),
        ([*FROZEN, "commit", "running"], {33}, set(), True, Verdict.FINISHED, {33}, FORWARD),
        ([*FROZEN, "commit", "running"], set(), set(), True, Verdict.LOST, set(), BACK),
    ],
)
def test_recovery_by_journal_and_by_what_is_there(
    tmp_path: Path,
    records: list[str],
    running: set[int],
    half_built: set[int],
    has_image: bool,
    verdict: Verdict,
    alive: set[int],
    calls: list[str],
) -> None:
    """Whatever was there, at most one instance is there afterwards, and the network leads to it."""
    path = write_journal(tmp_path, *records)
    if has_image:
        (tmp_path / "one" / "images").mkdir(parents=True)
        (tmp_path / "one" / "images" / "inventory.img").touch()
    has_run = not {"resumed", "running"}.isdisjoint(records)
    see_it_recovered(path, Programs(running, half_built), verdict, alive, calls, has_run)


@pytest.mark.parametrize(
    ("records", "running", "half_built", "verdict", "alive", "calls"),
    [
        (FROZEN, {22, 33}, {33}, Verdict.UNDONE, {22}, BACK),
        ([*FROZEN, "commit"], {22, 33}, {33}, Verdict.UNDONE, {22}, BACK),
        ([*FROZEN, "commit"], {22, 33}, set(), Verdict.FINISHED, {33}, FORWARD),
        ([*FROZEN, "commit", "running"], {22, 33}, set(), Verdict.FINISHED, {33}, FORWARD),
        ([*FROZEN, "commit", "running"], {33}, set(), Verdict.FINISHED, {33}, FORWARD),
        ([*FROZEN, "commit", "running"], {22}, set(), Verdict.LOST, set(), BACK),
    ],
)
def test_recovery_of_a_post_copy(
    tmp_path: Path,
    records: list[str],
    running: set[int],
    half_built: set[int],
    verdict: Verdict,
    alive: set[int],
    calls: list[str],
) -> None:
    """Its original is there, frozen, until the last page: it goes on only if the copy has never run."""
    path = write_journal(tmp_path, *records)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / LAZY_CONFIG).touch()
    see_it_recovered(path, Programs(running, half_built), verdict, alive, calls, "running" in records)


def see_it_recovered(
    path: Path, programs: Programs, verdict: Verdict, alive: set[int], calls: list[str], has_run: bool
) -> None:
    """Recover from a journal, and look at what is left."""
    folder = path.parent.parent
    steering, settled = NullSteering(), []
    [done] = recover(path.parent, steering, programs, settled.append)
    assert (done.verdict, programs.running, steering.calls) == (verdict, alive, calls)
    assert settled == [done.app]
    assert done.app.host.name == ("h3" if verdict is Verdict.FINISHED or has_run else "h2")
    assert not path.exists()
    assert not (folder / "one").exists()


def test_a_way_back_counts_for_the_way_there(tmp_path: Path) -> None:
    """Two journals tell of one program: the later one decides."""
    path = write_journal(tmp_path, *FROZEN, "commit", "running")
    begin = {"id": "one-back", "app": app_to_json(APP), "destination": host_to_json(Host("h3", 3, NEW))}
    back = Journal(path.with_name("one-back.jsonl"))
    back.write("begin", **begin, folder=str(tmp_path / "back"))
    back.close()
    [done] = recover(path.parent, NullSteering(), Programs({22}))
    assert (done.identity, done.verdict) == ("one-back", Verdict.UNDONE)
    assert list(path.parent.iterdir()) == []


def test_ended_migrations_are_left_alone(tmp_path: Path) -> None:
    """A journal with an end needs nothing."""
    path = write_journal(tmp_path, "begin", "move", "commit", "running", "end")
    assert recover(path.parent, NullSteering(), Programs(set())) == []


CRASH = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from ipaddress import IPv4Address
from migration.migrator import Migrator
from migration.model import Host
from migration.process import ProcessRuntime
from migration.steering import NullSteering
import time
def crash(step, when):
    if (step, when) == ({step!r}, "before"):
        os.kill(os.getpid(), signal.SIGKILL)
hosts = [Host(n, p, IPv4Address(a)) for n, p, a in {hosts!r}]
runtime = ProcessRuntime()
log = Path({log!r})
app = runtime.launch("echo", hosts[0], ["/usr/bin/python3", {echo!r}, "server"], log)
while not log.exists() or "listening" not in log.read_text():
    time.sleep(0.01)
folders = dict(images=Path({images!r}), journals=Path({journals!r}))
Migrator(NullSteering(), runtime, **folders, fault=crash).migrate(app, hosts[1])
"""


@pytest.mark.net
def test_program_is_revived_from_the_image_of_a_crashed_controller(tmp_path: Path) -> None:
    """The controller is killed while the program is frozen: the next one restores it at its source."""
    with stage(tmp_path) as scene:
        images = Path("/dev/shm") / f"p4ferry-test-{os.getpid()}"
        hosts = [(h.name, h.pid, str(h.address)) for h in (scene.hosts["B"], scene.hosts["C"])]
        code = CRASH.format(
            path=[str(PROJECT)],
            step="restore",
            hosts=hosts,
            log=str(tmp_path / "echo.log"),
            echo=ECHO,
            images=str(images),
            journals=str(tmp_path / "journals"),
        )
        done = subprocess.run([sys.executable, "-c", code], timeout=30)
        assert done.returncode == -signal.SIGKILL
        [recovered] = scene.migrator().recover()
        assert recovered.verdict is Verdict.REVIVED, recovered.reason
        assert recovered.app.host.name == "B"
        wait_until(lambda: scene.runtime.is_running(recovered.app), "the program")
        assert any(s.local_port == 7000 for s in scene.runtime.sockets(recovered.app))
        moved = scene.migrator().migrate(recovered.app, scene.hosts["C"])
        assert json.dumps(moved.to_json())
        assert moved.outcome.value == "completed", moved.reason
