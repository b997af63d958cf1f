"""What a post-copy does for its program's first replies, and for the pages behind them: the relay and the pacer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moving import PROJECT, wait_until

from migration import tree
from migration.transfer import pipelimit
from migration.transfer.pacing import Pacer
from migration.transfer.relay import FINISHED, LAZY_SOCKET, WORD, listen, relay

BUSY = "import mmap\nwhile True:\n m = mmap.mmap(-1, 1 << 20)\n for i in range(0, 1 << 20, 4096): m[i] = 1\n m.close()"


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program for as long as the block lasts."""
    process = subprocess.Popen(["/usr/bin/python3", "-c", code])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def zombie(pid: int) -> bytes:
    """Return CRIU's word for a zombie: its negated PID."""
    return (-pid).to_bytes(WORD, sys.byteorder, signed=True)


def states_during(pacer: Pacer, pid: int) -> list[str]:
    """Take one turn, and return the program's state in each wait of it."""
    seen: list[str] = []

    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        seen.append(tree.state(pid))
        return False

    assert not pacer.turn(wait)
    return seen


def test_a_program_that_faults_much_stands_still_in_between() -> None:
    """Not in the first moment; then it is stopped for a moment in each turn, and runs on after it."""
    with running(BUSY) as process:
        wait_until(lambda: tree.page_faults(process.pid) > 10_000, "page faults")
        assert len(states_during(Pacer(process.pid), process.pid)) == 1
        pacer = Pacer(process.pid, grace=0)
        for _ in range(3):
            assert states_during(pacer, process.pid)[1:] == ["T"]
        wait_until(lambda: tree.state(process.pid) == "R", "that it runs")


def test_others_are_left_alone() -> None:
    """Neither who touches nothing is stopped, nor who was stopped by somebody else continued."""
    with running("import time; time.sleep(60)") as process:
        wait_until(lambda: tree.state(process.pid) == "S", "that it sleeps")
        assert len(states_during(Pacer(process.pid, grace=0), process.pid)) == 1
    with running(BUSY) as process:
        wait_until(lambda: tree.page_faults(process.pid) > 10_000, "page faults")
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: tree.state(process.pid) == "T", "that it is stopped")
        assert set(states_during(Pacer(process.pid, grace=0), process.pid)) == {"T"}
        assert tree.state(process.pid) == "T"


def test_an_end_is_noticed_in_either_half() -> None:
    """When the last page is there in a pause, the program runs at once."""
    with running(BUSY) as process:
        wait_until(lambda: tree.page_faults(process.pid) > 10_000, "page faults")
        pacer = Pacer(process.pid, grace=0)
        assert pacer.turn(lambda seconds: True)

        def ends_in_the_pause(seconds: float) -> bool:
            time.sleep(seconds)
            return tree.state(process.pid) == "T"

        assert pacer.turn(ends_in_the_pause)
        wait_until(lambda: tree.state(process.pid) == "R", "that it runs")


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
