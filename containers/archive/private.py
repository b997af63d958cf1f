"""Files that only their owner can read, and that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import ContainersError


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file of mode 0600; it gets its name at the end, if nothing went wrong and nobody has it."""
    if os.path.lexists(path):
        raise ContainersError(f"{path} exists already; it is not overwritten")
    opened, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(opened, "w+b") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError as ex:
            raise ContainersError(f"{path} exists already; it is not overwritten") from ex
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a new folder of mode 0700 under another name; it gets its own at the end, if nothing went wrong."""
    if os.path.lexists(path):
        raise ContainersError(f"{path} exists already; it is not overwritten")
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}-", dir=path.parent, ignore_cleanup_errors=True
    ) as made:
        folder = Path(made) / "new"
        folder.mkdir(mode=0o700)
        yield folder
        try:
            folder.rename(path)  # onto an empty folder it would succeed; onto anything else it fails
        except OSError as ex:
            raise ContainersError(f"{path} exists already; it is not overwritten") from ex
