"""One image as a tar: an OCI archive (`podman load`), or Docker's own format (`docker load`, which knows no other
before 25).

Both hold the image's blobs as they are; Docker expands packed layers when it loads them. The same image gives the same
bytes.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from enum import Enum
from typing import BinaryIO

from ..oci import fields, manifest
from ..oci.descriptor import Descriptor
from ..oci.layout import Layout, Resolved
from ..oci.manifest import Index

CONTAINERD_NAME = "io.containerd.image.name"
"""Podman, too, takes the whole name from this annotation."""


class Format(Enum):
    """What is in the tar."""

    OCI = "oci"
    DOCKER = "docker"


def write(layout: Layout, reference: str, format: Format, target: BinaryIO) -> None:
    """Write one image; it is checked against its digests on the way."""
    found = layout.resolve(reference)
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        if format is Format.OCI:
            _write_oci(layout, reference, found, tar)
        else:
            _write_docker(layout, reference, found, tar)


def _write_oci(layout: Layout, reference: str, found: Resolved, tar: tarfile.TarFile) -> None:
    names = {manifest.REF_NAME: reference, CONTAINERD_NAME: reference}
    index = Index((replace(found.descriptor, annotations=names),))
    _add(tar, "oci-layout", fields.render({"imageLayoutVersion": "1.0.0"}))
    _add(tar, "index.json", manifest.render_index(index))
    blobs = {item.digest: item for item in (found.descriptor, found.manifest.config, *found.manifest.layers)}
    for blob in blobs.values():
        _add_blob(layout, blob, tar, f"blobs/sha256/{blob.digest.hex}")


def _write_docker(layout: Layout, reference: str, found: Resolved, tar: tarfile.TarFile) -> None:
    config = f"{found.manifest.config.digest.hex}.json"
    layers = [f"{item.digest.hex}/layer.tar" for item in found.manifest.layers]
    listed = fields.render([{"Config": config, "RepoTags": [reference], "Layers": layers}])
    _add(tar, "manifest.json", listed)
    _add_blob(layout, found.manifest.config, tar, config)
    for name, blob in dict(zip(layers, found.manifest.layers, strict=True)).items():
        _add_blob(layout, blob, tar, name)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _add_blob(layout: Layout, blob: Descriptor, tar: tarfile.TarFile, name: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = blob.size
    with layout.open_blob(blob) as source:
        tar.addfile(info, source)
