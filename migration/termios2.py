"""The settings of a terminal (ioctl_tty(2), TCGETS2), with any speed, unlike those of Python's termios."""

from __future__ import annotations

import fcntl
import struct
import termios
from dataclasses import dataclass, replace

# struct termios2 of <asm-generic/termbits.h>: four words of flags, the line discipline, characters, two speeds
_FORM = struct.Struct("=4IB19s2I")
_TCGETS2, _TCSETS2 = 0x802C542A, 0x402C542B
_EXTPROC = 0o200000
_DISABLED = 0  # _POSIX_VDISABLE


@dataclass(frozen=True, slots=True)
class Settings:
    """Those of one terminal."""

    input: int
    output: int
    control: int
    local: int
    discipline: int
    characters: bytes
    speeds: tuple[int, int]

    @classmethod
    def unpack(cls, data: bytes) -> Settings:
        """Read them as the kernel writes them."""
        incoming, outgoing, control, local, discipline, characters, receiving, sending = _FORM.unpack(data)
        return cls(incoming, outgoing, control, local, discipline, characters, (receiving, sending))

    def pack(self) -> bytes:
        """Write them as the kernel reads them."""
        flags = self.input, self.output, self.control, self.local, self.discipline
        return _FORM.pack(*flags, self.characters, *self.speeds)

    @classmethod
    def read(cls, fd: int) -> Settings:
        """Ask an open terminal, or its master; raises OSError."""
        return cls.unpack(fcntl.ioctl(fd, _TCGETS2, bytes(_FORM.size)))

    def write(self, fd: int) -> None:
        """Give them to an open terminal at once; raises OSError."""
        fcntl.ioctl(fd, _TCSETS2, self.pack())

    @property
    def has_lines(self) -> bool:
        """Whether input comes in lines (ICANON)."""
        return bool(self.local & termios.ICANON) and not self.local & _EXTPROC

    @property
    def line_ends(self) -> bytes:
        """The bytes that end a line and belong to it."""
        chosen = (self.characters[termios.VEOL], self.characters[termios.VEOL2])
        return b"\n" + bytes(one for one in chosen if one != _DISABLED)

    def without_lines(self) -> Settings:
        """Return settings with which all input can be read."""
        changed = {termios.VMIN: 1, termios.VTIME: 0}
        return replace(self, local=self.local & ~termios.ICANON, characters=self._with(changed))

    def quiet(self, end_of_file: int = 0, literal: int = 0, start: int = 0, stop: int = 0) -> Settings:
        """Return settings that echo and translate nothing; with lines as before, and no meaning but what is given."""
        kept = {number: self.characters[number] for number in (termios.VEOL, termios.VEOL2)}
        given = {
            termios.VEOF: end_of_file,
            termios.VLNEXT: literal,
            termios.VSTART: start,
            termios.VSTOP: stop,
        }
        nothing = dict.fromkeys(range(len(self.characters)), _DISABLED)
        local = self.local & (termios.ICANON | _EXTPROC)
        if local & termios.ICANON:
            local |= termios.IEXTEN
        return replace(
            self,
            input=termios.IXON if stop else 0,
            output=0,
            local=local,
            characters=self._with({**nothing, **kept, **given, termios.VMIN: 1}),
        )

    def _with(self, changed: dict[int, int]) -> bytes:
        characters = bytearray(self.characters)
        for number, value in changed.items():
            characters[number] = value
        return bytes(characters)
