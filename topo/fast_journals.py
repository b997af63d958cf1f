"""A place for journals where an fsync costs nothing: a small tmpfs of the run's own, where /run is on a disk.

Journals are written while programs stand still, each line followed by an fsync. On most machines /run is a tmpfs; in
many virtual machines and containers it is not, and each line then costs the freeze a tenth of a millisecond or more.
Nothing is lost by keeping them in memory: the programs that they tell of do not outlive the machine either.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SIZE = "16m"


def prepare(folder: Path) -> None:
    """Make the folder, in memory if that is possible; where it is not, fsyncs are as slow as the disk."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if _is_tmpfs(folder):
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "p4ferry-journals", str(folder)]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)


def remove(folder: Path) -> None:
    """Take the memory away again, if it was given; the folder stays."""
    if os.path.ismount(folder):
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, timeout=10, check=False)


def _is_tmpfs(path: Path) -> bool:
    """Say whether a path is on a tmpfs, by the longest mount point that leads to it."""
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        if Path(path).resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind == "tmpfs"
