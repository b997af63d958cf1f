"""Room for CRIU's page pipes.

Post-copy keeps a program's pages in pipes, and reads one of them through a pipe of PAGES_PER_PIPE pages. A CRIU with
CAP_SYS_RESOURCE may make pipes of any size. Where root lacks it (in many containers and sandboxes) the limit
fs.pipe-max-size counts, 1 MiB by default: CRIU then ignores that it could not make its pipe, and fails at the first
page ("tee: Operation not permitted"). So the limit is raised while such a migration runs, and put back after the last.
What it was is noted in a file, so that whoever cleans up after a killed controller can put it back, too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = Path("/proc/sys/fs/pipe-max-size")
NOTE = Path("/run/p4ferry.pipe-max-size")
# CRIU asks for 819 pages, and the kernel rounds up to a power of two.
NEEDED = 1024 * 4096
CAP_SYS_RESOURCE = 24

_lock = threading.Lock()
_users = 0


@contextmanager
def large_pipes() -> Iterator[None]:
    """Let pipes be as large as CRIU wants them, as long as the block runs; raises OSError where nobody may."""
    global _users
    if is_unlimited():
        yield
        return
    with _lock:
        if _users == 0:
            before = LIMIT.read_text()
            if int(before) < NEEDED:
                NOTE.write_text(before)
                LIMIT.write_text(str(NEEDED))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                put_back()


def put_back() -> None:
    """Let the limit be what it was before this process, or one that was killed, raised it."""
    if NOTE.exists():
        LIMIT.write_text(NOTE.read_text())
        NOTE.unlink()


def is_unlimited() -> bool:
    """Say whether the limit does not bind us (our CRIU has the capabilities that we have)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> CAP_SYS_RESOURCE & 1)
    return False
