"""Is this tar safe to unpack? Answers before anything is unpacked, one sentence for each defect.

Python's tarfile reads the headers. It forgives what must not be forgiven here: it takes a damaged header for the end,
reads extended headers of any size into memory, and follows negative sizes. So it sees the file through `_Headers`,
which bounds every read, and the end of the archive is checked apart from it.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

from ..errors import ImageInvalid, Invalid

USUAL_DEVICES = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
    "tty": (5, 0), "console": (5, 1), "ptmx": (5, 2),
}  # fmt: skip
"""What every container has in /dev."""
MAX_NAME = 255
MAX_PATH = 4096
_MAX_HEADER = 1 << 20  # bytes of an extended header: long names and attributes
_BLOCK = 512
_MAX_ID, _MAX_TIME = 2**32 - 1, 2**34
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE)
_KNOWN = (*_FILES, *_DEVICES, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)


@dataclass(frozen=True)
class Rules:
    """What a tar may contain."""

    what: str
    """What the messages call it."""
    error: type[Invalid] = ImageInvalid
    members: int = 500_000
    size: int = 64 << 30
    """Bytes of all files together."""
    devices: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Paths at which a character device of these numbers is allowed."""
    fifos: bool = True
    sparse: bool = False


class Entry(NamedTuple):
    """A member; `parts` is its path below the root, without "." and empty parts."""

    parts: tuple[str, ...]
    info: tarfile.TarInfo

    @property
    def path(self) -> str:
        """Return the path, relative."""
        return "/".join(self.parts)

    @property
    def is_file(self) -> bool:
        """Say whether it has content of its own."""
        return self.info.type in _FILES

    @property
    def is_device(self) -> bool:
        """Say whether it is a device node."""
        return self.info.type in _DEVICES


def entries(source: BinaryIO, rules: Rules) -> Iterator[Entry]:
    """Yield the members of an uncompressed tar in their order; the first defect raises."""
    total = 0
    for count, info in enumerate(_read(source, rules), 1):
        total += max(0, info.size)
        if count > rules.members:
            raise rules.error(f"{rules.what} has more than {rules.members} members")
        entry = _check(info, rules)
        if total > rules.size:
            raise rules.error(f"{rules.what} holds more than {rules.size} bytes")
        yield entry


def split(path: str) -> tuple[str, ...]:
    """Take a relative path apart; the ValueError says what is wrong with it."""
    if "\0" in path:
        raise ValueError("has a zero byte in its name")
    if path.startswith("/"):
        raise ValueError("is an absolute path")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if ".." in parts:
        raise ValueError('has ".." in its path')
    try:
        longest = max((len(os.fsencode(part)) for part in parts), default=0)
    except UnicodeEncodeError as ex:
        raise ValueError("has a name that no file can have") from ex
    if longest > MAX_NAME or len(path) > MAX_PATH:
        raise ValueError("has too long a name")
    return parts


def shown(name: str) -> str:
    """Return a name for a message: printable, and not endless."""
    text = name if name.isprintable() and name.strip() == name and name else repr(name)
    return text if len(text) <= 120 else text[:117] + "..."


def _check(info: tarfile.TarInfo, rules: Rules) -> Entry:
    """Check one member by itself."""

    def bad(reason: str) -> Invalid:
        return rules.error(f"{rules.what}: {shown(info.name)} {reason}")

    try:
        entry = Entry(split(info.name), info)
    except ValueError as ex:
        raise bad(str(ex)) from ex
    if info.type not in _KNOWN and not (rules.sparse and info.type == tarfile.GNUTYPE_SPARSE):
        raise bad(f"is of the unknown type {info.type!r}")
    if info.issparse() and not rules.sparse:
        raise bad("is a sparse file, which is not supported")
    if info.size < 0:
        raise bad("has a negative size")
    if not (0 <= info.uid < _MAX_ID and 0 <= info.gid < _MAX_ID and abs(info.mtime) < _MAX_TIME):
        raise bad("has an owner or a time that no file can have")
    if not entry.parts and info.type != tarfile.DIRTYPE:
        raise bad("is the root, but no directory")
    if entry.is_device and not _is_usual(entry, rules):
        raise bad("is a device node")
    if info.type == tarfile.FIFOTYPE and not rules.fifos:
        raise bad("is a named pipe")
    if info.type == tarfile.SYMTYPE and not (
        0 < len(info.linkname) <= MAX_PATH and "\0" not in info.linkname
    ):
        raise bad("is a link to a name that no file can have")
    if info.type == tarfile.LNKTYPE:
        try:
            split(info.linkname)
        except ValueError as ex:
            raise bad(f"is a hard link to {shown(info.linkname)}, which {ex}") from ex
    return entry


def _is_usual(entry: Entry, rules: Rules) -> bool:
    numbers = (entry.info.devmajor, entry.info.devminor)
    return entry.info.type == tarfile.CHRTYPE and rules.devices.get(entry.path) == numbers


class _Headers:
    """A file as tarfile may see it: headers only, each of bounded size."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.seek, self.tell = source.seek, source.tell

    def read(self, size: int) -> bytes:
        """Read a header, an extended header, or the last byte of some content."""
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("it has an extended header that is too large")
        return self._source.read(size)


def _read(source: BinaryIO, rules: Rules) -> Iterator[tarfile.TarInfo]:
    """Yield headers, and make sure that the archive ended where it has its end mark."""
    source.seek(0)
    try:
        # mode "r:": uncompressed. Not a context manager: closing it would have nothing to do.
        tar = tarfile.TarFile(fileobj=cast(BinaryIO, _Headers(source)), mode="r", errorlevel=2)
        while (info := tar.next()) is not None:
            vars(tar)["members"].clear()  # it would keep them all
            yield info
    except RecursionError as ex:
        raise rules.error(f"{rules.what} is damaged: it has too many extended headers in a row") from ex
    except (tarfile.TarError, ValueError, ArithmeticError, LookupError, EOFError) as ex:
        raise rules.error(f"{rules.what} is damaged: {ex}") from ex
    _check_end(source, tar.offset, rules)


def _check_end(source: BinaryIO, offset: int, rules: Rules) -> None:
    """Two blocks of zeros end an archive; tarfile also stops at a header that it cannot read."""
    source.seek(offset)
    end = source.read(2 * _BLOCK)
    if len(end) < _BLOCK:
        raise rules.error(f"{rules.what} is cut off: it has no end mark")
    if any(end):
        raise rules.error(f"{rules.what} is damaged: no header at byte {offset}")
