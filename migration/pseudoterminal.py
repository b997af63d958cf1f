"""One pseudoterminal: what is between its ends is taken out, and put into another one, without being changed.

Done at a descriptor of the master, and at a slave that is opened through it (TIOCGPTPEER). While it is filled it has
settings with which its line discipline lets everything pass unchanged; lines stay lines (termios(3), canonical mode).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .slowness import scaled
from .termios2 import Settings

FOLDER = "/dev/pts"
FILL_TIMEOUT = scaled(2.0)  # in which the kernel has taken what was written
# <asm-generic/ioctls.h>
_TIOCSPTLCK, _TIOCGPTLCK, _TIOCGPTPEER = 0x40045431, 0x80045439, 0x5441
_TIOCGPKT, _TIOCGEXCL = 0x80045438, 0x80045440
_MOST_READ = 1 << 16
_PART = 64  # bytes of a write
_PAUSE = 0.0002  # seconds
# A line discipline buffers 4096 bytes; what was typed beyond it has not been looked at.
_BUFFERED = 4000
# Bytes that mean something to the line discipline while it is filled.
_END_OF_FILE, _NEXT_IS_LITERAL, _START, _STOP = 4, 22, 17, 19


@dataclass(frozen=True, slots=True)
class Terminal:
    """What has been taken from one, and what CRIU does not give to its copy."""

    index: int
    settings: Settings
    owner: tuple[int, int]
    times: tuple[int, int]
    """When it was read from and written to, in ns."""
    lines: tuple[bytes, ...] = ()
    """Lines that the slave's side has not read; one that ends without a newline was ended by end-of-file."""
    typed: bytes = b""
    """An unfinished line, or everything if there are no lines (ICANON)."""
    output: bytes = b""
    """What the master's side has not read."""
    stopped: str = ""
    """What has stopped the output: "tcflow", or "character" (IXON)."""
    exclusive: tuple[bool, bool] = (False, False)
    """Of master and slave (TIOCEXCL)."""
    has_slave: bool = True
    is_hung: bool = False
    """Every slave that there was has been closed, which the master's side sees as EIO."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "index": self.index,
            "settings": self.settings.pack().hex(),
            "owner": self.owner,
            "times": self.times,
            "lines": [line.hex() for line in self.lines],
            "typed": self.typed.hex(),
            "output": self.output.hex(),
            "stopped": self.stopped,
            "exclusive": self.exclusive,
            "has_slave": self.has_slave,
            "is_hung": self.is_hung,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Terminal:
        """Read what `to_json` has written."""
        found = dict(values)
        for name in ("typed", "output"):
            found[name] = bytes.fromhex(found[name])
        for name in ("owner", "times", "exclusive"):
            found[name] = tuple(found[name])
        found["settings"] = Settings.unpack(bytes.fromhex(found["settings"]))
        found["lines"] = tuple(map(bytes.fromhex, found["lines"]))
        return cls(**found)


def take(root: int, index: int, master: int, has_slave: bool, warnings: list[str]) -> Terminal:
    """Take what is in the terminal of a program, and see what it is like; raises OSError.

    `has_slave` says whether the program has its slave open.
    """
    status = Path(f"/proc/{root}/root{FOLDER}/{index}").stat()
    owner, times = (status.st_uid, status.st_gid), (status.st_atime_ns, status.st_mtime_ns)
    settings = Settings.read(master)  # the slave's, which a master is asked for
    is_hung = not has_slave and bool(_events(master, 0) & select.POLLHUP)
    output, states = _read_master(master, in_packets=bool(ask(master, _TIOCGPKT)))
    if not has_slave and not is_hung:
        # It has never been open. Opening and closing it would be seen.
        return Terminal(index, settings, owner, times, output=output, has_slave=False)
    with _slave(master) as slave:
        lines, typed = _read_slave(slave, settings)
        more, more_states = _read_master(master, in_packets=bool(ask(master, _TIOCGPKT)))  # echoes
        if states | more_states:
            warnings.append(
                f"{FOLDER}/{index} has lost a state of packet mode (TIOCPKT) that had not been read"
            )
        return Terminal(
            index,
            settings,
            owner,
            times,
            lines,
            typed,
            output + more,
            _what_stopped(slave),
            (bool(ask(master, _TIOCGEXCL)), bool(ask(slave, _TIOCGEXCL))),
            has_slave,
            is_hung,
        )


def _read_master(master: int, *, in_packets: bool) -> tuple[bytes, int]:
    """Read all output, and the states of packet mode (ioctl_tty(2), TIOCPKT)."""
    found, states = bytearray(), 0
    while _events(master, select.POLLIN) & select.POLLIN:
        data = os.read(master, _MOST_READ)
        if not data:
            break
        if in_packets:
            states |= data[0]
            data = data[1:]
        found += data
    return bytes(found), states


def _read_slave(slave: int, settings: Settings) -> tuple[tuple[bytes, ...], bytes]:
    """Read all lines of the input, and what comes after them."""
    lines: list[bytes] = []
    if settings.has_lines:
        with contextlib.suppress(BlockingIOError):
            while len(lines) < _MOST_READ:  # an end-of-file alone is an empty one
                lines.append(os.read(slave, _MOST_READ))
        settings.without_lines().write(slave)
    typed = bytearray()
    try:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(slave, _MOST_READ):
                typed += data
    finally:
        settings.write(slave)
    return tuple(lines), bytes(typed)


def _what_stopped(slave: int) -> str:
    """Return what has stopped the output, which is not to be seen but in that an empty terminal takes nothing."""
    if _events(slave, select.POLLOUT) & select.POLLOUT:
        return ""
    termios.tcflow(slave, termios.TCOON)  # it takes back a tcflow(3), and nothing else
    if not _events(slave, select.POLLOUT) & select.POLLOUT:
        return "character"
    termios.tcflow(slave, termios.TCOOFF)
    return "tcflow"


def fill(root: int, terminal: Terminal, master: int) -> None:
    """Put what was taken into a terminal, and let it be in the same state; raises OSError."""
    _fill(terminal, master)
    path = Path(f"/proc/{root}/root{FOLDER}/{terminal.index}")
    os.chown(path, *terminal.owner)
    os.utime(path, ns=terminal.times)


def _fill(terminal: Terminal, master: int) -> None:
    is_in_packets = bool(ask(master, _TIOCGPKT))
    if not terminal.has_slave and not terminal.is_hung:
        return
    _tell(master, termios.TIOCPKT, 0)  # what is done here is nobody's business
    try:
        with _slave(master) as slave:
            # An original's may still be stopped, by whatever.
            termios.tcflow(slave, termios.TCOOFF)
            termios.tcflow(slave, termios.TCOON)
            try:
                later = _fill_input(terminal, master, slave)
                _write(slave, terminal.output)
                if terminal.stopped == "character":
                    _stop(master, slave, terminal.settings)
            finally:
                terminal.settings.write(slave)
            _write(master, later)
            if terminal.stopped == "tcflow":
                termios.tcflow(slave, termios.TCOOFF)
            for fd, is_exclusive in zip((master, slave), terminal.exclusive, strict=True):
                if is_exclusive:
                    fcntl.ioctl(fd, termios.TIOCEXCL)
    finally:
        if is_in_packets:
            _tell(master, termios.TIOCPKT, 1)


def _fill_input(terminal: Terminal, master: int, slave: int) -> bytes:
    """Let the line discipline have the input as it was; return what there is too much of."""
    settings = terminal.settings
    if not settings.has_lines:
        settings.quiet().write(slave)
        _write(master, terminal.typed)
        expected = min(len(terminal.typed), _BUFFERED)
        _wait_until(lambda: ask(slave, termios.FIONREAD) >= expected)
        return b""
    chosen = settings.quiet(_END_OF_FILE, _NEXT_IS_LITERAL, _START, _STOP)
    chosen.write(slave)
    parts = [*((line, True) for line in terminal.lines), (terminal.typed, False)]
    size, later = 0, bytearray()
    for text, is_line in parts:
        size += len(text) + 1
        if size > _BUFFERED:
            later += text
        else:
            _write(master, _encoded(text, settings.line_ends, is_line=is_line))
    _stop(master, slave, settings)  # which it does when it has come to the end of all this
    termios.tcflow(slave, termios.TCOOFF)
    termios.tcflow(slave, termios.TCOON)
    return bytes(later)


def _encoded(text: bytes, ends: bytes, *, is_line: bool) -> bytes:
    """Return what has to be typed to get a text into the line discipline."""
    end = b""
    if is_line:
        end = text[-1:] if text[-1:] and text[-1:] in ends else bytes([_END_OF_FILE])
        text = text[: len(text) - (end != bytes([_END_OF_FILE]))]
    special = {*ends, _END_OF_FILE, _NEXT_IS_LITERAL, _START, _STOP}
    literal = bytes([_NEXT_IS_LITERAL])
    return b"".join(literal + bytes([byte]) if byte in special else bytes([byte]) for byte in text) + end


def _stop(master: int, slave: int, settings: Settings) -> None:
    """Stop the output by the stop character."""
    settings.quiet(_END_OF_FILE, _NEXT_IS_LITERAL, _START, _STOP).write(slave)
    _write(master, bytes([_STOP]))
    _wait_until(lambda: not _events(slave, select.POLLOUT) & select.POLLOUT)


def _write(fd: int, data: bytes) -> None:
    """Write it all; in small parts, of which most go in, and without asking whether there is room (poll(2)).

    The kernel counts room in buffers, and says that there is none before the last one is full.
    """
    end = time.monotonic() + FILL_TIMEOUT
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        while data:
            try:
                data = data[os.write(fd, data[:_PART]) :]
            except BlockingIOError as ex:
                if time.monotonic() > end:
                    raise OSError(errno.EAGAIN, f"it does not take {len(data)} bytes") from ex
                time.sleep(_PAUSE)
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + FILL_TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise OSError(errno.ETIMEDOUT, "its line discipline does not take what was written")
        time.sleep(_PAUSE)


def ask(fd: int, what: int) -> int:
    """Return the number that an ioctl(2) tells; raises OSError."""
    return int(struct.unpack("=i", fcntl.ioctl(fd, what, bytes(4)))[0])


def _tell(fd: int, what: int, value: int) -> None:
    fcntl.ioctl(fd, what, struct.pack("=i", value))


def _events(fd: int, wanted: int) -> int:
    poller = select.poll()
    poller.register(fd, wanted)
    return sum(events for _, events in poller.poll(0))


@contextlib.contextmanager
def _slave(master: int) -> Iterator[int]:
    """Open a master's slave; without a lock for the moment, which keeps even root out."""
    is_locked = ask(master, _TIOCGPTLCK)
    if is_locked:
        _tell(master, _TIOCSPTLCK, 0)
    try:
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        if is_locked:
            _tell(master, _TIOCSPTLCK, 1)
    try:
        yield slave
    finally:
        os.close(slave)
