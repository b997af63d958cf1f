"""Which terminals of a program cannot go along: a pseudoterminal can if both ends are the program's (terminals.py)."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import terminals, tree
from .pseudoterminal import FOLDER
from .terminals import CONTROLLING, MULTIPLEXER, SLAVES
from .tree import DELETED, OpenFile

# CRIU opens masters until one has the number that it wants: 32 at most (criu/tty.c, pty_open_ptmx_index).
MOST = 32


class Pairs:
    """The pseudoterminals of a program, which are looked at when the first one is met."""

    def __init__(self, root: int, pids: Sequence[int], engine: str | None) -> None:
        self._root, self._pids, self._engine = root, pids, engine

    @functools.cached_property
    def _masters(self) -> set[int]:
        files = tree.open_files(self._pids)
        return terminals.masters_of(file for file in files if terminals.is_terminal(file.target))

    @functools.cached_property
    def _own(self) -> int | None:
        """The file system of its own terminals, None if it has none."""
        if not terminals.has_own(self._root):
            return None
        return Path(f"/proc/{self._root}/root{FOLDER}").stat().st_dev

    def why_not(self, file: OpenFile, status: os.stat_result) -> Iterator[str]:
        """Say why an open terminal cannot go along, if so, as a clause behind its name."""
        device = os.major(status.st_rdev), os.minor(status.st_rdev)
        is_slave = device[0] in SLAVES
        if self._engine is not None:  # nobody takes out what is in them, and puts it back
            yield f"terminals are not carried in containers of {self._engine}"
        elif not is_slave and device not in (CONTROLLING, MULTIPLEXER):
            yield "it is the machine's"
        elif self._own is None:
            yield f"the program shares {FOLDER} with the machine"
        elif is_slave and status.st_dev != self._own:
            yield "it comes from outside, where its other end would stay"
        else:
            yield from self._of_pair(file, is_master=device == MULTIPLEXER)

    def _of_pair(self, file: OpenFile, *, is_master: bool) -> Iterator[str]:
        try:
            found = terminals.masters_of([file]) if is_master else terminals.slaves_of([file])
        except OSError as ex:
            if ex.errno != errno.EBADF:
                raise
            raise FileNotFoundError(file.target) from ex  # closed meanwhile
        for index in found:
            if index not in self._masters:
                is_closed = file.target.endswith(DELETED)
                yield f"its other end {'has been closed' if is_closed else 'is open outside of the program'}"
            elif index >= MOST:
                yield f"CRIU makes terminals below number {MOST} again, and this is number {index}"
        with contextlib.suppress(OSError):
            if found and (number := terminals.line_discipline(file)) != 0:
                yield f"its line discipline is number {number}"
