"""A container's writable layer on its way to its twin.

The first copy goes below the twin's overlay, which is not mounted yet. The restore that waits at the gate has mounted
it, and the kernel forbids changes below a mounted overlay; so what changes until the freeze goes through it, where a
whiteout is a removal.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from ..errors import MigrationError
from ..slowness import scaled
from ..volumes import Mirror, remove
from .driver import Contained

RUNC_STATE = Path("/run/runc")
_OPAQUE = "trusted.overlay.opaque"


class Layer(Mirror):
    """The writable layer of a container, twice."""

    def __init__(self, original: Contained, twin: Contained) -> None:
        super().__init__(original.upper, twin.upper, Path("/"))
        self._twin = twin
        self._is_mounted = False
        self._name = original.user_name

    def mounted(self) -> None:
        """From now on go through the twin's overlay; raises MigrationError if it cannot be seen."""
        if not self._twin.merged.is_mount():
            raise MigrationError(
                f"the file system of {self._name}'s copy is not mounted at {self._twin.merged}"
            )
        self._copy = self._twin.merged
        self._is_mounted = True

    def _bring(self, name: str, status: os.stat_result, links: dict[int, str]) -> int:
        there = self._copy / name
        if self._is_mounted and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            remove(there)  # a whiteout
            return 0
        is_new_folder = stat.S_ISDIR(status.st_mode) and name not in self._stamps and name != "."
        if self._is_mounted and is_new_folder and _is_opaque(self._source / name):
            remove(there)
        return super()._bring(name, status, links)


def unmount_left(twin: Contained) -> None:
    """Take away what runc leaves of a twin that was removed, when it or CRIU was killed: mounts, and its state."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if twin.id in point.parts or point == twin.merged:
            command = ["umount", "--lazy", str(point)]
            subprocess.run(
                command, capture_output=True, timeout=scaled(10.0), start_new_session=True, check=False
            )
    # Podman's runc keeps its state there, and forgets it when a restore fails.
    shutil.rmtree(RUNC_STATE / twin.id, ignore_errors=True)


def _is_opaque(folder: Path) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError:
        return False
