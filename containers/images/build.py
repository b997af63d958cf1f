"""Recipes to images in an OCI image layout; only what has changed is built.

Every layer has a key: the digest of all that decides what is in it (packages, release, machine; for programs their
content). An image carries its layers' keys as a label, so the layout itself says what is there already: a layer with
the wanted key is taken from whichever image has it, and an image with the wanted keys stays as it is. Newer packages
of the same names are looked for only when asked (`refresh`).
"""

from __future__ import annotations

import datetime
import fcntl
import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from ..errors import ContainersError
from ..oci import config as configs
from ..oci import descriptor as descriptors
from ..oci import digests, layer, layout, manifest
from ..oci.config import Image
from ..oci.descriptor import Descriptor
from ..oci.layer import Layer, Node
from ..oci.layout import Layout
from ..oci.manifest import Manifest
from . import own
from . import packages as package_trees
from .recipes import PROGRAMS, Recipe

KEYS = "p4ferry.layers"
"""The label that holds the layers' keys."""
EPOCH = 1_735_689_600
"""The time that all files have: 2025-01-01, unless SOURCE_DATE_EPOCH says another."""


class Source(Protocol):
    """Where packages come from."""

    suite: str

    def tree(self, names: Sequence[str]) -> dict[str, Node]:
        """Return the files of packages and of all that they need."""


@dataclass(frozen=True)
class Part:
    """A layer that an image is to have."""

    key: str
    packages: tuple[str, ...] = ()
    """Of this layer and all below; empty: the programs."""
    own: str = ""
    """The name of an image that is made without packages; this layer is all of it."""


class Builder:
    """Builds into one layout."""

    def __init__(
        self,
        target: Path,
        source: Source,
        apps: Path,
        say: Callable[[str], None] = print,
        refresh: bool = False,
    ) -> None:
        self._path = target
        self._source = source
        self._programs = programs(apps)
        self._say = say
        self._refresh = refresh
        self._epoch = int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
        self._fresh: dict[str, Layer] = {}
        self._trees: dict[str, dict[str, Node]] = {}

    def build(self, recipes: Iterable[Recipe]) -> list[str]:
        """Build what is not up to date; returns the names of the images that have changed."""
        changed = []
        target = Layout.create(self._path)
        with _locked(self._path):
            for recipe in recipes:
                parts = self._parts(recipe)
                if self._refresh or not self._is_current(target, recipe, parts):
                    self._say(f"building {recipe.reference}")
                    before = target.names().get(recipe.reference)
                    described = self._image(target, recipe, parts)
                    if before is None or before.digest != described.digest:
                        changed.append(recipe.reference)
            if changed:
                target.prune()
        return changed

    def _parts(self, recipe: Recipe) -> list[Part]:
        parts: list[Part] = []
        below: tuple[str, ...] = ()
        for names in recipe.packages:
            below = (*below, *names)
            parts.append(Part(self._key(package_trees.VERSION, self._source.suite, *below), below))
        if recipe.is_own:
            parts.append(Part(self._key("own", own.key_of(recipe.name)), own=recipe.name))
        if recipe.has_programs:
            content = (f"{path} {digests.of(node.data or b'')}" for path, node in self._programs.items())
            parts.append(Part(self._key("programs", *content)))
        return parts

    def _key(self, *decides: object) -> str:
        text = "\n".join(map(str, (layout.here(), self._epoch, *decides)))
        return digests.of(text.encode()).hex[:32]

    def _is_current(self, target: Layout, recipe: Recipe, parts: Sequence[Part]) -> bool:
        try:
            found = target.resolve(recipe.reference)
        except ContainersError:
            return False
        return (
            found.image.labels.get(KEYS, "").split(",") == [part.key for part in parts]
            and found.image.config == recipe.runs
            and all(target.has(blob) for blob in found.manifest.layers)
        )

    def _image(self, target: Layout, recipe: Recipe, parts: Sequence[Part]) -> Descriptor:
        layers = [self._layer(target, parts, number) for number in range(len(parts))]
        created = datetime.datetime.fromtimestamp(self._epoch, datetime.timezone.utc)
        image = Image(
            recipe.runs,
            tuple(item.diff_id for item in layers),
            layout.here().architecture,
            created=created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            labels={KEYS: ",".join(part.key for part in parts)},
        )
        config = target.write(configs.render(image), descriptors.CONFIG)
        found = Manifest(config, tuple(item.descriptor for item in layers))
        described = target.write(manifest.render(found), descriptors.MANIFEST)
        target.tag(recipe.reference, described)
        return described

    def _layer(self, target: Layout, parts: Sequence[Part], number: int) -> Layer:
        """Return a layer from an image that has it, or make it."""
        part = parts[number]
        if part.key not in self._fresh:
            found = None if self._refresh else _existing(target).get(part.key)
            self._fresh[part.key] = found or self._write(target, self._content(target, parts, number))
        return self._fresh[part.key]

    def _content(self, target: Layout, parts: Sequence[Part], number: int) -> Mapping[str, Node]:
        part = parts[number]
        if part.own:
            return own.files(part.own)
        if not part.packages:
            return self._programs
        whole = self._tree(part)
        if number == 0:
            return whole
        lower: dict[str, Node] = {}
        for below in range(number):
            written = self._layer(target, parts, below)
            with target.open_blob(written.descriptor) as packed, gzip.open(packed) as plain:
                lower |= package_trees.nodes(cast(BinaryIO, plain))
        return layer.difference(lower, whole)

    def _tree(self, part: Part) -> dict[str, Node]:
        if part.key not in self._trees:
            self._say(f"  packages: {', '.join(part.packages)} ({self._source.suite})")
            self._trees[part.key] = self._source.tree(part.packages)
        return self._trees[part.key]

    def _write(self, target: Layout, content: Mapping[str, Node]) -> Layer:
        with target.new_blob() as new:
            written = layer.write(content.values(), new.file, self._epoch)
            target.keep(new, written.descriptor.digest)
        return written


def programs(apps: Path) -> dict[str, Node]:
    """Return apps/ as it is in an image."""
    found = [
        Node(
            f"{PROGRAMS}/{path.relative_to(apps)}", 0o755 if path.parent == apps else 0o644, path.read_bytes()
        )
        for path in apps.rglob("*.py")
    ]
    return layer.tree(found)


def _existing(target: Layout) -> dict[str, Layer]:
    """Return the layers of our images by their keys."""
    found: dict[str, Layer] = {}
    for item in target.index().manifests:
        try:
            image = target.load(item)
        except ContainersError:
            continue  # somebody else's, or damaged: the next build writes it anew
        keys = image.image.labels.get(KEYS, "").split(",")
        for key, blob, diff_id in zip(keys, image.manifest.layers, image.image.diff_ids, strict=False):
            if target.has(blob):
                found[key] = Layer(blob, diff_id)
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process builds here."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
