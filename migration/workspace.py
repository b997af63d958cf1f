"""Folders of checkpoint images: private, on a tmpfs, gone when the migration is over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from .errors import Refused
from .images import INVENTORY_IMAGE, is_needed

# Beyond the memory of the program: files, page maps, logs.
SLACK = 16 << 20
FULL = 1 << 20


def check_room(folder: Path, needed: int, name: str) -> None:
    """Refuse a program whose image would not fit."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed + SLACK > free:
        raise Refused(
            f"no room for the image of {name}: it may take {(needed + SLACK) >> 20} MiB, "
            f"{folder} has {free >> 20} MiB free"
        )


def is_full(folder: Path) -> bool:
    """Say whether a file system has next to no room left: whatever failed there may have failed for that."""
    try:
        return shutil.disk_usage(folder).free < FULL
    except OSError:
        return False


def make_folder(parent: Path, name: str) -> Path:
    """Make a private folder for one migration."""
    folder = parent / name
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove a migration's folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def fill(images: Path, copy: Path, changed: Mapping[str, bytes]) -> int:
    """Make `copy` the image with some files changed; the rest are hard links. Return the bytes of the image.

    The inventory stays away: a restore waits for it (see criu.Gate).
    """
    size = 0
    with os.scandir(images) as entries:
        for entry in entries:
            if not is_needed(entry.name):
                continue
            size += entry.stat().st_size
            if entry.name not in changed and entry.name != INVENTORY_IMAGE:
                os.link(entry.path, copy / entry.name)
    for name, content in changed.items():
        (copy / name).write_bytes(content)
    return size


def pages_in(folder: Path) -> int:
    """Return how many bytes of pages are in a folder of images."""
    with os.scandir(folder) as entries:
        return sum(
            e.stat().st_size for e in entries if e.name.startswith("pages-") and e.name.endswith(".img")
        )
