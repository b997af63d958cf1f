"""Processes that stand still for CRIU, and what becomes of them when CRIU is killed.

A dump worker that is killed lets what it traced run on at once, with its TCP sockets in repair mode, where sending
fails. So when an image is complete every process gets a SIGSTOP as well, which takes effect only if the tracer goes
without killing it: the program stays where it is until somebody has put its sockets right. The image does not know of
it, for it was complete before. A restore worker that is killed leaves processes that wait for it for ever in
CRIU's own code, before their first instruction.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

from . import tree
from .repair import silence, unrepair


def pin(pids: Iterable[int]) -> None:
    """Keep traced processes from running when their tracer dies."""
    _signal(pids, signal.SIGSTOP)


def unpin(root: int) -> None:
    """Take back `pin`: a pending stop is forgotten, a tree that stopped runs on."""
    _signal(tree.processes(root), signal.SIGCONT)


def wake(root: int) -> None:
    """Let a tree that nobody traces any more run on, its sockets as they were before CRIU came."""
    unrepair(tree.processes(root))
    unpin(root)


def is_half_built(root: int) -> bool:
    """Say whether a restored tree still waits for its restore worker: then it has not run one instruction."""
    return any(_is_in_restorer(pid) for pid in tree.processes(root))


def end_silently(pids: Iterable[int], kill: Callable[[int], None]) -> None:
    """Kill copies without a word to their peers, who go on with the original: a restore may have come so far that
    the kernel would close their connections in earnest."""
    for pid in pids:
        with contextlib.suppress(OSError):
            silence(tree.processes(pid))
        kill(pid)


def _is_in_restorer(pid: int) -> bool:
    """Return True if a thread is in a system call made from an executable mapping of no file: CRIU's restorer."""
    at = []
    maps = ""
    for thread in tree.threads(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()
            if len(fields) == 9:  # not "running", which waits for nobody
                at.append(int(fields[-1], 16))
                maps = maps or Path(f"/proc/{pid}/task/{thread}/maps").read_text()
    for line in maps.splitlines():
        words = line.split()
        begin, end = (int(address, 16) for address in words[0].split("-"))
        if "x" in words[1] and len(words) == 5 and any(begin <= address < end for address in at):
            return True
    return False


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
