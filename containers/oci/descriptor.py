"""A descriptor points to a blob: its media type, digest and size (OCI image specification, descriptor.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ImageInvalid
from . import digests, fields
from .digests import Digest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

INDEXES = (INDEX, DOCKER_INDEX)
MANIFESTS = (MANIFEST, DOCKER_MANIFEST)
LAYERS = (LAYER_TAR, LAYER_GZIP, LAYER_ZSTD, DOCKER_LAYER)

MAX_BLOB = 64 << 30
"""Bytes of a blob; a checkpoint's layer is as large as the program's memory."""


@dataclass(frozen=True)
class Platform:
    """What a manifest in an index is for."""

    os: str
    architecture: str


@dataclass(frozen=True)
class Descriptor:
    """A blob's media type, digest and size."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None


def parse(document: Mapping[str, Any], what: str) -> Descriptor:
    """Read a descriptor."""
    length = fields.size(document, "size", what)
    if length > MAX_BLOB:
        raise ImageInvalid(f"{what} has {length} bytes, more than {MAX_BLOB}")
    platform = None
    if document.get("platform") is not None:
        found = fields.section(document, "platform", what)
        platform = Platform(fields.text(found, "os", what), fields.text(found, "architecture", what))
    return Descriptor(
        fields.text(document, "mediaType", what),
        digests.parse(fields.text(document, "digest", what), what),
        length,
        fields.labels(document, "annotations", what),
        platform,
    )


def render(descriptor: Descriptor) -> dict[str, Any]:
    """Write a descriptor."""
    written: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        written["annotations"] = dict(descriptor.annotations)
    if descriptor.platform:
        written["platform"] = {
            "os": descriptor.platform.os,
            "architecture": descriptor.platform.architecture,
        }
    return written
