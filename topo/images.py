"""The images that containers are started from: those that `make images` has built, or any folder with a root in it.

An image's layers are unpacked once for each run, and shared by all its containers as the lower part of their overlays.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from migration import runc
from migration.containers import Image
from migration.errors import LaunchFailed
from topo import paths
from topo.errors import BadApp, MissingTool

LAYOUT = paths.STATE / "images"
PREFIX = "localhost/p4ferry/"


def load(image: str | Path, folder: Path) -> Image:
    """Return an image, unpacked below `folder` if it has a name; raises BadApp, MissingTool."""
    path = Path(image)
    if path.is_absolute():
        if not path.is_dir():
            raise BadApp(f"there is no root file system at {path}")
        return Image(path)
    reference = reference_of(str(image))
    rootfs, layout = folder / quote(reference, safe=""), LAYOUT
    config = _config(layout, reference) if rootfs.is_dir() else _unpack(layout, reference, rootfs)
    return Image(rootfs, config.entrypoint, config.cmd, dict(config.env), config.cwd, config.user)


def check(names: Iterable[str]) -> None:
    """See that runc and some images are there, before anything is built; raises MissingTool, BadApp."""
    try:
        runc.find()
    except LaunchFailed as ex:
        raise MissingTool(str(ex)) from ex
    for name in names:
        _config(LAYOUT, reference_of(name))


def reference_of(name: str) -> str:
    """Complete the short name of one of our own images."""
    if "/" not in name:
        name = PREFIX + name
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _config(layout: Path, reference: str) -> Any:
    """Read what an image runs."""
    module, error = _oci("layout")
    try:
        return module.Layout.open(layout).resolve(reference).image.config
    except error as ex:
        raise BadApp(f"there is no image {reference}: type make images ({ex})") from ex


def _unpack(layout: Path, reference: str, rootfs: Path) -> Any:
    module, error = _oci("unpack")
    _config(layout, reference)
    try:
        return module.unpack(layout, reference, rootfs)
    except error as ex:
        shutil.rmtree(rootfs, ignore_errors=True)
        raise BadApp(f"the image {reference} cannot be unpacked: {ex}") from ex


def _oci(name: str) -> tuple[Any, Any]:
    """Return a module of the package that reads images, and its error."""
    try:
        return (
            importlib.import_module(f"containers.oci.{name}"),
            importlib.import_module("containers.errors").ContainersError,
        )
    except ImportError as ex:
        raise MissingTool(
            f"this checkout cannot read images by name ({ex}): name a root file system's folder"
        ) from ex
