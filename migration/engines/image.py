"""A copy of an image for an engine's restore, whose processes are built stopped.

An engine's restore ends with the program running; there is no step in between. But CRIU restores a process that was
stopped (by SIGSTOP) as a stopped one. So the copy is called that in its core-*.img, and SIGCONT is what lets it run.

    core-PID.img: two 32-bit magics, a 32-bit length, one core_entry
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..images import INVENTORY_IMAGE, BadImage

# include/task-state.h of CRIU
ALIVE, STOPPED = 1, 3
DESCRIPTORS = "descriptors.json"
_LENGTH = struct.Struct("<I")
_HEADER = 8


def as_stopped(image: bytes, core: Any) -> bytes:
    """Return a core image whose process stands still; of a thread or a zombie, the image as it is."""
    if len(image) < _HEADER + _LENGTH.size:
        raise BadImage("a core image is cut off")
    (length,) = _LENGTH.unpack_from(image, _HEADER)
    entry = core.core_entry.FromString(image[_HEADER + _LENGTH.size :][:length])
    if not entry.HasField("tc") or entry.tc.task_state != ALIVE:
        return image
    entry.tc.task_state = STOPPED
    message: bytes = entry.SerializeToString()
    return image[:_HEADER] + _LENGTH.pack(len(message)) + message


def place(images: Path, folder: str | Path, changed: Mapping[str, bytes], core: Any) -> int:
    """Make a folder the image, stopped and with some files changed; return the image's bytes.

    The inventory and runc's own descriptors.json stay away: the restore that waits for the one has read the other.
    """
    size = 0
    with os.scandir(images) as entries:
        for entry in entries:
            if not entry.name.endswith(".img"):
                continue
            size += entry.stat().st_size
            target = f"{folder}/{entry.name}"
            if entry.name in changed or entry.name == INVENTORY_IMAGE:
                continue
            if entry.name.startswith("core-"):
                Path(target).write_bytes(as_stopped(Path(entry.path).read_bytes(), core))
            else:
                _link(entry.path, target)
    for name, content in changed.items():
        Path(f"{folder}/{name}").write_bytes(content)
    return size


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as ex:
        if ex.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)
