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

from migration.journal import Journal, app_to_json, host_to_json, move_to_json, read
from migration.model import App, Host
from migration.recovery import Verdict, recover, understand
from migration.steering import Endpoint, IpProtocol, Move, MovedConnection, MovedListener, NullSteering

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
        "commit": {"pid": 33},
        "running": {"pid": 33},
        "end": {"outcome": "completed"},
    }
    for record in records:
        journal.write(record, **facts[record])
    journal.close()
    return path


def no_revival(app: App, host: Host, images: Path) -> int:
    """Fail the test: nothing was to be restored."""
    raise AssertionError(f"{app.name} was restored from {images}")


def test_journal_keeps_every_fact(tmp_path: Path) -> None:
    """What is written is read back, and a torn last line does not count."""
    path = write_journal(tmp_path, "begin", "move", "commit")
    with path.open("a") as file:
        file.write('{"record": "runn')
    found = understand(read(path))
    assert found is not None
    assert (found.app, found.destination.name, found.move) == (APP, "h3", MOVE)
    assert (found.copy_pid, found.is_committed) == (33, False)


@pytest.mark.parametrize(
    ("records", "running", "verdict", "calls"),
    [
        (["begin"], {22}, Verdict.UNDONE, []),
        (["begin", "move"], {22}, Verdict.UNDONE, ["switch_back", "release"]),
        (["begin", "move"], set(), Verdict.LOST, ["switch_back", "release"]),
        (
            ["begin", "move", "commit", "running"],
            {33},
            Verdict.FINISHED,
            ["switch_over", "release", "finish"],
        ),
        (["begin", "move", "commit", "running"], set(), Verdict.LOST, ["switch_back", "release"]),
    ],
)
def test_recovery_by_journal(
    tmp_path: Path, records: list[str], running: set[int], verdict: Verdict, calls: list[str]
) -> None:
    """Each point of no return has its rule."""
    path = write_journal(tmp_path, *records)
    steering = NullSteering()
    [done] = recover(path.parent, steering, lambda app: app.pid in running, no_revival)
    assert (done.verdict, steering.calls) == (verdict, calls)
    assert not path.exists()


def test_ended_migrations_are_left_alone(tmp_path: Path) -> None:
    """A journal with an end needs nothing."""
    path = write_journal(tmp_path, "begin", "move", "commit", "running", "end")
    assert recover(path.parent, NullSteering(), lambda app: False, no_revival) == []


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
