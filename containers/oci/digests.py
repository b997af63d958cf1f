"""Digests: `sha256:` and 64 hexadecimal digits, the only kind that is used here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import BinaryIO

from ..errors import ImageInvalid

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}\Z")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Digest:
    """The name of a blob; `hex` is its file's name."""

    hex: str

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def parse(text: str, what: str) -> Digest:
    """Read a digest; nothing else can become part of a path."""
    if not _PATTERN.match(text):
        raise ImageInvalid(f"{what} has {text[:100]!r} where a sha256 digest has to be")
    return Digest(text.removeprefix("sha256:"))


def of(data: bytes) -> Digest:
    """Return the digest of some bytes."""
    return Digest(hashlib.sha256(data).hexdigest())


def of_file(source: BinaryIO) -> tuple[Digest, int]:
    """Return the digest and the length of the rest of a file."""
    hashed, length = hashlib.sha256(), 0
    for chunk in chunks(source):
        hashed.update(chunk)
        length += len(chunk)
    return Digest(hashed.hexdigest()), length


def chunks(source: BinaryIO) -> Generator[bytes, None, None]:
    """Yield the rest of a file in pieces."""
    while chunk := source.read(CHUNK):
        yield chunk
