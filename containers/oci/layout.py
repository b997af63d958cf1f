"""A folder that holds images: the OCI image layout (image-layout.md).

    oci-layout            {"imageLayoutVersion": "1.0.0"}
    index.json            names (annotation org.opencontainers.image.ref.name) and their manifests
    blobs/sha256/DIGEST   manifests, configs, layers

Whatever is read is checked against its digest and size first. Files are written under another name and renamed, so a
reader never sees half of one. A private layout (of checkpoints, which hold memory) is for its owner only.
"""

from __future__ import annotations

import os
import platform
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import ContainersError, ImageInvalid, ImageMissing
from . import config as configs
from . import descriptor as descriptors
from . import digests, fields, manifest
from .config import Image
from .descriptor import Descriptor, Platform
from .digests import Digest
from .manifest import Index, Manifest

_MARK = "oci-layout"
_INDEX = "index.json"
_VERSION = "1.0.0"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Resolved(NamedTuple):
    """An image, by its documents."""

    descriptor: Descriptor
    manifest: Manifest
    image: Image


class NewBlob(NamedTuple):
    """A blob that is being written."""

    file: BinaryIO
    path: Path


def here() -> Platform:
    """Return what images for this machine are marked with."""
    machine = platform.machine()
    return Platform("linux", _ARCHITECTURES.get(machine, machine))


class Layout:
    """An OCI image layout."""

    def __init__(self, path: Path, private: bool = False) -> None:
        self.path = path
        self._private = private

    @classmethod
    def create(cls, path: Path, private: bool = False) -> Layout:
        """Make a layout, or go on with the one that is there."""
        layout = cls(path, private)
        for folder in (path, path / "blobs", layout._blobs):
            folder.mkdir(mode=0o700 if private else 0o755, exist_ok=True, parents=True)
        if not (path / _MARK).exists():
            layout._replace(_INDEX, manifest.render_index(Index()))
            layout._replace(_MARK, fields.render({"imageLayoutVersion": _VERSION}))
        return layout

    @classmethod
    def open(cls, path: Path) -> Layout:
        """Take a layout that has to be there."""
        try:
            mark = fields.parse(_read(path / _MARK), f"{path / _MARK}")
        except OSError as ex:
            raise ImageMissing(f"{path} is no OCI image layout: it has no file {_MARK}") from ex
        if mark.get("imageLayoutVersion") != _VERSION:
            raise ImageInvalid(f"{path / _MARK} has no image layout version {_VERSION}")
        return cls(path, private=not path.stat().st_mode & 0o077)

    @property
    def _blobs(self) -> Path:
        return self.path / "blobs" / "sha256"

    # Names

    def index(self) -> Index:
        """Read the list of images."""
        what = f"{self.path / _INDEX}"
        try:
            return manifest.parse_index(_read(self.path / _INDEX), what)
        except OSError as ex:
            raise ImageInvalid(f"{what} cannot be read: {ex.strerror}") from ex

    def names(self) -> dict[str, Descriptor]:
        """Return the images that have names."""
        return {
            item.annotations[manifest.REF_NAME]: item
            for item in self.index().manifests
            if manifest.REF_NAME in item.annotations
        }

    def tag(self, reference: str, descriptor: Descriptor) -> None:
        """Give an image a name, taking it from the one that had it."""
        named = replace(descriptor, annotations={**descriptor.annotations, manifest.REF_NAME: reference})
        others = [
            item for item in self.index().manifests if item.annotations.get(manifest.REF_NAME) != reference
        ]
        self._replace(_INDEX, manifest.render_index(Index((*others, named))))

    def resolve(self, reference: str) -> Resolved:
        """Find an image by its name (without a tag: `:latest`) and read its documents."""
        names = self.names()
        found = names.get(reference) or names.get(f"{reference}:latest")
        if found is None:
            known = ", ".join(sorted(names)) or "none"
            raise ImageMissing(f"{self.path} has no image {reference!r} (it has: {known})")
        return self.load(found)

    def load(self, descriptor: Descriptor) -> Resolved:
        """Read an image's documents; of an index, those for this machine."""
        if descriptor.media_type in descriptors.INDEXES:
            descriptor = self._choose(
                manifest.parse_index(self.read(descriptor), f"index {descriptor.digest}")
            )
        what = f"manifest {descriptor.digest}"
        if descriptor.media_type not in descriptors.MANIFESTS:
            raise ImageInvalid(
                f"{what} has the media type {descriptor.media_type!r}, which is not a manifest's"
            )
        found = manifest.parse(self.read(descriptor), what)
        image = configs.parse(self.read(found.config), f"config {found.config.digest}")
        if len(image.diff_ids) != len(found.layers):
            raise ImageInvalid(f"{what} has {len(found.layers)} layers, its config {len(image.diff_ids)}")
        return Resolved(descriptor, found, image)

    def _choose(self, index: Index) -> Descriptor:
        wanted = here()
        for item in index.manifests:
            if item.platform == wanted and item.media_type in descriptors.MANIFESTS:
                return item
        raise ImageMissing(f"{self.path} has that image for other machines only, not {wanted.architecture}")

    # Blobs

    def blob(self, digest: Digest) -> Path:
        """Return where a blob is or would be."""
        return self._blobs / digest.hex

    def has(self, descriptor: Descriptor) -> bool:
        """Say whether a blob is there, by name and size."""
        try:
            return self.blob(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def read(self, descriptor: Descriptor) -> bytes:
        """Return a document."""
        if descriptor.size > fields.MAX_DOCUMENT:
            raise ImageInvalid(
                f"blob {descriptor.digest} is too large for a document: {descriptor.size} bytes"
            )
        with self.open_blob(descriptor) as source:
            return source.read()

    @contextmanager
    def open_blob(self, descriptor: Descriptor) -> Iterator[BinaryIO]:
        """Open a blob whose size and digest have been checked."""
        what = f"blob {descriptor.digest}"
        try:
            opened = os.open(
                self.blob(descriptor.digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            )
        except FileNotFoundError as ex:
            raise ImageInvalid(f"{self.path} lacks {what}") from ex
        except OSError as ex:
            raise ImageInvalid(f"{self.path}: {what} cannot be read: {ex.strerror}") from ex
        with os.fdopen(opened, "rb") as source:
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageInvalid(f"{self.path}: {what} is no regular file")
            if status.st_size != descriptor.size:
                raise ImageInvalid(
                    f"{self.path}: {what} has {status.st_size} bytes instead of {descriptor.size}"
                )
            if digests.of_file(source)[0] != descriptor.digest:
                raise ImageInvalid(f"{self.path}: {what} has another content than its name says")
            source.seek(0)
            yield source

    def write(self, data: bytes, media_type: str) -> Descriptor:
        """Add a document."""
        descriptor = Descriptor(media_type, digests.of(data), len(data))
        if not self.has(descriptor):
            with self.new_blob() as new:
                new.file.write(data)
                self.keep(new, descriptor.digest)
        return descriptor

    @contextmanager
    def new_blob(self) -> Iterator[NewBlob]:
        """Open a blob that has no digest yet; it is gone at the end unless it was kept."""
        opened, name = tempfile.mkstemp(prefix=".new-", dir=self._blobs)  # mode 0600
        try:
            with os.fdopen(opened, "w+b") as target:
                yield NewBlob(target, Path(name))
        finally:
            Path(name).unlink(missing_ok=True)

    def keep(self, new: NewBlob, digest: Digest) -> None:
        """Give a new blob its name."""
        new.file.flush()
        if not self._private:
            os.fchmod(new.file.fileno(), 0o644)
        new.path.replace(self.blob(digest))

    def prune(self) -> None:
        """Remove the blobs that no image has for this machine; none if an image cannot be read."""
        used: set[str] = set()
        for item in self.index().manifests:
            try:
                found = self.load(item)
            except ContainersError:
                return
            blobs = (item, found.descriptor, found.manifest.config, *found.manifest.layers)
            used |= {blob.digest.hex for blob in blobs}
        for path in self._blobs.iterdir():
            if path.name not in used:
                path.unlink()

    def _replace(self, name: str, data: bytes) -> None:
        opened, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=self.path)
        with os.fdopen(opened, "wb") as target:
            target.write(data)
            os.fchmod(target.fileno(), 0o600 if self._private else 0o644)
        Path(temporary).replace(self.path / name)


def _read(path: Path) -> bytes:
    """Return a small file, one byte more than allowed at most."""
    with path.open("rb") as source:
        return source.read(fields.MAX_DOCUMENT + 1)
