"""CRIU's versions, and what depends on them. Standard library only: set-up uses it, too."""

from __future__ import annotations

import re

OLDEST = (3, 18)
"""3.17 takes neither a path to images nor the wish to leave the network unlocked. Asked in its own way, 3.17.1 on Linux
6.1 could not checkpoint a program for migrations, which was lost, though a plain dump and restore works."""
SINCE_PLAIN_FOLDERS = (4, 2)
"""An older one asked by RPC for images in a folder takes its path for that of a link, and ends if it is none."""
SINCE_PASSCRED = (4, 2)
"""From Linux 6.16 on, no older one can dump a TCP connection (SO_PASSCRED)."""
KERNEL_WITHOUT_PASSCRED = (6, 16)


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with: (4, 2, 1) of `4.2.1-dirty` or of a package's `1:4.2.1-1`."""
    found = re.match(r"(?:\d+:)?v?(\d+(?:\.\d+)*)", text.strip())
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def why_unfit(criu: str, kernel: str) -> str | None:
    """Return why a CRIU is not worth trying on a kernel, None if it may work."""
    version = parse_version(criu)
    if version < OLDEST:
        return f"older than {'.'.join(map(str, OLDEST))}, which migrations need"
    if version < SINCE_PASSCRED and parse_version(kernel) >= KERNEL_WITHOUT_PASSCRED:
        return "from Linux 6.16 on, CRIU before 4.2 cannot dump TCP connections"
    return None
