"""Expand gzip, zstd or nothing, told apart by the first bytes, with a bound on what comes out.

gzip is done here. zstd needs the command `zstd`, since Python has no such module before 3.14.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zlib
from collections.abc import Generator
from contextlib import closing
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from ..errors import ContainersError, ImageInvalid, Invalid
from . import digests
from .digests import CHUNK, Digest

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
Pieces = Generator[bytes, None, None]
_ZSTD_MEMORY = "--memory=256MB"


class Compression(Enum):
    """How a file is packed."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"


def detect(source: BinaryIO) -> Compression:
    """Look at the first bytes of a file, and go back to its beginning."""
    source.seek(0)
    first = source.read(4)
    source.seek(0)
    if first.startswith(_GZIP):
        return Compression.GZIP
    return Compression.ZSTD if first == _ZSTD else Compression.NONE


def expand(
    source: BinaryIO, target: BinaryIO, most: int, what: str, error: type[Invalid] = ImageInvalid
) -> Digest:
    """Write a file's uncompressed content, and return its digest."""
    kind = detect(source)
    if kind is Compression.GZIP:
        pieces = _gunzip(source, what, error)
    elif kind is Compression.ZSTD:
        pieces = _unzstd(source, what, error)
    else:
        pieces = digests.chunks(source)
    hashed, length = hashlib.sha256(), 0
    with closing(pieces):
        for piece in pieces:
            length += len(piece)
            if length > most:
                raise error(f"{what} expands to more than {most} bytes")
            hashed.update(piece)
            target.write(piece)
    target.flush()
    return Digest(hashed.hexdigest())


def _gunzip(source: BinaryIO, what: str, error: type[Invalid]) -> Pieces:
    """Yield what a gzip file holds, member by member, in pieces of bounded size."""
    member = zlib.decompressobj(wbits=31)
    pending = b""
    try:
        while True:
            if member.eof:
                pending = member.unused_data.lstrip(b"\0") or _skip_zeros(source)
                if not pending:
                    return
                member = zlib.decompressobj(wbits=31)
            elif not (pending := member.unconsumed_tail or source.read(CHUNK)):
                raise error(f"{what} is cut off: its gzip stream has no end")
            yield member.decompress(pending, CHUNK)
    except zlib.error as ex:
        raise error(f"{what} is damaged: its gzip stream cannot be read ({ex})") from ex


def _skip_zeros(source: BinaryIO) -> bytes:
    """Return what follows the padding of a gzip member, if anything does."""
    while chunk := source.read(CHUNK):
        if rest := chunk.lstrip(b"\0"):
            return rest
    return b""


def _unzstd(source: BinaryIO, what: str, error: type[Invalid]) -> Pieces:
    """Yield what the command zstd makes of a file."""
    command = shutil.which("zstd")
    if command is None:
        raise ContainersError(
            f"{what} is packed with zstd, which is not installed (type: apt-get install zstd)"
        )
    # Opened again: the command must not move the position of a file that is read through a buffer here.
    with (
        Path(f"/proc/self/fd/{source.fileno()}").open("rb") as again,
        subprocess.Popen(
            [command, "-d", "-q", "-c", _ZSTD_MEMORY],
            stdin=again,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            while piece := child.stdout.read(CHUNK):
                yield piece
        except GeneratorExit:
            child.kill()
            raise
    if child.returncode != 0:
        raise error(f"{what} is damaged: its zstd stream cannot be read")
