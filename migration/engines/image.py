"""A copy of an image for an engine's restore, whose processes are built stopped.

An engine's restore ends with the program running; there is no step in between. But CRIU restores a process that was
stopped (by SIGSTOP) as a stopped one. So the copy is called that in its core-*.img, and SIGCONT is what lets it run.

The image also names the control groups of its processes, by their paths. On version 2 runc does not tell CRIU where the
new container's are (for version 1 it does), so the copy would be put into the original's, which is frozen. They are
renamed here.

    core-PID.img: two 32-bit magics, a 32-bit length, one core_entry
    cgroup.img: the same, one cgroup_entry: whole paths in `path`, and in `dir_name` where it is no child's
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..images import INVENTORY_IMAGE, BadImage, join, split

# include/task-state.h of CRIU
ALIVE, STOPPED = 1, 3
CGROUP_IMAGE = "cgroup.img"
DESCRIPTORS = "descriptors.json"
KEPT = ".kept"
KEPT_INVENTORY, KEPT_DESCRIPTORS = INVENTORY_IMAGE + KEPT, DESCRIPTORS + KEPT
_OTHER_NAMES = {INVENTORY_IMAGE: KEPT_INVENTORY, DESCRIPTORS: KEPT_DESCRIPTORS}
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


def regrouped(image: bytes, groups: Mapping[str, str], cgroup: Any) -> bytes:
    """Return a cgroup.img with other paths; `groups` are pairs of old and new, which hold for what is below, too."""
    magics, messages = split(image)
    return join(magics, [_regrouped(message, groups, cgroup) for message in messages])


def _regrouped(message: bytes, groups: Mapping[str, str], cgroup: Any) -> bytes:
    entry = cgroup.cgroup_entry.FromString(message)
    for one in (member for found in entry.sets for member in found.ctls):
        for old, new in groups.items():
            if (path := _below(one.path, old, new)) is not None:
                if one.cgns_prefix == len(old):  # the part that the processes' cgroup namespace hides
                    one.cgns_prefix = len(new)
                one.path = path
                break
    for one in (folder for controller in entry.controllers for folder in controller.dirs):
        paths = (_below(one.dir_name, old, new) for old, new in groups.items())
        one.dir_name = next((path for path in paths if path is not None), one.dir_name)
    changed: bytes = entry.SerializeToString()
    return changed


def _below(path: str, old: str, new: str) -> str | None:
    """Return the path in `new` of what is in `old`; None if it is not there."""
    return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else None


def copy(images: Path, folder: Path) -> None:
    """Put an image behind a gate, as links where that can be.

    The inventory, at whose place is the gate, and runc's descriptors.json, which has been read there, get other names.
    """
    with os.scandir(images) as entries:
        for entry in entries:
            name = _OTHER_NAMES.get(entry.name, entry.name)
            if name.endswith((".img", KEPT)):
                _link(entry.path, f"{folder}/{name}")


def stop_all(folder: Path, changed: Mapping[str, bytes], core: Any) -> int:
    """Change files of an image that was copied, and mark its processes as stopped; return its bytes.

    Files are replaced, not written into: they are links.
    """
    size = 0
    with os.scandir(folder) as entries:
        names = [(entry.name, entry.stat().st_size) for entry in entries if entry.name.endswith(".img")]
    for name, bytes_ in names:
        size += bytes_
        if name.startswith("core-"):
            image = changed[name] if name in changed else (folder / name).read_bytes()
            replace(folder / name, as_stopped(image, core))
    for name, content in changed.items():
        if not name.startswith("core-"):
            replace(folder / name, content)
    return size


def replace(path: Path, content: bytes) -> None:
    """Put another file in the place of one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as ex:
        if ex.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)
