"""Room for CRIU's page pipes.

Post-copy keeps a program's pages in pipes, and reads one of them through a pipe of PAGES_PER_PIPE pages. A CRIU with
CAP_SYS_RESOURCE may make pipes of any size. Where root lacks it (in many containers and sandboxes) the limit
fs.pipe-max-size counts, 1 MiB by default: CRIU then ignores that it could not make its pipe, and fails at the first
page ("tee: Operation not permitted"). So the limit is raised while such a migration runs, and put back after the last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = Path("/proc/sys/fs/pipe-max-size")
# CRIU asks for 819 pages, and the kernel rounds up to a power of two.
NEEDED = 1024 * 4096
CAP_SYS_RESOURCE = 24

_lock = threading.Lock()
_users = 0
_before = 0


@contextmanager
def large_pipes() -> Iterator[None]:
    """Let pipes be as large as CRIU wants them, as long as the block runs; raises OSError where nobody may."""
    global _users, _before
    if is_unlimited():
        yield
        return
    with _lock:
        if _users == 0:
            _before = int(LIMIT.read_text())
            if _before < NEEDED:
                LIMIT.write_text(str(NEEDED))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _before < NEEDED:
                LIMIT.write_text(str(_before))


def is_unlimited() -> bool:
    """Say whether the limit does not bind us (our CRIU has the capabilities that we have)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> CAP_SYS_RESOURCE & 1)
    return False
