"""Write a layer's tar: the same files give the same bytes, whenever and wherever.

Entries are sorted by path, have one modification time for all, numeric owners only, and missing parent directories
are added. The gzip header holds neither a name nor a time. The digest of the uncompressed tar depends on nothing
else; the compressed one also on the zlib that Python was built with.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from . import descriptor as descriptors
from .descriptor import Descriptor
from .digests import Digest

_LEVEL = 9


@dataclass(frozen=True)
class Node:
    """One file of a layer; its path is relative to the root."""

    path: str
    mode: int = 0o644
    data: bytes | None = None
    """A regular file's content."""
    link: str | None = None
    """A symbolic link's target."""
    uid: int = 0
    gid: int = 0

    @property
    def is_directory(self) -> bool:
        """Say whether it is neither file nor link."""
        return self.data is None and self.link is None


def link(path: str, target: str, uid: int = 0, gid: int = 0) -> Node:
    """Return a symbolic link; its mode is always the same."""
    return Node(path, 0o777, link=target, uid=uid, gid=gid)


class Layer(NamedTuple):
    """What was written."""

    descriptor: Descriptor
    diff_id: Digest


def tree(nodes: Iterable[Node]) -> dict[str, Node]:
    """Return nodes by path, parents added, sorted as they are written; a later node replaces an earlier one."""
    found = {node.path: node for node in nodes}
    for path in list(found):
        for parent in PurePosixPath(path).parents:
            if (name := str(parent)) != ".":
                found.setdefault(name, Node(name, 0o755))
    return dict(sorted(found.items(), key=lambda item: item[0].split("/")))


def difference(lower: Mapping[str, Node], upper: Mapping[str, Node]) -> dict[str, Node]:
    """Return what a layer must hold so that `lower` with it on top shows `upper`; nothing may be missing there."""
    return {path: node for path, node in upper.items() if lower.get(path) != node}


def write(nodes: Iterable[Node], target: BinaryIO, epoch: int) -> Layer:
    """Write a layer, packed with gzip."""
    packed = _Hashing(target)
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=packed, mtime=0) as zipped:
        plain = _Hashing(cast(BinaryIO, zipped))
        with tarfile.open(mode="w|", fileobj=plain, format=tarfile.PAX_FORMAT) as tar:
            for node in tree(nodes).values():
                tar.addfile(_header(node, epoch), io.BytesIO(node.data or b""))
    return Layer(Descriptor(descriptors.LAYER_GZIP, packed.digest, packed.length), plain.digest)


def _header(node: Node, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(node.path)
    info.mode, info.mtime, info.uid, info.gid = node.mode & 0o7777, epoch, node.uid, node.gid
    if node.link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, node.link
    elif node.is_directory:
        info.type = tarfile.DIRTYPE
    else:
        info.size = len(node.data or b"")
    return info


class _Hashing(io.RawIOBase):
    """A file that is written through, and remembers the digest of what went by."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._hashed = hashlib.sha256()
        self.length = 0

    def writable(self) -> bool:
        """Say so."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Pass it on."""
        self._hashed.update(data)
        self.length += len(data)
        self._target.write(data)
        return len(data)

    @property
    def digest(self) -> Digest:
        """Return the digest of all that was written so far."""
        return Digest(self._hashed.hexdigest())
