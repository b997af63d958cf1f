"""Small tars and images for tests, good ones and bad ones."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from containers.oci import config, descriptor, digests, manifest
from containers.oci.config import Image, ImageConfig
from containers.oci.descriptor import Descriptor
from containers.oci.layout import Layout
from containers.oci.manifest import Manifest

Member = tuple[tarfile.TarInfo, bytes]


def member(
    name: str, data: bytes | None = None, *, link: str = "", kind: bytes = b"", mode: int = 0
) -> Member:
    """Describe a member: a file if it has data, a symbolic link if it has one, else a directory."""
    info = tarfile.TarInfo(name)
    info.type = kind or (
        tarfile.REGTYPE if data is not None else tarfile.SYMTYPE if link else tarfile.DIRTYPE
    )
    info.mode = mode or (0o755 if info.type == tarfile.DIRTYPE else 0o644)
    info.linkname, info.size, info.mtime = link, len(data or b""), 1_700_000_000
    return info, data or b""


def device(name: str, major: int, minor: int) -> Member:
    """Describe a character device."""
    info, data = member(name, kind=tarfile.CHRTYPE)
    info.devmajor, info.devminor = major, minor
    return info, data


def hard(name: str, target: str) -> Member:
    """Describe a hard link."""
    return member(name, link=target, kind=tarfile.LNKTYPE)


def tar(members: Iterable[Member]) -> bytes:
    """Write a tar, whatever is in it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as written:
        for info, data in members:
            written.addfile(info, io.BytesIO(data))
    return target.getvalue()


def add_blob(layout: Layout, data: bytes, media_type: str) -> Descriptor:
    """Put a blob into a layout."""
    return layout.write(data, media_type)


def image(
    path: Path,
    *layers: Iterable[Member],
    reference: str = "localhost/test:latest",
    runs: ImageConfig | None = None,
) -> Layout:
    """Write a layout that holds one image of these layers."""
    layout = Layout.create(path)
    tars = [tar(layer) for layer in layers]
    blobs = [add_blob(layout, gzip.compress(data, mtime=0), descriptor.LAYER_GZIP) for data in tars]
    written = Image(runs or ImageConfig(cmd=("/bin/true",)), tuple(digests.of(data) for data in tars))
    described = add_blob(layout, config.render(written), descriptor.CONFIG)
    found = add_blob(layout, manifest.render(Manifest(described, tuple(blobs))), descriptor.MANIFEST)
    layout.tag(reference, found)
    return layout
