"""What a post-copy does for its program's first replies, and for the pages behind them: relay.py and lazypages.c."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PROJECT, PYTHON, Stage, wait_for_rounds
from transferring import managed, remember

from migration import preload
from migration.report import Outcome
from migration.transfer import pipelimit
from migration.transfer.lazy import STOPPED
from migration.transfer.modes import Mode, Via, Wish
from migration.transfer.relay import FINISHED, LAZY_SOCKET, WORD, listen, relay
from migration.transfer.stalls import Watch

DAEMON = Path(__file__).parent / "programs" / "faults.py"
PROGRAM = Path(__file__).parent / "programs" / "unstopped.py"
SIZE = 96  # MiB
MOVES = 4


def zombie(pid: int) -> bytes:
    """Return CRIU's word for a zombie: its negated PID."""
    return (-pid).to_bytes(WORD, sys.byteorder, signed=True)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with managed(tmp_path) as built:
        yield built


@pytest.mark.net
@pytest.mark.parametrize("via", [Via.SHARED, Via.NETWORK])
def test_no_program_is_stopped_for_its_pages(scene: Stage, via: Via) -> None:
    """Though it touches them in any order, and the rest is to come as well: nobody could notice that."""
    log = scene.folder / "unstopped.log"
    app = scene.runtime.launch("unstopped", scene.hosts["B"], [PYTHON, str(PROGRAM), str(SIZE)], log)
    wait_for_rounds(scene, app)
    for number in range(MOVES):
        report = scene.migrator().migrate(app, scene.hosts["CB"[number % 2]], wish=Wish(Mode.LAZY, via))
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert STOPPED not in report.warnings
        wait_for_rounds(scene, app)


@pytest.mark.net
def test_a_stop_for_the_last_pages_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the daemon gets no further there is no other way; the program could notice, and so the report says it."""
    monkeypatch.setattr(Watch, "is_stuck", True)
    with managed(tmp_path, rate=400_000_000) as scene:
        program = remember(scene)
        before = program.ask()
        report = program.migrate("C", Mode.LAZY, Via.NETWORK)
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert STOPPED in report.warnings
        assert program.ask() == before


def play(seconds: float, pause: float) -> list[list[int]]:
    """Let a daemon under our library serve a thread that faults once in `pause`: with a wait, and then without one.

    Returns for both how many faults it heard of, and how often one was there and it did not hear of it.
    """
    done = subprocess.run(
        [PYTHON, str(DAEMON), str(seconds), str(pause)],
        env={**os.environ, "LD_PRELOAD": str(preload.library())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "cannot" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout)
    return found


def test_many_faults_are_kept_back_now_and_then() -> None:
    """But not while the daemon waits for them, having nothing else to do; and they are all served in the end."""
    waiting, polling = play(1.5, 0)
    assert waiting[0] > 20 < polling[0]
    assert waiting[1] == 0 < polling[1]


def test_few_faults_are_not_kept_back() -> None:
    """Who faults now and then is served at once."""
    waiting, polling = play(1.5, 0.002)
    assert waiting[0] > 20 < polling[0]
    assert waiting[1] == 0
    assert polling[1] <= polling[0] // 50  # a busy machine may bring several at once


def test_the_relay_passes_everything_on_and_the_last_word_late(tmp_path: Path) -> None:
    """PIDs, descriptors, a zombie; and the end a moment later than it was said."""
    near, worker = socket.socketpair()
    daemon, far = socket.socketpair()
    delay = 0.2
    thread = threading.Thread(target=relay, args=(worker, daemon, delay))
    thread.start()
    with (tmp_path / "file").open("w") as file, near, worker, daemon, far:
        pid = (4711).to_bytes(WORD, "little")
        near.sendall(pid)
        socket.send_fds(near, [b"\0"], [file.fileno()])
        near.sendall(zombie(7))
        far.settimeout(5)
        assert far.recv(WORD, socket.MSG_WAITALL) == pid
        data, files, _, _ = socket.recv_fds(far, 1, 1)
        assert data == b"\0"
        assert os.path.samestat(os.fstat(files[0]), os.fstat(file.fileno()))
        os.close(files[0])
        assert far.recv(WORD, socket.MSG_WAITALL) == zombie(7)
        said = time.monotonic()
        near.sendall(FINISHED)
        assert far.recv(WORD, socket.MSG_WAITALL) == FINISHED
        assert time.monotonic() - said >= delay
        thread.join()


def test_a_worker_that_hangs_up_has_not_finished() -> None:
    """Then the daemon is to see the end of the connection, and no last word."""
    near, worker = socket.socketpair()
    daemon, far = socket.socketpair()
    with worker, daemon, far:
        near.close()
        assert not relay(worker, daemon, 0)


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    """The kernel's limit for the address of a UNIX socket does not concern the folder."""
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    with listen(str(folder)):
        assert (folder / LAZY_SOCKET).is_socket()


@pytest.mark.net
def test_a_killed_controllers_pipe_limit_is_put_back() -> None:
    """Whoever cleans up after it finds what the limit was."""
    before = pipelimit.LIMIT.read_text()
    code = (
        f"import sys, os; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from migration.transfer.pipelimit import large_pipes\n"
        "with large_pipes(): os.kill(os.getpid(), 9)"
    )
    subprocess.run(["/usr/bin/python3", "-c", code], timeout=30, check=False)
    if not pipelimit.is_unlimited():
        assert int(pipelimit.LIMIT.read_text()) >= pipelimit.NEEDED
    pipelimit.put_back()
    assert pipelimit.LIMIT.read_text() == before
    assert not pipelimit.NOTE.exists()
