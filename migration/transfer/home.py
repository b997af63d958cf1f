"""Pages that only the destination has, for a restore at the source: which, where they belong, and how they get there.

Over the network a dump leaves no pages at the source: they are in `moved`, and those of pre-copy rounds in `far`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import MemoryLost
from ..slowness import scaled
from . import wire
from .link import Link

LAZY_CONFIG = "lazy.conf"  # the mark of a post-copy
PAGES = ("pages-", "pagemap-")
TIMEOUT = scaled(300.0)


def is_post_copy(folder: Path) -> bool:
    """Say whether a migration's folder is that of a post-copy, whose original outlives its commit."""
    return (folder / LAZY_CONFIG).exists()


def check(folder: Path) -> None:
    """Refuse to restore a post-copy's image, whose pages are nowhere: CRIU would restore zeros."""
    if is_post_copy(folder):
        raise MemoryLost("post-copy leaves no image: its pages were only in the memory of what has ended")


def missing(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the files that a migration's folder has at the destination only, each with its place at the source."""
    pairs = [(folder / "moved", folder / "images")]
    pairs += [(there, folder / "near" / there.name) for there in (folder / "far").glob("pre-*")]
    for there, here in pairs:
        for file in there.glob("*.img"):
            if file.name.startswith(PAGES) and not (here / file.name).exists():
                yield file, here / file.name


def fetch(folder: Path, link: Link) -> None:
    """Bring them home over a link, from its far end to its near one."""
    check(folder)
    for file, place in list(missing(folder)):
        receiver = wire.Receiver(link.near, place.parent)
        wire.send(link.far, {place.name: file})
        receiver.wait(TIMEOUT)


def gather(folder: Path) -> None:
    """Bring them home without hosts or links: for a controller that finds what another one left."""
    check(folder)
    for file, place in list(missing(folder)):
        os.link(file, place)
