"""Source text and positions.

Every file that a compilation reads is loaded once and laid end to end in one address space, so that a position is a
single integer and a token or node costs nothing to place. A position turns into file, line and column only when
somebody asks. Text that a macro inserted has the position of the macro's use.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class SourceFile:
    """A file's text and where its lines start; `base` is its place in the address space."""

    name: str
    text: str
    base: int
    path: Path | None = None
    _starts: list[int] = field(default_factory=list)

    @property
    def starts(self) -> list[int]:
        """Return the offsets at which lines start."""
        if not self._starts:
            offsets = [0]
            find = self.text.find
            at = find("\n")
            while at >= 0:
                offsets.append(at + 1)
                at = find("\n", at + 1)
            self._starts = offsets
        return self._starts

    def line_text(self, line: int) -> str:
        """Return the text of a line (counted from 1), without its end."""
        start = self.starts[line - 1]
        end = self.starts[line] - 1 if line < len(self.starts) else len(self.text)
        return self.text[start:end].rstrip("\r")


@dataclass(frozen=True, slots=True)
class Location:
    """A place that a person can find; line and column are counted from 1."""

    file: str
    line: int
    column: int


class Sources:
    """All files of one compilation."""

    def __init__(self) -> None:
        self._files: list[SourceFile] = []
        self._bases: list[int] = []
        self._end = 0

    def add(self, name: str, text: str, path: Path | None = None) -> SourceFile:
        """Take a file's text in; the same file may come in twice (two includes)."""
        source = SourceFile(name, text, self._end, path)
        self._files.append(source)
        self._bases.append(source.base)
        self._end += len(text) + 1
        return source

    def file_at(self, pos: int) -> SourceFile:
        """Return the file that a position is in."""
        return self._files[bisect_right(self._bases, pos) - 1]

    def locate(self, pos: int) -> Location:
        """Return file, line and column of a position."""
        source = self.file_at(pos)
        offset = pos - source.base
        line = bisect_right(source.starts, offset)
        return Location(source.name, line, offset - source.starts[line - 1] + 1)

    def line_text(self, pos: int) -> str:
        """Return the source line that a position is in."""
        return self.file_at(pos).line_text(self.locate(pos).line)

    def text(self, pos: int, end: int) -> str:
        """Return the source text between two positions of one file."""
        source = self.file_at(pos)
        return source.text[pos - source.base : end - source.base]

    def fragment(self, pos: int, end: int) -> str:
        """Return the text from `pos` to `end` as p4c abbreviates it: the first line only, ` ...` if there is more."""
        source = self.file_at(pos)
        place = self.locate(pos)
        line = source.line_text(place.line)
        if end > pos and self.file_at(end - 1) is source and self.locate(end - 1).line == place.line:
            return line[place.column - 1 : place.column - 1 + end - pos]
        return line[place.column - 1 :] + " ..."
