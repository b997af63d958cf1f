"""Is this a checkpoint archive, and safe to unpack? Everything is checked before anything is unpacked.

An archive is a tar (packed with gzip or zstd, or not) as `podman container checkpoint --export` writes it; kubelet's
is the same. Whoever restores it unpacks it as root, and in it tars into the container's root. So, in the archive and
in each tar in it: no absolute path, no "..", no device node (but the usual ones of a container's /dev), nothing below
a link, nothing twice. In the archive itself links stay inside; in the inner tars they are the container's own
business, as nothing is written through them.

What the container may do (mounts, privileges) is written in the archive, too, and not judged here: restore only what
comes from somebody whom you would let start a container.
"""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import ArchiveInvalid
from ..oci import compression, tarcheck
from ..oci.compression import Compression
from ..oci.digests import Digest
from ..oci.tarcheck import Entry, Rules, shown
from . import names

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}\Z")
_DOCUMENTS = (names.CONFIG, names.SPEC, names.NETWORK, names.DELETED)


@dataclass(frozen=True)
class Limits:
    """How large an archive may be."""

    size: int = 64 << 30
    """Bytes, expanded."""
    members: int = 200_000
    document: int = 16 << 20
    """Bytes of a JSON document."""


@dataclass(frozen=True)
class Checkpoint:
    """A valid archive."""

    name: str
    """The container's."""
    image: str | None
    """The name of the image that the container was made of."""
    compression: Compression
    diff_id: Digest
    """Of the expanded tar."""
    size: int
    """Bytes of all its files."""


def validate(source: BinaryIO, what: str, spool: Path, limits: Limits | None = None) -> Checkpoint:
    """Check an archive that is open for reading; `spool` is a folder with room for it, expanded."""
    limits = limits or Limits()
    kind = compression.detect(source)
    with tempfile.TemporaryFile(dir=spool) as plain:
        diff_id = compression.expand(source, plain, limits.size, what, ArchiveInvalid)
        contents = _Contents(plain, what, spool, limits)
    source.seek(0)
    return Checkpoint(contents.name, contents.image, kind, diff_id, contents.size)


class _Contents:
    """What an expanded archive holds, checked while it is read."""

    def __init__(self, source: BinaryIO, what: str, spool: Path, limits: Limits) -> None:
        self._source, self._what, self._limits = source, what, limits
        self._documents: dict[str, Any] = {}
        rules = Rules(what, ArchiveInvalid, limits.members, limits.size, fifos=False)
        members = _distinct(source, rules)
        self.size = sum(entry.info.size for entry in members.values())
        for entry in members.values():
            _check_link(entry, members, rules)
        for required in (names.CONFIG, names.SPEC, names.INVENTORY):
            if required not in members or not members[required].is_file:
                raise ArchiveInvalid(f"{what}: {required}: no such file")
        for entry in members.values():
            if entry.path in _DOCUMENTS:
                self._documents[entry.path] = self._document(entry)
            elif entry.path.endswith(".tar") and entry.is_file:
                self._inner(entry)
            elif names.TMPFS.match(entry.path) and entry.is_file:
                self._tmpfs(entry, spool)
        self._check_deleted()
        config = self._object(names.CONFIG)
        self._object(names.SPEC)
        self.name = self._name(config)
        image = config.get("rootfsImageName")
        self.image = image if isinstance(image, str) and image else None

    def _document(self, entry: Entry) -> Any:
        if not entry.is_file:
            raise ArchiveInvalid(f"{self._what}: {entry.path} is no regular file")
        if entry.info.size > self._limits.document:
            raise ArchiveInvalid(
                f"{self._what}: {entry.path} has {entry.info.size} bytes, more than {self._limits.document}"
            )
        self._source.seek(entry.info.offset_data)
        try:
            return json.loads(self._source.read(entry.info.size))
        except (ValueError, RecursionError) as ex:
            raise ArchiveInvalid(f"{self._what}: {entry.path} is not JSON") from ex

    def _object(self, name: str) -> Mapping[str, Any]:
        found = self._documents[name]
        if not isinstance(found, dict):
            raise ArchiveInvalid(f"{self._what}: {name} is not a JSON object")
        return found

    def _name(self, config: Mapping[str, Any]) -> str:
        name = config.get("name")
        if not isinstance(name, str) or not _NAME.match(name):
            raise ArchiveInvalid(f"{self._what}: {names.CONFIG} has no usable container name")
        return name

    def _check_deleted(self) -> None:
        """The paths in it are deleted below the container's root, by root."""
        found = self._documents.get(names.DELETED)
        if found is None:  # absent, or Go's null for an empty list
            return
        if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
            raise ArchiveInvalid(f"{self._what}: {names.DELETED} is not a list of paths")
        for path in found:
            try:
                parts = tarcheck.split(path.lstrip("/"))
            except ValueError as ex:
                raise ArchiveInvalid(f"{self._what}: {names.DELETED}: {shown(path)} {ex}") from ex
            if not parts:
                raise ArchiveInvalid(f"{self._what}: {names.DELETED}: {shown(path)} is the root itself")

    def _inner(self, entry: Entry) -> None:
        """Check a tar in the archive."""
        rules = Rules(self._inside(entry), ArchiveInvalid, self._limits.members, self._limits.size)
        _check_inner(cast(BinaryIO, self._window(entry)), rules)

    def _tmpfs(self, entry: Entry, spool: Path) -> None:
        """Check a packed tar of CRIU's; its tar writes sparse files as such."""
        what, window = self._inside(entry), cast(BinaryIO, self._window(entry))
        rules = Rules(
            what,
            ArchiveInvalid,
            self._limits.members,
            self._limits.size,
            devices=tarcheck.USUAL_DEVICES,
            sparse=True,
        )
        if compression.detect(window) is not Compression.GZIP:
            raise ArchiveInvalid(f"{what} is not packed with gzip")
        with tempfile.TemporaryFile(dir=spool) as plain:
            compression.expand(window, plain, self._limits.size, what, ArchiveInvalid)
            _check_inner(plain, rules)

    def _inside(self, entry: Entry) -> str:
        return f"{self._what}: {shown(entry.path)}"

    def _window(self, entry: Entry) -> _Window:
        return _Window(self._source, entry.info.offset_data, entry.info.size)


def _check_inner(source: BinaryIO, rules: Rules) -> None:
    """Check a tar whose symbolic links are the container's own business."""
    members = _distinct(source, rules)
    for item in members.values():
        if item.info.type == tarfile.LNKTYPE:
            _check_link(item, members, rules)


def _distinct(source: BinaryIO, rules: Rules) -> dict[str, Entry]:
    """Return the members by path: none twice, none below another that is no folder."""
    members: dict[str, Entry] = {}
    for entry in tarcheck.entries(source, rules):
        if entry.path in members:
            raise ArchiveInvalid(f"{rules.what}: {shown(entry.path)} is there twice")
        members[entry.path] = entry
    for entry in members.values():
        for length in range(1, len(entry.parts)):
            above = members.get("/".join(entry.parts[:length]))
            if above is not None and above.info.type != tarfile.DIRTYPE:
                raise ArchiveInvalid(
                    f"{rules.what}: {shown(entry.path)} lies below {shown(above.path)}, which is no folder"
                )
    return members


def _check_link(entry: Entry, members: Mapping[str, Entry], rules: Rules) -> None:
    """A link leads to something inside, whatever other links do: its ".." come first, where folders are real."""
    target = entry.info.linkname
    if entry.info.type == tarfile.LNKTYPE:
        other = members.get("/".join(tarcheck.split(target)))
        if other is None or not other.is_file:
            raise ArchiveInvalid(
                f"{rules.what}: {shown(entry.path)} is a hard link to {shown(target)}, which is no file in it"
            )
    elif entry.info.type == tarfile.SYMTYPE:
        parts = [part for part in target.split("/") if part not in ("", ".")]
        up = 0
        while up < len(parts) and parts[up] == "..":
            up += 1
        if target.startswith("/") or up >= len(entry.parts) or ".." in parts[up:]:
            raise ArchiveInvalid(
                f"{rules.what}: {shown(entry.path)} is a link to {shown(target)}, which leads outside"
            )


class _Window:
    """A part of a file, as a file."""

    def __init__(self, source: BinaryIO, start: int, size: int) -> None:
        self._source, self._start, self._size = source, start, size
        self._at = 0

    def seek(self, offset: int) -> int:
        """Go somewhere; beyond the end there is nothing to read."""
        self._at = offset
        return offset

    def tell(self) -> int:
        """Say where it is."""
        return self._at

    def read(self, size: int) -> bytes:
        """Read on, to the window's end at most."""
        self._source.seek(self._start + self._at)
        found = self._source.read(max(0, min(size, self._size - self._at)))
        self._at += len(found)
        return found


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open an archive."""
    try:
        source = path.open("rb")
    except OSError as ex:
        raise ArchiveInvalid(f"{path}: {(ex.strerror or 'cannot be read').lower()}") from ex
    with source:
        if not path.is_file():
            raise ArchiveInvalid(f"{path}: is no regular file")
        yield source
