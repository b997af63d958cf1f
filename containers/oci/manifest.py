"""The two documents that list blobs: a manifest (one image's) and an index (of images).

OCI image specification, manifest.md and image-index.md; Docker's own media types for the same are read, never written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import ImageInvalid
from . import descriptor as descriptors
from . import fields
from .descriptor import Descriptor

REF_NAME = "org.opencontainers.image.ref.name"
MAX_LAYERS = 128
MAX_IMAGES = 1000


@dataclass(frozen=True)
class Manifest:
    """One image: its configuration, and its layers from the lowest to the highest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Index:
    """A list of images, or of the same image for several platforms."""

    manifests: tuple[Descriptor, ...] = ()


def parse(data: bytes, what: str = "the manifest") -> Manifest:
    """Read a manifest."""
    document = fields.parse(data, what)
    _check_version(document, what)
    media_type = fields.text(document, "mediaType", what, default=descriptors.MANIFEST)
    if media_type not in descriptors.MANIFESTS:
        raise ImageInvalid(f"{what} has the media type {media_type!r}, which is not a manifest's")
    config = descriptors.parse(fields.section(document, "config", what), f"the config of {what}")
    found = fields.objects(document, "layers", what, MAX_LAYERS)
    layers = tuple(
        descriptors.parse(layer, f"layer {number} of {what}") for number, layer in enumerate(found, 1)
    )
    for number, layer in enumerate(layers, 1):
        if layer.media_type not in descriptors.LAYERS:
            raise ImageInvalid(
                f"layer {number} of {what} has the media type {layer.media_type!r}, which is not a layer's"
            )
    return Manifest(config, layers, fields.labels(document, "annotations", what))


def render(manifest: Manifest) -> bytes:
    """Write a manifest."""
    written = {
        "schemaVersion": 2,
        "mediaType": descriptors.MANIFEST,
        "config": descriptors.render(manifest.config),
        "layers": [descriptors.render(layer) for layer in manifest.layers],
    }
    if manifest.annotations:
        written["annotations"] = dict(manifest.annotations)
    return fields.render(written)


def parse_index(data: bytes, what: str = "index.json") -> Index:
    """Read an index."""
    document = fields.parse(data, what)
    _check_version(document, what)
    found = fields.objects(document, "manifests", what, MAX_IMAGES)
    return Index(
        tuple(descriptors.parse(item, f"entry {number} of {what}") for number, item in enumerate(found, 1))
    )


def render_index(index: Index) -> bytes:
    """Write an index, its images in the order of their names."""
    ordered = sorted(index.manifests, key=lambda item: (item.annotations.get(REF_NAME, ""), str(item.digest)))
    written = {
        "schemaVersion": 2,
        "mediaType": descriptors.INDEX,
        "manifests": [descriptors.render(item) for item in ordered],
    }
    return fields.render(written)


def _check_version(document: Mapping[str, object], what: str) -> None:
    if document.get("schemaVersion") != 2:
        raise ImageInvalid(f"{what} has the schema version {document.get('schemaVersion')!r:.20}, not 2")
