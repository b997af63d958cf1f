"""Room for CRIU's page pipes.

Post-copy keeps a program's pages in pipes, and reads one of them through a pipe of PAGES_PER_PIPE pages. A CRIU with
CAP_SYS_RESOURCE may make pipes of any size. Where root lacks it (in many containers and sandboxes) the limit
fs.pipe-max-size counts, 1 MiB by default: CRIU then ignores that it could not make its pipe, and fails at the first
page ("tee: Operation not permitted"). So the limit is raised while such a migration runs, and put back after the last.
What it was is noted in a file, so that whoever cleans up after a killed controller can put it back, too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from .. import tree
from ..shared import Shared

LIMIT = Path("/proc/sys/fs/pipe-max-size")
NOTE = Path("/run/p4ferry.pipe-max-size")
# CRIU asks for 819 pages, and the kernel rounds up to a power of two.
NEEDED = 1024 * 4096
CAP_SYS_RESOURCE = 24  # <linux/capability.h>


def large_pipes() -> AbstractContextManager[None]:
    """Let pipes be as large as CRIU wants them, as long as the block runs; raises OSError where nobody may."""
    return nullcontext() if is_unlimited() else _SHARED.use()


def _raise() -> None:
    before = LIMIT.read_text()
    if int(before) < NEEDED:
        NOTE.write_text(before)
        LIMIT.write_text(str(NEEDED))


def put_back() -> None:
    """Let the limit be what it was before this process, or one that was killed, raised it."""
    if NOTE.exists():
        LIMIT.write_text(NOTE.read_text())
        NOTE.unlink()


def is_unlimited() -> bool:
    """Say whether the limit does not bind us (our CRIU has the capabilities that we have)."""
    return tree.may(CAP_SYS_RESOURCE)


_SHARED = Shared(_raise, put_back)
