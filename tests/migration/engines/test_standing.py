"""A tree that was built stopped is let go, and nobody in it hears of that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migration import tree
from migration.engines.standing import Standing

PROGRAM = r"""
import json, os, signal, sys, threading, time
heard = []
for number in (signal.SIGCHLD, signal.SIGCONT):
    signal.signal(number, lambda number, frame: heard.append(number))
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if os.fork() == 0:  # one that blocks what it would hear, and has a child itself
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGCONT})
    if os.fork() == 0:
        time.sleep(1000)
stopped = os.fork()
if stopped == 0:
    time.sleep(1000)
time.sleep(0.2)
rounds = 0
while True:
    rounds += 1
    with open(sys.argv[1] + f".{os.getpid()}.new", "w") as file:
        json.dump([rounds, heard, sorted(signal.sigpending())], file)
    os.rename(file.name, sys.argv[1] + f".{os.getpid()}")
    time.sleep(0.01)
"""


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[list[int]]:
    """Start a tree of five processes, two of which tell what they have heard."""
    with subprocess.Popen(["/usr/bin/python3", "-c", PROGRAM, str(tmp_path / "told")]) as process:
        wait_until(lambda: len(list(tmp_path.glob("told.*[0-9]"))) == 2)
        found = tree.processes(process.pid)
        yield found
        for pid in reversed(found):
            os.kill(pid, signal.SIGKILL)


def told(folder: Path, pid: int) -> tuple[int, list[int], list[int]]:
    """Return what a process has told last: its rounds, the signals that have come, and those that are pending."""
    rounds, heard, pending = json.loads((folder / f"told.{pid}").read_text())
    return rounds, heard, pending


def stop(pids: list[int]) -> None:
    """Let all stand still, parents first, so that none runs when it is told of its children."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: tree.state(pid) == "T")  # type: ignore[misc]


def test_nobody_hears(tmp_path: Path, pids: list[int]) -> None:
    """Not who catches SIGCHLD and SIGCONT, nor who blocks them; who had been stopped before stays so."""
    first = pids[0]
    blocking = next(pid for pid in pids[1:] if tree.children(pid))
    stopped = next(pid for pid in pids[1:] if pid != blocking and tree.parent(pid) == first)
    for _ in range(5):
        stop(pids)
        rounds = [told(tmp_path, pid)[0] for pid in (first, blocking)]
        assert Standing([tree.inside(stopped)]).let_go(first) == []
        for pid, before in zip((first, blocking), rounds, strict=True):
            wait_until(lambda pid=pid, before=before: told(tmp_path, pid)[0] > before + 3)  # type: ignore[misc]
        assert told(tmp_path, first)[1:] == ([], [])
        assert told(tmp_path, blocking)[1:] == ([], [])
        assert [pid for pid in pids if tree.state(pid) == "T"] == [stopped]


def test_what_was_to_come_comes(tmp_path: Path, pids: list[int]) -> None:
    """A signal that was pending before is not thrown away."""
    first = pids[0]
    blocking = next(pid for pid in pids[1:] if tree.children(pid))
    os.kill(blocking, signal.SIGCHLD)
    wait_until(lambda: told(tmp_path, blocking)[2] == [signal.SIGCHLD])
    stop(pids)
    assert Standing([], {tree.inside(blocking): [signal.SIGCHLD]}).let_go(first) == []
    before = told(tmp_path, blocking)[0]
    wait_until(lambda: told(tmp_path, blocking)[0] > before + 3)
    assert told(tmp_path, blocking)[1:] == ([], [signal.SIGCHLD])
