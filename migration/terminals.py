"""The pseudoterminals of a program on their way: what CRIU does not carry of them, or carries wrongly.

Every program has a devpts of its own over /dev/pts (namespaces.new_terminals), so a copy's terminals get the numbers
that they had. CRIU makes them again, with sessions, process groups, window size, settings and packet mode. What is
between the ends it reads from them, without a way back if the program stays; and it writes it into the copy's through
the line discipline, where it would be echoed and translated again. So it is taken out here before CRIU looks, when
the program stands still, and put into the copy, or back (pseudoterminal.py).

What was taken is in a file before CRIU goes on, for a controller to come.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import termios
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import tree
from .errors import MigrationError
from .pseudoterminal import FOLDER, Terminal, ask, fill, take
from .repair import getfd
from .tree import OpenFile

TERMINALS_FILE = "terminals.json"
MULTIPLEXER = 5, 2
"""The device number of /dev/ptmx; what is opened there is a master."""
CONTROLLING = 5, 0
"""That of /dev/tty."""
SLAVES = range(136, 144)
# <asm-generic/ioctls.h>, <asm-generic/fcntl.h>
_TIOCGPTN, _TIOCGDEV = 0x80045430, 0x80045432
_F_SETSIG, _F_GETSIG, _F_SETOWN_EX, _F_GETOWN_EX = 10, 11, 15, 16
_OWNER = struct.Struct("=ii")  # struct f_owner_ex: kind, PID


@dataclass(frozen=True, slots=True)
class Flags:
    """What an open file of a terminal has, which CRIU changes in the original and does not give a copy's master."""

    pid: int
    """In its PID namespace."""
    fd: int
    flags: int
    owner: tuple[int, int]
    """Who gets signals (F_SETOWN_EX), as kind and PID in its namespace."""
    signal: int


@dataclass(slots=True)
class Terminals:
    """Those of one program."""

    terminals: list[Terminal] = field(default_factory=list)
    flags: list[Flags] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def take(self, root: int, pids: Sequence[int], folder: Path) -> None:
        """Take what is in the terminals of a program, whose processes stand still, and write it into a folder's file.

        Raises MigrationError; what was taken by then can be given back.
        """
        if not are_there(root):
            return
        files = [file for file in tree.open_files(pids) if is_terminal(file.target)]
        inside = {pid: tree.inside(pid) for pid in pids}
        opened = slaves_of(files)
        self.warnings += [
            f"descriptor {file.fd} of process {inside[file.pid]}, opened as {file.target}, has the name of its terminal"
            for file in files
            if file.target == "/dev/tty"
        ]
        self.flags = [one for file in files if (one := _flags_of(file, inside)) is not None]
        try:
            with _masters(files) as masters:
                for index, master in masters.items():
                    self.terminals.append(take(root, index, master, index in opened, self.warnings))
        except OSError as ex:
            raise MigrationError(f"a terminal cannot be read ({ex})") from ex
        finally:
            self._write(folder)

    def give(self, root: int, pids: Sequence[int]) -> None:
        """Put it into a copy, or back, while the processes stand still; raises MigrationError when all is done."""
        if not self.terminals and not self.flags:
            return
        files = [file for file in tree.open_files(pids) if is_terminal(file.target)]
        problems = []
        with _masters(files) as masters:
            for terminal in self.terminals:
                name = f"the terminal {FOLDER}/{terminal.index}"
                try:
                    if terminal.index in masters:
                        fill(root, terminal, masters[terminal.index])
                    else:
                        problems.append(f"{name} is not there any more")
                except OSError as ex:
                    problems.append(f"{name} cannot be filled again: {ex}")
        outside = {tree.inside(pid): pid for pid in pids}
        for one in self.flags:
            if one.pid in outside:
                with contextlib.suppress(OSError):
                    _give_flags(one, outside)
        if problems:
            raise MigrationError(problems[0])

    def give_back(self, root: int, folder: Path) -> None:
        """Put it back into an original that goes on; only once, and as far as it is possible."""
        with contextlib.suppress(MigrationError):
            self.give(root, tree.processes(root))
        self.terminals, self.flags = [], []
        (folder / TERMINALS_FILE).unlink(missing_ok=True)

    def _write(self, folder: Path) -> None:
        values = {
            "terminals": [terminal.to_json() for terminal in self.terminals],
            "flags": [[one.pid, one.fd, one.flags, one.owner, one.signal] for one in self.flags],
        }
        (folder / TERMINALS_FILE).write_text(json.dumps(values))


def read_back(folder: Path) -> Terminals:
    """Return what `take` has written into a folder, nothing if it has not."""
    try:
        values = json.loads((folder / TERMINALS_FILE).read_text())
    except (FileNotFoundError, ValueError):  # cut short by a crash: CRIU had not gone on
        return Terminals()
    return Terminals(
        [Terminal.from_json(one) for one in values["terminals"]],
        [Flags(pid, fd, flags, tuple(owner), signal) for pid, fd, flags, owner, signal in values["flags"]],
    )


def are_there(root: int) -> bool:
    """Return True if a program has terminals in a devpts of its own."""
    place = f"/proc/{root}/root{FOLDER}"
    try:
        return len(os.listdir(place)) > 1 and has_own(root)  # noqa: PTH208 (names only); one is ptmx
    except OSError:
        return False


def has_own(root: int) -> bool:
    """Return True if a program's terminals are not the machine's."""
    try:
        return Path(f"/proc/{root}/root{FOLDER}").stat().st_dev != Path(FOLDER).stat().st_dev
    except OSError:
        return False


def is_terminal(target: str) -> bool:
    """Return True if /proc says so of an open file."""
    return target.startswith((f"{FOLDER}/", "/dev/ptmx", "/dev/tty"))


def slaves_of(files: Iterable[OpenFile]) -> set[int]:
    """Return the numbers of the terminals whose slaves are among open files."""
    found = set()
    for file in files:
        with contextlib.suppress(OSError), _descriptor(file) as fd:
            status = os.fstat(fd)
            if os.major(status.st_rdev) in SLAVES:
                found.add(os.minor(status.st_rdev))
            elif _device(status) == CONTROLLING:
                found.add(os.minor(ask(fd, _TIOCGDEV)))
    return found


def masters_of(files: Iterable[OpenFile]) -> set[int]:
    """Return the numbers of the terminals whose masters are among open files."""
    with _masters(files) as masters:
        return set(masters)


def line_discipline(file: OpenFile) -> int:
    """Return the number of a terminal's line discipline (N_TTY is 0); raises OSError."""
    with _descriptor(file) as fd:
        return ask(fd, termios.TIOCGETD)


@contextlib.contextmanager
def _masters(files: Iterable[OpenFile]) -> Iterator[dict[int, int]]:
    """Duplicate one descriptor of each terminal's master, by its number."""
    found: dict[int, int] = {}
    try:
        for file in files:
            with contextlib.suppress(OSError):
                fd = getfd(file.pid, file.fd)
                try:
                    index = ask(fd, _TIOCGPTN) if _device(os.fstat(fd)) == MULTIPLEXER else -1
                    if index >= 0 and index not in found:
                        found[index], fd = fd, -1
                finally:
                    if fd >= 0:
                        os.close(fd)
        yield found
    finally:
        for fd in found.values():
            os.close(fd)


@contextlib.contextmanager
def _descriptor(file: OpenFile) -> Iterator[int]:
    fd = getfd(file.pid, file.fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _device(status: os.stat_result) -> tuple[int, int]:
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def _flags_of(file: OpenFile, inside: Mapping[int, int]) -> Flags | None:
    with contextlib.suppress(OSError), _descriptor(file) as fd:
        kind, owner = _OWNER.unpack(fcntl.fcntl(fd, _F_GETOWN_EX, bytes(_OWNER.size)))
        numbers = kind, inside.get(owner, 0)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        return Flags(inside[file.pid], file.fd, flags, numbers, fcntl.fcntl(fd, _F_GETSIG))
    return None


def _give_flags(one: Flags, outside: Mapping[int, int]) -> None:
    with _descriptor(OpenFile(outside[one.pid], one.fd, "")) as fd:
        if not Path(f"/proc/self/fd/{fd}").readlink().is_relative_to("/dev"):
            return  # another file by now
        kind, owner = one.owner
        if owner in outside:
            fcntl.fcntl(fd, _F_SETOWN_EX, _OWNER.pack(kind, outside[owner]))
        if one.signal:
            fcntl.fcntl(fd, _F_SETSIG, one.signal)
        fcntl.fcntl(fd, fcntl.F_SETFL, one.flags)
