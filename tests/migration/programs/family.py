"""A parent and two children with memory of their own: `family.py FOLDER`; each notes its checksum again and again."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Fill the memory after the forks, and write "COUNT CHECKSUM" to a file of one's own ten times a second."""
    name = "parent"
    for child in ("older", "younger"):
        if name == "parent" and os.fork() == 0:
            name = child
    memory = bytearray(os.urandom(1 << 20) * 16)
    count = 0
    while True:
        count += 1
        note = Path(sys.argv[1]) / name
        note.with_suffix(".new").write_text(f"{count} {hashlib.sha256(memory).hexdigest()}")
        note.with_suffix(".new").replace(note)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
