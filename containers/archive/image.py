"""A checkpoint archive as an OCI image, and back: one layer, which is the archive byte for byte.

The image is an OCI image layout in a folder of its own (mode 0700) and has the annotation by which CRI-O and kubelet
know a checkpoint. Since the layer is the archive itself, what comes out is what went in.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..errors import ArchiveInvalid, ImageInvalid
from ..oci import config as configs
from ..oci import descriptor as descriptors
from ..oci import digests, layout, manifest
from ..oci.compression import Compression
from ..oci.config import Image, ImageConfig
from ..oci.descriptor import Descriptor
from ..oci.layout import Layout, Resolved
from ..oci.manifest import Manifest
from . import checkpoint, names, private
from .checkpoint import Checkpoint, Limits

MEDIA_TYPES = {
    Compression.NONE: descriptors.LAYER_TAR,
    Compression.GZIP: descriptors.LAYER_GZIP,
    Compression.ZSTD: descriptors.LAYER_ZSTD,
}


class Stored(NamedTuple):
    """An image in a layout that holds nothing else."""

    layout: Layout
    found: Resolved

    @property
    def name(self) -> str:
        """Return the container's name."""
        return self.found.manifest.annotations[names.ANNOTATION]

    @property
    def layer(self) -> Descriptor:
        """Return the archive."""
        return self.found.manifest.layers[0]


def build(archive: Path, target: Path, limits: Limits | None = None) -> Checkpoint:
    """Make an image of an archive; the copy in the image is what is checked."""
    with checkpoint.opened(archive) as source, private.new_folder(target) as folder:
        image = Layout.create(folder, private=True)
        with image.new_blob() as new:
            for chunk in digests.chunks(source):
                new.file.write(chunk)
            new.file.seek(0)
            digest, size = digests.of_file(new.file)
            found = checkpoint.validate(new.file, str(archive), folder, limits)
            image.keep(new, digest)
        layer = Descriptor(MEDIA_TYPES[found.compression], digest, size)
        described = configs.render(Image(ImageConfig(), (found.diff_id,), layout.here().architecture))
        config = image.write(described, descriptors.CONFIG)
        written = Manifest(config, (layer,), {names.ANNOTATION: found.name})
        image.tag(_reference(found.name), image.write(manifest.render(written), descriptors.MANIFEST))
    return found


def _reference(name: str) -> str:
    return f"localhost/checkpoint/{name.lower()}:latest"


def stored(path: Path) -> Stored:
    """Open an image that `build` or a pull has made."""
    image = Layout.open(path)
    listed = image.index().manifests
    if len(listed) != 1:
        raise ImageInvalid(f"{path} holds {len(listed)} images, not one checkpoint")
    found = image.load(listed[0])
    check(found.manifest, str(path))
    return Stored(image, found)


def check(found: Manifest, what: str) -> None:
    """Make sure that an image is a checkpoint."""
    if not found.annotations.get(names.ANNOTATION):
        raise ImageInvalid(f"{what} is no checkpoint: it has no annotation {names.ANNOTATION}")
    if len(found.layers) != 1:
        raise ImageInvalid(f"{what} is no checkpoint: it has {len(found.layers)} layers, not one")


def extract(path: Path, archive: Path, limits: Limits | None = None) -> Checkpoint:
    """Write an image's archive to a new file; it gets its name when everything in it has been checked."""
    image = stored(path)
    with image.layout.open_blob(image.layer) as source, private.new_file(archive) as target:
        for chunk in digests.chunks(source):
            target.write(chunk)
        target.seek(0)
        if digests.of_file(target)[0] != image.layer.digest:
            raise ImageInvalid(f"{path} has changed while it was read")
        found = checkpoint.validate(target, str(path), archive.parent, limits)
        if found.diff_id != image.found.image.diff_ids[0]:
            raise ArchiveInvalid(f"{path}: the archive has another content than the image's config says")
    return found
