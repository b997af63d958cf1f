"""A folder that files are put into without ever leaving it: every step is taken on an open directory.

A symbolic link on the way is followed as a container would, with this folder as its root: an absolute target begins
here, ".." stops here. The kernel never follows one, so it does not matter what a layer has put where.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

_MAX_LINKS = 40  # as the kernel
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Escape(Exception):
    """A path that leads nowhere: through a file, or round in circles; the message completes "PATH …"."""


class Tree:
    """An open root folder."""

    def __init__(self, path: Path) -> None:
        self._root = os.open(path, _FOLDER)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._root)

    @contextlib.contextmanager
    def folder(self, parts: Sequence[str], make: bool = False) -> Iterator[int]:
        """Open a folder in the tree; `make` makes what is missing on the way."""
        opened = self._walk(parts, make)
        try:
            yield opened
        finally:
            os.close(opened)

    def _walk(self, parts: Sequence[str], make: bool) -> int:
        way, todo, links = [os.dup(self._root)], list(reversed(parts)), 0
        try:
            while todo:
                part = todo.pop()
                if part == "..":
                    if len(way) > 1:
                        os.close(way.pop())
                    continue
                if (target := _link(way[-1], part)) is None:
                    way.append(_step(way[-1], part, make))
                    continue
                links += 1
                if links > _MAX_LINKS:
                    raise Escape("leads through too many links")
                if target.startswith("/"):
                    while len(way) > 1:
                        os.close(way.pop())
                todo += [name for name in reversed(target.split("/")) if name not in ("", ".")]
            return way.pop()
        finally:
            for opened in way:
                os.close(opened)


def _link(folder: int, name: str) -> str | None:
    """Return a symbolic link's target, None for anything else."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _step(folder: int, name: str, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=folder)
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except NotADirectoryError as ex:
        raise Escape("leads through something that is no folder") from ex


def kind(folder: int, name: str) -> int:
    """Return the type bits of a name's mode, 0 if there is nothing."""
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


def remove(folder: int, name: str) -> None:
    """Remove a name and what is below it; nothing if it is not there."""
    found = kind(folder, name)
    if found == stat.S_IFDIR:
        empty(folder, name)
        os.rmdir(name, dir_fd=folder)
    elif found:
        os.unlink(name, dir_fd=folder)


def empty(folder: int, name: str) -> None:
    """Remove what is in a folder."""
    opened = os.open(name, _FOLDER, dir_fd=folder)
    try:
        for inside in os.listdir(opened):  # noqa: PTH208
            remove(opened, inside)
    finally:
        os.close(opened)
