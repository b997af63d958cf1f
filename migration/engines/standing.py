"""An engine's copy is built stopped and let go by SIGCONT, of which its program is not to hear.

Who had been stopped in the original stays so. The others get SIGCONT; and the kernel tells their parents, by SIGCHLD,
that they were stopped and run on. A program that catches or blocks one of the two would notice, so there its threads
are traced while that happens: what is delivered to them is thrown away, and they are let go when nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import ptrace, tree
from ..images import split
from ..slowness import scaled
from .image import STOPPED

NOTE = "standing.json"
"""The file in a migration's folder that tells of the original."""
_TIMEOUT = scaled(1.0)  # seconds in which a thread comes to a stop
_PAUSE = 0.0002
_ALL = (1 << 64) - 1
_HEARD: tuple[int, ...] = (signal.SIGCHLD, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Standing:
    """How an original stood, by the processes' own numbers."""

    stopped: list[int] = field(default_factory=list)
    """Whom a signal had stopped."""
    pending: dict[int, list[int]] = field(default_factory=dict)
    """Who had SIGCHLD or SIGCONT still to come."""

    @classmethod
    def read(cls, pids: Iterable[int], images: Path, core: Any, pstree: Any) -> Standing:
        """Read it from processes that stand still, and from their image."""
        pending = {
            tree.inside(pid): found
            for pid in pids
            if (found := [number for number in _HEARD if tree.in_masks(pid, number, "ShdPnd")])
        }
        return cls(list(_stopped_in(images, core, pstree)), pending)

    def write(self, folder: Path) -> None:
        """Write it down for a way back from the image."""
        (folder / NOTE).write_text(json.dumps(asdict(self)))

    @classmethod
    def noted(cls, folder: Path) -> Standing:
        """Read what was written."""
        with contextlib.suppress(FileNotFoundError):
            found = json.loads((folder / NOTE).read_text())
            return cls(found["stopped"], {int(pid): numbers for pid, numbers in found["pending"].items()})
        return cls()

    def let_go(self, root: int) -> list[str]:
        """Let a tree that was restored stopped run; return what it may have heard of that, in sentences."""
        pids = [pid for pid in tree.processes(root) if tree.state(pid) == "T"]
        parents_first = [pid for pid in pids if tree.inside(pid) not in self.stopped]
        problem: list[str] = []
        if any(map(_hears, pids)):
            try:
                with _Traced(parents_first) as traced:
                    traced.wake(self.pending)
                return []
            except OSError as ex:
                problem = [
                    f"it may have been told by SIGCONT or SIGCHLD that it was stopped for its move ({ex})"
                ]
        for pid in parents_first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return problem


def _stopped_in(images: Path, core: Any, pstree: Any) -> Iterator[int]:
    for message in split((images / "pstree.img").read_bytes())[1]:
        pid = int(pstree.pstree_entry.FromString(message).pid)
        with contextlib.suppress(FileNotFoundError):
            (entry,) = split((images / f"core-{pid}.img").read_bytes())[1]
            if core.core_entry.FromString(entry).tc.task_state == STOPPED:
                yield pid


def _hears(pid: int) -> bool:
    """Say whether a process would hear of a stop: its own, or one of its children's."""
    numbers = _HEARD if tree.children(pid) else (signal.SIGCONT,)
    return any(tree.hears(one, number) for number in numbers for one in tree.threads(pid))


class _Traced:
    """All threads of some processes, traced by the thread that enters; they run on when it leaves."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._masks: dict[int, int] = {}

    def __enter__(self) -> _Traced:
        try:
            for thread in (thread for pid in self._pids for thread in tree.threads(pid)):
                ptrace.request(ptrace.SEIZE, thread)
                self._masks[thread] = -1
                _wait(thread)
                self._masks[thread] = ptrace.set_mask(thread, _ALL)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for thread, mask in self._masks.items():
            with contextlib.suppress(OSError):
                if mask >= 0:
                    ptrace.set_mask(thread, mask)
                ptrace.request(ptrace.DETACH, thread)

    def wake(self, pending: dict[int, list[int]]) -> None:
        """End the stop of all processes, children first, and throw away what they are told of it."""
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)
        for pid in reversed(self._pids):
            own = pending.get(tree.inside(pid), [])
            _throw_away(pid, signal.SIGCONT)  # it comes by here that the parent is told
            if signal.SIGCONT in own:
                os.kill(pid, signal.SIGCONT)
            if signal.SIGCHLD not in own and tree.in_masks(pid, signal.SIGCHLD, "ShdPnd"):
                _throw_away(pid, signal.SIGCHLD)


def _throw_away(thread: int, number: int) -> None:
    """Let a traced thread come to the delivery of a signal, which is not made; it executes no instruction."""
    ptrace.set_mask(thread, _ALL & ~(1 << (number - 1)))
    while True:
        ptrace.request(ptrace.CONT, thread)
        status = _wait(thread)
        if status >> 16 != ptrace.EVENT_STOP:
            break
    if os.WSTOPSIG(status) != number:
        raise OSError(f"thread {thread} has stopped with signal {os.WSTOPSIG(status)}, not {number}")
    ptrace.set_mask(thread, _ALL)


def _wait(thread: int) -> int:
    """Wait until a traced thread stands still; return how."""
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        pid, status = os.waitpid(thread, ptrace.WALL | os.WNOHANG)
        if pid:
            if not os.WIFSTOPPED(status):
                break
            return status
        time.sleep(_PAUSE)
    raise OSError(f"thread {thread} does not stop")
