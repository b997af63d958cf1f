"""A processor for CRIU alone while a program stands still, and the affinity that a program keeps when it moves.

A scheduler likes to wake a thread where its waker runs. So CRIU, the page server, and the threads here that hold,
steer and release packets take turns on one processor while another sleeps, although most of what they do could be done
side by side. From just before the freeze until the copy runs, CRIU's workers have the processor of the original, and
whatever else works for the migration keeps off it. One migration at a time is treated so. Where there are few
processors the next one waits for that, for a while: two programs that stand still at the same time would stand for as
long as both together. Elsewhere others run as they come.

No image holds an affinity: a copy has its restore worker's, and is given its original's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence

from . import tree

FEW = 3  # processors, of which the freeze of one program keeps two busy
PATIENCE = 0.5  # seconds
_claim = threading.Lock()
_assistants: set[int] = set()


@contextlib.contextmanager
def assisting() -> Iterator[None]:
    """Count the calling thread among those that work for migrations."""
    thread = threading.get_native_id()
    _assistants.add(thread)
    try:
        yield
    finally:
        _assistants.discard(thread)


class Apart:
    """The order of things around the freeze of one program; `end` takes it back, and `leave` lets others have it."""

    def __init__(self, original: Sequence[int]) -> None:
        """Note where the processes of the original may run."""
        self._processes = original
        self._is_claimed = False
        self._before: dict[int, set[int]] = {}
        self._affinities = dict(_affinities(original))
        self._usual = next(iter(self._affinities.values()), set())
        self._is_mixed = any(where != self._usual for where in self._affinities.values())
        if self._is_mixed:
            self._affinities = {tree.inside(thread): where for thread, where in self._affinities.items()}

    @property
    def is_tree(self) -> bool:
        """Say whether the original has several processes, which a restore builds side by side."""
        return len(self._processes) > 1

    def begin(self, workers: Iterable[int], helpers: Iterable[int]) -> None:
        """Give the original's processor to `workers`; keep off it `helpers` and the threads that work for migrations.

        These are the calling one, those that are `assisting`, and those that are none of Python's (grpc's): not the
        threads of the program that uses this package.
        """
        if not _claim.acquire(timeout=PATIENCE if len(os.sched_getaffinity(0)) <= FEW else 0):
            return
        self._is_claimed = True
        one, ours = tree.processor(self._processes[0]), os.sched_getaffinity(0)
        others = ours - {one}
        if one not in ours or not others:
            self.leave()
            return
        for pid in workers:
            _set(pid, {one})
        for pid in helpers:
            _set(pid, others)
        for thread, where in _affinities([os.getpid()]):
            if where - {one} and _works_for_migrations(thread):
                self._before[thread] = where
                _set(thread, where - {one})

    def give_back(self, copy: int, is_alone: bool) -> None:
        """Let the threads of a copy run where those of the original might; one that `is_alone` has no child."""
        for pid in [copy] if is_alone else tree.processes(copy):
            for thread in tree.threads(pid):
                inner = tree.inside(thread) if self._is_mixed else 0
                _set(thread, self._affinities.get(inner, self._usual))

    def end(self) -> None:
        """Let this process's threads run where they ran before; twice is once."""
        for thread, where in self._before.items():
            _set(thread, where)
        self._before.clear()

    def leave(self) -> None:
        """After `end`: let the next one begin, what is left to be done being done; twice is once."""
        self.end()
        if self._is_claimed:
            self._is_claimed = False
            _claim.release()


def _affinities(pids: Iterable[int]) -> Iterator[tuple[int, set[int]]]:
    for pid in pids:
        for thread in tree.threads(pid):
            with contextlib.suppress(OSError):  # it has ended
                yield thread, os.sched_getaffinity(thread)


def _works_for_migrations(thread: int) -> bool:
    if thread == threading.get_native_id() or thread in _assistants:
        return True
    return all(thread != python.native_id for python in threading.enumerate())


def _set(thread: int, where: set[int]) -> None:
    """Set a thread's affinity, unless it has ended, or its cpuset has none of these processors."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(thread, where)
