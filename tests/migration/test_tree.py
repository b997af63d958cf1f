"""What counts as a running process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from moving import PYTHON, wait_until

from migration.tree import is_running

pytestmark = pytest.mark.net

PTRACE_SEIZE = 0x4206
WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
# Its first thread is slow to do anything, also to end.
THREADS = """
import os, threading, time
first, *_, last = 2 * sorted(os.sched_getaffinity(0))
def live():
    os.sched_setaffinity(0, {last})
    time.sleep(60)
for _ in range(3):
    threading.Thread(target=live, daemon=True).start()
os.sched_setaffinity(0, {first})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
time.sleep(60)
"""


def forget(thread: int) -> None:
    """Hear of a traced thread's end, now and then: a wait that sleeps has once missed it, and never returned."""
    deadline = time.monotonic() + 5
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(thread, WALL | os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.001)


def test_a_traced_init_that_was_killed() -> None:
    """It does not run any more, although the kernel keeps it until its tracer has heard of all of its threads."""
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", PYTHON, "-c", THREADS]) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        wait_until(lambda: children.read_text().strip(), "the child")
        pid = int(children.read_text())
        tasks = Path(f"/proc/{pid}/task")
        wait_until(lambda: len(list(tasks.iterdir())) == 4, "its threads")
        time.sleep(0.1)
        threads = sorted(int(task.name) for task in tasks.iterdir())

        def trace_and_kill() -> None:
            for thread in threads:
                assert _libc.ptrace(PTRACE_SEIZE, thread, None, None) == 0
            os.sched_setaffinity(
                0, {min(os.sched_getaffinity(0))}
            )  # of this thread: it is in the first one's way
            assert is_running(pid)
            os.kill(pid, signal.SIGKILL)
            end = time.monotonic() + 0.1
            while time.monotonic() < end:
                pass
            states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
            running.append(is_running(pid))
            for thread in reversed(threads):
                forget(thread)

        states: list[str] = []
        running: list[bool] = []
        tracer = threading.Thread(target=trace_and_kill)
        tracer.start()
        tracer.join(20)
        assert running == [False], states
